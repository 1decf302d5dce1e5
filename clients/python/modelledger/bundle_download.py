"""A certificate's bundle from the stream to disk: a folder, or a zip when the name ends in .zip.

It appears under its name only when it is complete. Paths come from outside, so each is checked to stay inside.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO, Protocol

from ledger.bundle import is_plain_path
from ledger.errors import AlreadyExists, Damaged
from modelledger.ledger.v1 import certification_pb2

MAX_FILES = 100_000


class _Target(Protocol):
    def open(self, path: str) -> IO[bytes]: ...


def prepare(out: Path) -> None:
    """Make sure that a bundle can be written to `out`, before one is asked for. Raises AlreadyExists, OSError."""
    if out.exists():
        raise AlreadyExists(f"{out} is already there; choose another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    check_writable(out.parent)


def check_writable(folder: Path) -> None:
    """Raises OSError unless something can be written into the folder."""
    Path(tempfile.mkdtemp(prefix=".writable.", dir=folder)).rmdir()


def save(pieces: Iterator[certification_pb2.DownloadBundleResponse], out: Path) -> list[str]:
    """Write the bundle to `out`; the paths inside it. Raises AlreadyExists, Damaged."""
    prepare(out)
    paths: list[str] = []
    with _target(out) as target:
        for path, chunks in groupby(pieces, key=lambda piece: piece.path):
            if not is_plain_path(path) or path in paths or len(paths) == MAX_FILES:
                raise Damaged(f"the service sent a bundle with a path that cannot be written: {path[:200]!r}")
            paths.append(path)
            with target.open(path) as file:
                for piece in chunks:
                    file.write(piece.chunk)
        if not paths:
            raise Damaged("the service sent an empty bundle")
    return paths


@contextmanager
def _target(out: Path) -> Iterator[_Target]:
    """A place to write files to that becomes `out` when nothing went wrong."""
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        if out.suffix == ".zip":
            with zipfile.ZipFile(partial / out.name, "w", zipfile.ZIP_DEFLATED) as archive:
                yield _Zip(archive)
            (partial / out.name).rename(out)
        else:
            yield _Folder(partial / "bundle")
            (partial / "bundle").rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def open(self, path: str) -> IO[bytes]:
        return self._archive.open(path, "w", force_zip64=True)


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, path: str) -> IO[bytes]:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("wb")
