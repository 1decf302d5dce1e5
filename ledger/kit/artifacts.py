"""Content-addressed artifact store: write once, atomic, verified on every read.

    blobs/sha256/<aa>/<digest>      one file, named by the SHA-256 of its bytes, mode 0444
    A directory is a manifest blob (ledger/manifest.py) plus one blob per file; its digest is the manifest's.

A write goes to a temporary file in the same file system, is flushed to disk, renamed, and the directory
entry is flushed too; a crash leaves either the whole blob or none. What it leaves in tmp/ is removed when a store
is opened a day later.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ledger import manifest
from ledger.errors import ArtifactMismatch, InvalidInput, NotFound

CHUNK = 1 << 20
MAX_MANIFEST = 8 << 20
ABANDONED_SECONDS = 86_400  # since its last write; nobody works on a temporary file that old
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Stored:
    """What `put` answers: hex SHA-256 and size in bytes (of a directory: of all its files)."""

    sha256: str
    size: int


def hash_file(path: Path, progress: Progress | None = None) -> Stored:
    """SHA-256 and size of a file, read once in 1 MiB pieces."""
    with path.open("rb") as file:
        return hash_stream(file, progress)


def hash_stream(file: BinaryIO, progress: Progress | None = None) -> Stored:
    hasher, size = hashlib.sha256(), 0
    while piece := file.read(CHUNK):
        hasher.update(piece)
        size += len(piece)
        if progress:
            progress(len(piece))
    return Stored(hasher.hexdigest(), size)


def scan_directory(folder: Path) -> list[manifest.FileEntry]:
    """Hash every file below `folder`. Symbolic links are refused: their target is not covered by the digest."""
    entries = []
    for path in _files_below(folder):
        stored = hash_file(path)
        entries.append(manifest.FileEntry(path.relative_to(folder).as_posix(), stored.size, stored.sha256))
    return entries


class ArtifactStore:
    """Files and directories by digest below one root. Safe for many processes: writes are renames."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._temporary = root / "tmp"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()

    def path_of(self, sha256: str) -> Path:
        """Where a blob lies or would lie. Not verified: use `get` to read."""
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise InvalidInput(f"{sha256!r} is not a hex SHA-256 digest")
        return self._blobs / sha256[:2] / sha256

    def __contains__(self, sha256: str) -> bool:
        return self.path_of(sha256).exists()

    def put_bytes(self, data: bytes) -> Stored:
        return self._put(io.BytesIO(data))

    def put_file(self, path: Path, progress: Progress | None = None) -> Stored:
        """Copy a file in, hashing the very bytes that are stored."""
        with path.open("rb") as source:
            return self._put(source, progress)

    def put_directory(self, folder: Path) -> Stored:
        """Store every file below `folder` and the manifest; answers the directory's digest."""
        entries = []
        for path in _files_below(folder):
            stored = self.put_file(path)
            entries.append(manifest.FileEntry(path.relative_to(folder).as_posix(), stored.size, stored.sha256))
        try:
            encoded = manifest.encode(entries)
        except ValueError as error:
            raise InvalidInput(f"{folder}: {error}") from None
        blob = self.put_bytes(encoded)
        return Stored(blob.sha256, sum(entry.size for entry in entries))

    def get(self, sha256: str) -> Path:
        """The blob's path, after hashing it. Raises NotFound or ArtifactMismatch."""
        path = self.path_of(sha256)
        if not path.exists():
            raise NotFound(f"artifact sha256:{sha256} is not in the store at {self.root}")
        actual = hash_file(path).sha256
        if actual != sha256:
            raise ArtifactMismatch(f"{path}: its bytes hash to {actual}, not to its name; it was changed")
        return path

    def read_bytes(self, sha256: str, limit: int = MAX_MANIFEST) -> bytes:
        """A small blob's verified bytes."""
        path = self.get(sha256)
        if path.stat().st_size > limit:
            raise InvalidInput(f"artifact sha256:{sha256} is larger than {limit} bytes")
        return path.read_bytes()

    def manifest(self, sha256: str) -> list[manifest.FileEntry]:
        try:
            return manifest.decode(self.read_bytes(sha256))
        except ValueError as error:
            raise InvalidInput(f"artifact sha256:{sha256} is not a directory: {error}") from None

    def checkout(self, sha256: str, folder: Path) -> Path:
        """Lay a stored directory out at `folder` (made anew) by copying its verified files."""
        folder.mkdir(parents=True)
        for entry in self.manifest(sha256):
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.get(entry.sha256), target)
        return folder

    def _remove_abandoned(self) -> None:
        """What a process that was killed while it wrote has left."""
        oldest = time.time() - ABANDONED_SECONDS
        for path in self._temporary.iterdir():
            try:
                if path.lstat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                continue  # another process was faster

    def _put(self, source: BinaryIO, progress: Progress | None = None) -> Stored:
        descriptor, name = tempfile.mkstemp(dir=self._temporary)
        try:
            hasher, size = hashlib.sha256(), 0
            with open(descriptor, "wb") as target:
                while piece := source.read(CHUNK):
                    hasher.update(piece)
                    target.write(piece)
                    size += len(piece)
                    if progress:
                        progress(len(piece))
            return self._adopt(Path(name), Stored(hasher.hexdigest(), size))
        finally:
            Path(name).unlink(missing_ok=True)  # what was adopted has another name by now

    def _adopt(self, temporary: Path, stored: Stored) -> Stored:
        target = self.path_of(stored.sha256)
        if target.exists() and hash_file(target) == stored:
            return stored
        if not target.parent.exists():
            target.parent.mkdir(exist_ok=True)
            sync_directory(self._blobs)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o444)
        temporary.rename(target)
        sync_directory(target.parent)
        return stored


def sync_directory(folder: Path) -> None:
    """Make a rename durable: the entry lives in the directory, not in the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def below(folder: Path) -> Iterator[Path]:
    """Everything below a folder, however deep; links are not followed. Raises OSError for what cannot be read."""
    folders = [folder]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            yield path
            if path.is_dir() and not path.is_symlink():
                folders.append(path)


def _files_below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise NotFound(f"{folder} is not a directory")
    for path in sorted(below(folder)):
        if path.is_symlink():
            raise InvalidInput(f"{path} is a symbolic link; its target would not be covered by the digest")
        if path.is_file():
            yield path
        elif not path.is_dir():
            raise InvalidInput(f"{path} is neither a file nor a directory")
