"""A bundle as files: folders and zips, artifacts in it or beside it, and what other tools read."""

from __future__ import annotations

import random
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger import bundle, manifest, model_signature
from ledger.bundle import MANIFEST, SEAL
from ledger.bundle_files import write_folder, write_zip
from ledger.errors import InvalidInput
from ledger.kit.artifacts import scan_directory
from ledger.report import Report
from tests.bundles import files_of, found, reseal, stranger, unpacked
from tests.certified import Certified


def test_zip_form(original: Path, audit: Callable[..., Report], tmp_path: Path) -> None:
    archive = tmp_path / "bundle.zip"
    write_zip(((name, (original / name).read_bytes()) for name in files_of(original)), archive)
    assert audit(archive).ok
    contents = {name: (original / name).read_bytes() for name in files_of(original)}
    data, draw = archive.read_bytes(), random.Random(3)
    broken = tmp_path / "broken.zip"
    for _ in range(150):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        broken.write_bytes(changed)
        # Some bytes of a zip say nothing about its files (dates, flags of the making system).
        assert not audit(broken).ok or unpacked(broken) == contents


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil"])
def test_paths_that_leave_the_bundle(name: str, audit: Callable[..., Report], tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(name, b"x")
    assert found(audit(archive)) == {"unsafe-path"}
    with pytest.raises(Exception, match="not a plain relative path"):
        write_folder([(name, b"x")], tmp_path / "out")


def test_harmful_archives(audit: Callable[..., Report], tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("artifacts/zeros", bytes(100 << 20))
    assert found(audit(archive)) == {"zip-bomb"}
    link = zipfile.ZipInfo("README.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = tmp_path / "link.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(link, "/etc/passwd")
    assert found(audit(archive)) == {"unsafe-path"}
    archive = tmp_path / "nameless.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("?", "x")
    archive.write_bytes(archive.read_bytes().replace(b"?", b"\0"))  # where names end when they are read
    assert found(audit(archive)) == {"unsafe-path"}
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    assert found(audit(tmp_path / "no.zip")) == {"not-a-bundle"}
    assert [check.status for check in audit(tmp_path / "nothing").failures] == ["MISSING"]
    (tmp_path / "empty").mkdir()
    assert not audit(tmp_path / "empty").ok


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_of_other_methods(original: Path, audit: Callable[..., Report], tmp_path: Path, method: int) -> None:
    """Python's zipfile bounds what it unpacks of deflate only: a thousand bytes of bzip2 make two gigabytes."""
    archive = tmp_path / "bundle.zip"
    with zipfile.ZipFile(archive, "w", method) as made:
        for name in files_of(original):
            made.writestr(name, (original / name).read_bytes())
    report = audit(archive)
    assert [check.reason for check in report.failures] == ["zip-bomb"]


def test_a_folder_that_is_very_deep(copy: Path, audit: Callable[..., Report]) -> None:
    deep = copy.joinpath(*"a" * 1_200)
    subprocess.run(["mkdir", "-p", deep], check=True)  # pathlib's own way is recursive
    (deep / "file").touch()
    assert not audit(copy).ok
    (deep / "link").symlink_to("file")
    with pytest.raises(InvalidInput, match="symbolic link"):
        scan_directory(copy)
    subprocess.run(["rm", "-r", copy / "a"], check=True)
    assert audit(copy).ok


def test_symbolic_link_in_a_folder(copy: Path, audit: Callable[..., Report]) -> None:
    (copy / "README.md").unlink()
    (copy / "README.md").symlink_to("/etc/passwd")
    assert found(audit(copy)) == {"unsafe-path"}


def test_local_artifacts(original: Path, certified: Certified, audit: Callable[..., Report], tmp_path: Path) -> None:
    files = tmp_path / "files"
    shutil.copytree(certified.files, files)
    paths = [
        files / "datasets/acme/faq-sv",
        files / "adapters/run-1/tiny",
        files / "adapters/run-1/tiny/adapter_model.safetensors",
        files / "base-models/tiny",
        files / "gguf/q-1/assistant.Q8_0.gguf",
        original / "artifacts",
    ]
    assert audit(original, *paths).ok
    for changed in (
        files / "datasets/acme/faq-sv",
        files / "adapters/run-1/tiny/adapter_model.safetensors",
        files / "base-models/tiny/model.safetensors",
        files / "gguf/q-1/assistant.Q8_0.gguf",
    ):
        content = changed.read_bytes()
        changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        failures = audit(original, *paths).failures
        assert failures
        assert {(check.where, check.status) for check in failures} == {(str(changed), "INVALID")}
        changed.write_bytes(content)
    lost = files / "base-models/tiny/config.json"
    lost.unlink()
    assert [(c.where, c.status) for c in audit(original, *paths).failures] == [(str(lost), "MISSING")]
    lost.write_bytes(b"{}")
    added = files / "adapters/run-1/tiny/extra"
    added.write_bytes(b"")
    assert [(c.where, c.reason) for c in audit(original, *paths).failures] == [(str(added), "extra-file")]
    gone = tmp_path / "gone"
    assert [(c.where, c.status) for c in audit(original, gone).failures] == [(str(gone), "MISSING")]


def test_without_artifacts(certified: Certified, audit: Callable[..., Report], tmp_path: Path) -> None:
    folder = certified.download(certified.certificate.name, tmp_path / "bundle", include_artifacts=False)
    assert not (folder / "artifacts").exists()
    assert audit(folder, certified.files / "adapters/run-1/tiny").ok


def test_same_checkpoint_same_files(certified: Certified, original: Path, tmp_path: Path) -> None:
    again = certified.download(certified.certificate.name, tmp_path / "again")
    different = {n for n in files_of(original) if (original / n).read_bytes() != (again / n).read_bytes()}
    # An ECDSA signature is never the same twice; manifest.json names the signed file's digest.
    assert different <= {"model.sig", MANIFEST, SEAL}
    assert files_of(again) == files_of(original)


def test_model_signing_accepts_the_signature(original: Path, copy: Path) -> None:
    """The OpenSSF tool itself, over the artifacts folder."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(copy / "artifacts")]
    command += ["--signature", str(original / "model.sig"), "--public_key", str(original / "certification_key.pem")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    changed = copy / "artifacts/gguf/q-1/assistant.Q8_0.gguf"
    changed.write_bytes(changed.read_bytes()[:-1])
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_bill_of_materials_is_cyclonedx(original: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (original / "mlbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text.replace('"CycloneDX"', '"Other"')) is not None


def test_what_the_model_signature_must_be(copy: Path, audit: Callable[..., Report], certified: Certified) -> None:
    """Each sealed again with the real key."""
    signer, signature = certified.signers["certification"], copy / bundle.MODEL_SIGNATURE
    signature.write_bytes(model_signature.sign("m", [("a", "0" * 64)], signer))
    reseal(copy, certified)
    assert found(audit(copy)) == {"stale-hash"}
    signature.write_bytes(model_signature.sign("m", [("a", "0" * 64)], stranger()))
    reseal(copy, certified)
    assert found(audit(copy)) == {"invalid-signature"}
    (copy / bundle.KEY).write_bytes(model_signature.public_key_pem(stranger().public_key_der))
    reseal(copy, certified)
    assert found(audit(copy)) == {"unknown-actor"}


def test_list_of_files_has_the_certified_digest(copy: Path, audit: Callable[..., Report], certified: Certified) -> None:
    path = copy / bundle.manifest_path(certified._adapters[0].sha256)
    entries = manifest.decode(path.read_bytes())
    path.write_bytes(manifest.encode(entries[:1]))
    reseal(copy, certified)
    assert found(audit(copy), path.name) == {"stale-hash"}
    assert not audit(copy).ok


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_in_a_zip(original: Path, audit: Callable[..., Report], tmp_path: Path) -> None:
    archive = tmp_path / "twice.zip"
    write_zip(((name, (original / name).read_bytes()) for name in files_of(original)), archive)
    with zipfile.ZipFile(archive, "a") as made:
        made.writestr("README.md", (original / "README.md").read_bytes())
    assert found(audit(archive)) == {"unsafe-path"}
