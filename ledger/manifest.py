"""The digest of a directory: SHA-256 over the canonical list of path, size and SHA-256 of every file.

Renaming, adding, removing or changing a file changes the digest (unlike the OpenSSF model signing
root digest, which ignores names). The manifest's own bytes hash to the directory's digest, so a stored
manifest is an artifact like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ledger import strict_json

MAX_FILES = 10_000


@dataclass(frozen=True, order=True)
class FileEntry:
    """One file: path relative to the directory with `/` separators, size in bytes, hex SHA-256."""

    path: str
    size: int
    sha256: str


def encode(files: Iterable[FileEntry]) -> bytes:
    """The manifest's bytes. Raises ValueError on no files, a repeated path or one that leaves the directory."""
    entries = sorted(files)
    paths = [entry.path for entry in entries]
    if not entries:
        raise ValueError("a directory without files has no digest")
    if len(set(paths)) != len(paths):
        raise ValueError("a path stands twice in the manifest")
    for path in paths:
        _check_path(path)
    return strict_json.canonical({"files": [{"path": e.path, "sha256": e.sha256, "size": e.size} for e in entries]})


def decode(data: bytes) -> list[FileEntry]:
    """Read a manifest. Raises ValueError unless `encode` gives the same bytes back."""
    value = strict_json.loads(data)
    try:
        rows = value["files"]
        if len(rows) > MAX_FILES:
            raise ValueError(f"more than {MAX_FILES} files")
        entries = [FileEntry(str(row["path"]), int(row["size"]), str(row["sha256"])) for row in rows]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a manifest: {error}") from None
    if encode(entries) != data:
        raise ValueError("the manifest is not in canonical form")
    return entries


def digest(files: Iterable[FileEntry]) -> str:
    """Hex SHA-256 that stands for the whole directory."""
    return hashlib.sha256(encode(files)).hexdigest()


def _check_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not path or path.startswith("/") or "\\" in path or "\x00" in path or ".." in parts or path != "/".join(parts):
        raise ValueError(f"{path!r} is not a plain relative path")
