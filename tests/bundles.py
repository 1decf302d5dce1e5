"""A certificate's bundle in a folder, to be changed, sealed again and verified."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ledger import bundle, bundle_writer, manifest
from ledger import envelope as dsse
from ledger.bundle import MANIFEST, SEAL
from ledger.bundle_files import write_folder
from ledger.kit.artifacts import scan_directory
from ledger.kit.keys import FileSigner
from ledger.report import Report
from tests.certified import Certified


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def found(report: Report, where: str = "") -> set[str]:
    return {check.reason for check in report.failures if where in check.where}


def stranger() -> FileSigner:
    key = ec.generate_private_key(ec.SECP256R1())
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return FileSigner(key, der, dsse.key_id(key.public_key()))


def reseal(folder: Path, certified: Certified, signer: FileSigner | None = None) -> None:
    """Make manifest.json and its signature fit whatever the folder holds now."""
    entries = [entry for entry in scan_directory(folder) if entry.path not in (MANIFEST, SEAL)]
    listing = manifest.encode(entries)
    (folder / MANIFEST).write_bytes(listing)
    record, store = certified.certificate.record, certified.store
    payload = bundle.seal_payload(listing, record.certificate, store.signer.name, store.head.size)
    (folder / SEAL).write_bytes(dsse.sign(payload, [signer or certified.signers["certification"]]))


def certificate_time(folder: Path) -> str:
    return json.loads((folder / "ledger_proof.json").read_bytes())["timestamp"]


def unpacked(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def write(world: Certified, certificate: bundle.Statement, folder: Path, signer: FileSigner | None = None) -> Path:
    files = bundle_writer.write(
        world.store,
        world.artifacts,
        signer or world.signers["certification"],
        certificate,
        include_artifacts=False,
    )
    write_folder(((file.path, file.content) for file in files if isinstance(file.content, bytes)), folder)
    return folder
