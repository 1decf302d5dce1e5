"""What an auditor reads: a whole log in bundles of up to 256 entries, with whatever else its keeper says about them.

A source believes nothing and checks nothing but what it needs to go on reading; `ledger/audit.py` does.
Static files and gRPC are read in `modelledger/audit_sources.py`, databases in `ledger/whole_log.py`, backups in
`ledger/backup.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ledger.errors import DamagedLog
from ledger.merkle import TILE_WIDTH, Tile


@dataclass(frozen=True, slots=True)
class Columns:
    """Signed fields of a bundle's events as they are kept beside the entries; None where the source keeps none."""

    id: tuple[str, ...]
    stream: tuple[str, ...]
    version: tuple[int, ...]
    kind: tuple[str, ...]
    payload_sha256: tuple[str, ...] | None = None
    leaf_hash: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint as it is kept: the size it is filed under, the one before it, and the signed note."""

    size: int
    previous: int
    note: bytes


@dataclass(frozen=True)
class Bundle:
    """Entries of one tile, and what is kept with them.

    columns, introductions (sha256, name, position) and revocations (sha256, position) are None where the source keeps
    none; checkpoints are those of sizes behind the first entry, up to the last.
    """

    start: int
    entries: list[bytes]
    columns: Columns | None = None
    checkpoints: tuple[KeptCheckpoint, ...] = ()
    introductions: frozenset[tuple[str, str, int]] | None = None
    revocations: frozenset[tuple[str, int]] | None = None


class Source(Protocol):
    """A log to audit. Raises DamagedLog where it cannot be read on, Unreachable where that may pass."""

    name: str

    def checkpoint(self) -> bytes:
        """The newest signed note."""
        ...

    def bundles(self, start: int, stop: int) -> Iterator[Bundle]:
        """Entries start..stop-1 in order, cut where tiles end."""
        ...

    def tile(self, tile: Tile) -> bytes | None:
        """The hashes kept for a tile, None when this source keeps none of this kind."""
        ...

    def finish(self, size: int) -> None:
        """Called behind the last entry. Raises DamagedLog when there is something that belongs to no entry."""
        ...


def cuts(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """start..stop cut at the ends of tiles."""
    while start < stop:
        end = min(stop, start - start % TILE_WIDTH + TILE_WIDTH)
        yield start, end
        start = end


def fault(position: int | str, message: str) -> DamagedLog:
    """What is wrong with a log, and where: the index of an event, the size of a checkpoint, or a place in a file."""
    return DamagedLog(message, metadata={"position": str(position)})
