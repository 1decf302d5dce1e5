"""A bundle as files: a folder or a zip, read with bounds; written from the pieces a download streams.

    with open_bundle(path) as files:
        files.sizes                     path -> size in bytes
        files.read("manifest.json")     a small file
    write_folder(pieces, folder)        pieces: (path, chunk); the chunks of a file follow each other
    write_zip(pieces, file)

Nothing is extracted to verify a zip. A path that leaves the bundle, a symbolic link, a name that stands twice and
an archive that unpacks to far more than it holds are refused.
"""

from __future__ import annotations

import contextlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from ledger import bundle, manifest
from ledger.bundle import MAX_DOCUMENT
from ledger.errors import AlreadyExists, InvalidInput
from ledger.kit.artifacts import Stored, below, hash_stream

MAX_EXPANSION = 200  # unpacked bytes for each byte of a zip; deflate's own limit is about 1,000
EXPANSION_FREE = 64 << 20  # bytes; below this size the ratio does not matter

# What zipfile raises for archives that are damaged or made to harm.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)


class UnreadableBundle(ValueError):
    """The bundle, or one file of it, cannot be read; `reason` is a short word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BundleFiles(Protocol):
    sizes: dict[str, int]

    def open(self, path: str) -> BinaryIO: ...

    def hash(self, path: str) -> Stored:
        """Raises UnreadableBundle."""
        ...

    def read(self, path: str, limit: int = MAX_DOCUMENT) -> bytes:
        """A small file's bytes. Raises UnreadableBundle."""
        ...


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[BundleFiles]:
    """A folder, or a zip with the bundle's files at its top. Raises UnreadableBundle."""
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UnreadableBundle("missing-file", f"{path} does not exist") from None
    except _ZIP_ERRORS as error:
        raise UnreadableBundle("not-a-bundle", f"{path} is neither a folder nor a zip: {error}") from None
    with archive:
        yield _Zip(path, archive)


class _Reading:
    sizes: dict[str, int]

    def open(self, path: str) -> BinaryIO:
        raise NotImplementedError

    def hash(self, path: str) -> Stored:
        try:
            with self.open(path) as file:
                return hash_stream(file)
        except _ZIP_ERRORS as error:
            raise UnreadableBundle("unreadable-file", f"{path}: {error}") from None

    def read(self, path: str, limit: int = MAX_DOCUMENT) -> bytes:
        try:
            with self.open(path) as file:
                data = file.read(limit + 1)
        except _ZIP_ERRORS as error:
            raise UnreadableBundle("unreadable-file", f"{path}: {error}") from None
        if len(data) > limit:
            raise UnreadableBundle("file-too-large", f"{path} has more than {limit} bytes")
        return data


class _Folder(_Reading):
    def __init__(self, root: Path) -> None:
        self._root = root
        self.sizes = {}
        try:
            for path in below(root):
                found = path.lstat()
                relative = path.relative_to(root).as_posix()
                if stat.S_ISREG(found.st_mode):
                    self.sizes[relative] = found.st_size
                elif not stat.S_ISDIR(found.st_mode):
                    raise UnreadableBundle("unsafe-path", f"{relative} is a symbolic link or a special file")
                if len(self.sizes) > manifest.MAX_FILES:
                    raise UnreadableBundle("too-many-files", f"{root} has more than {manifest.MAX_FILES} files")
        except OSError as error:
            raise UnreadableBundle("unreadable-file", f"{error.filename or root}: {error.strerror}") from None

    def open(self, path: str) -> BinaryIO:
        return (self._root / path).open("rb")


class _Zip(_Reading):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.sizes = {}
        if len(archive.infolist()) > manifest.MAX_FILES:
            raise UnreadableBundle("too-many-files", f"{path} has more than {manifest.MAX_FILES} files")
        for info in archive.infolist():
            if info.filename.endswith("/") and info.file_size == 0:  # is_dir() fails for an empty name
                continue
            if info.filename in self.sizes:
                raise UnreadableBundle("unsafe-path", f"{info.filename!r} stands twice in {path}")
            if stat.S_ISLNK(info.external_attr >> 16) or not bundle.is_plain_path(info.filename):
                raise UnreadableBundle("unsafe-path", f"{info.filename!r} in {path} is not a plain relative path")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Of other methods zipfile unpacks all that it has read before it looks at the size.
                raise UnreadableBundle("zip-bomb", f"{info.filename!r} in {path} is neither stored nor deflated")
            self.sizes[info.filename] = info.file_size
        if sum(self.sizes.values()) > EXPANSION_FREE + MAX_EXPANSION * path.stat().st_size:
            raise UnreadableBundle("zip-bomb", f"{path} unpacks to more than {MAX_EXPANSION} times its size")

    def open(self, path: str) -> BinaryIO:
        # ZipExtFile unpacks no more than the size in the directory, which the bound above has counted.
        return self._archive.open(path)  # type: ignore[return-value]  # it is a BinaryIO in all but its stub


Pieces = Iterable[tuple[str, bytes]]


def write_folder(pieces: Pieces, folder: Path) -> None:
    """Write a download to `folder`, which must not exist yet. Raises InvalidInput, AlreadyExists."""
    if folder.exists():
        raise AlreadyExists(f"{folder} exists; give a path that does not")
    folder.mkdir(parents=True)
    for path, chunks in _files(pieces):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)


def write_zip(pieces: Pieces, file: Path) -> None:
    """Write a download to a zip, which must not exist yet. Raises InvalidInput, AlreadyExists."""
    try:
        archive = zipfile.ZipFile(file, "x", zipfile.ZIP_DEFLATED)
    except FileExistsError:
        raise AlreadyExists(f"{file} exists; give a path that does not") from None
    with archive:
        for path, chunks in _files(pieces):
            info = zipfile.ZipInfo(path)  # its date is 1980-01-01: equal bundles make equal archives
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as target:
                for chunk in chunks:
                    target.write(chunk)


def _files(pieces: Pieces) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Group pieces by file; what a server says is a path is checked before it is used as one."""
    seen: set[str] = set()
    stream = iter(pieces)
    pending = next(stream, None)

    def chunks(path: str) -> Iterator[bytes]:
        nonlocal pending
        while pending is not None and pending[0] == path:
            yield pending[1]
            pending = next(stream, None)

    while pending is not None:
        path = pending[0]
        if path in seen or not bundle.is_plain_path(path) or len(seen) >= manifest.MAX_FILES:
            raise InvalidInput(f"the bundle's file {path[:200]!r} is not a plain relative path, or stands twice")
        seen.add(path)
        yield path, chunks(path)
