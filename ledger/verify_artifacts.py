"""Artifacts against certified digests: those in the bundle, and copies on this machine. Pure but for reading files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ledger import bundle, manifest
from ledger.bundle import Statement
from ledger.bundle_files import BundleFiles, UnreadableBundle
from ledger.errors import ModelLedgerError
from ledger.events import KINDS
from ledger.kit.artifacts import hash_file, scan_directory
from ledger.manifest import FileEntry
from ledger.provenance import Provenance
from ledger.report import Report
from ledger.statement import Artifact

Files = Mapping[str, str]
"""Path -> hex SHA-256."""


def read_manifests(files: BundleFiles, provenance: Provenance, report: Report) -> dict[str, list[FileEntry]] | None:
    """The lists of files of directories, by digest. None when one that is needed is missing or wrong."""
    names = {a.sha256: a.name for a in (*provenance.artifacts, *(base.artifact for base in provenance.bases))}
    found: dict[str, list[FileEntry]] = {}
    for path in sorted(files.sizes):
        if not path.startswith(bundle.MANIFESTS):
            continue
        sha256 = path.removeprefix(bundle.MANIFESTS).removesuffix(".json")
        try:
            data = files.read(path)
            if path != bundle.manifest_path(sha256) or sha256 not in names:
                raise UnreadableBundle("extra-file", "is not the list of files of a certified directory")
            if hashlib.sha256(data).hexdigest() != sha256:
                raise UnreadableBundle("stale-hash", f"its bytes do not have the digest of {names[sha256]}")
            found[sha256] = manifest.decode(data)
        except UnreadableBundle as error:
            report.invalid("directory", path, error.reason, str(error))
        except ValueError as error:
            report.invalid("directory", path, "malformed-manifest", str(error))
        else:
            report.valid("directory", path, names[sha256])
    needed = [a for a in provenance.artifacts if bundle.is_directory(a) and a.sha256 not in found]
    for artifact in needed:
        where = bundle.manifest_path(artifact.sha256)
        if where not in files.sizes:
            report.missing("directory", where, "missing-file", f"the list of files of {artifact.name}")
    return None if needed else found


def check_bundled(listing: Mapping[str, FileEntry], layout: Files, report: Report) -> None:
    """artifacts/ holds nothing, or exactly the certified files."""
    present = {
        path.removeprefix(bundle.ARTIFACTS): entry.sha256
        for path, entry in listing.items()
        if path.startswith(bundle.ARTIFACTS)
    }
    if present:
        _compare(present, layout, bundle.ARTIFACTS, report)


def check_local(
    paths: Sequence[Path],
    statements: Iterable[Statement],
    layout: Files,
    manifests: Mapping[str, list[FileEntry]],
    report: Report,
) -> None:
    """Files and folders on this machine: each must be something that the statements introduced.

    A folder may be a directory artifact (an adapter, a base model), or hold artifacts as artifacts/ lays them out.
    """
    vouched = {
        artifact.sha256: artifact
        for statement in statements
        for artifact in statement.event.subjects
        if KINDS[statement.event.kind].introduces
    }
    known = {path.rsplit("/", 1)[-1]: sha256 for path, sha256 in layout.items()}
    for path in paths:
        if path.is_dir():
            _check_folder(path, vouched, layout, manifests, report)
        elif path.is_file():
            _check_file(path, vouched, known, report)
        else:
            report.missing("artifact", str(path), "missing-file", "there is no such file or folder")


def _check_file(path: Path, vouched: Mapping[str, Artifact], known: Files, report: Report) -> None:
    sha256 = hash_file(path).sha256
    if sha256 in vouched:
        report.valid("artifact", str(path), f"is {vouched[sha256].name}")
    elif sha256 in known.values():
        report.valid("artifact", str(path), "is a file of a certified directory")
    else:
        expected = known.get(path.name) or next(
            (digest for digest, a in vouched.items() if a.name.rsplit("/", 1)[-1] in (path.name, path.stem)), ""
        )
        detail = f"has sha256 {sha256}, certified is {expected}" if expected else f"no artifact has sha256 {sha256}"
        report.invalid("artifact", str(path), "changed-file", detail)


def _check_folder(
    folder: Path,
    vouched: Mapping[str, Artifact],
    layout: Files,
    manifests: Mapping[str, list[FileEntry]],
    report: Report,
) -> None:
    try:
        entries = scan_directory(folder)
        digest = manifest.digest(entries)
    except (ModelLedgerError, ValueError) as error:
        report.invalid("artifact", str(folder), "unreadable-file", str(error))
        return
    if digest in vouched:
        report.valid("artifact", str(folder), f"is {vouched[digest].name}")
        return
    present = {entry.path: entry.sha256 for entry in entries}
    candidates: list[Files] = [layout, *({e.path: e.sha256 for e in listed} for listed in manifests.values())]
    # The one it is meant to be shares most files with it, or at least most names.
    meant = max(candidates, key=lambda one: (len(one.items() & present.items()), len(one.keys() & present.keys())))
    if not meant.keys() & present.keys():
        report.invalid("artifact", str(folder), "changed-file", f"no artifact has sha256 {digest}")
        return
    _compare(present, meant, f"{folder}/", report)


def _compare(present: Files, expected: Files, prefix: str, report: Report) -> None:
    for path, sha256 in sorted(expected.items()):
        if path not in present:
            report.missing("artifact", f"{prefix}{path}", "missing-file", f"certified with sha256 {sha256}")
        elif present[path] != sha256:
            report.invalid("artifact", f"{prefix}{path}", "changed-file", f"certified is sha256 {sha256}")
        else:
            report.valid("artifact", f"{prefix}{path}")
    for path in sorted(present.keys() - expected.keys()):
        report.invalid("artifact", f"{prefix}{path}", "extra-file", "is not among the certified files")
