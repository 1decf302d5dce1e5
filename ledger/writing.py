"""The inside of one write transaction: what the rules ask, and the rows, tiles and checkpoint that are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection

from ledger.checkpoint import sign_checkpoint
from ledger.driver import Driver, Statement
from ledger.edge import Edge
from ledger.envelope import MAX_ENTRY
from ledger.errors import EventTooLarge
from ledger.events import KINDS
from ledger.merkle import Tile, leaf_hash, tile_nodes
from ledger.note import LogSigner
from ledger.rules import Introduced, Known
from ledger.statement import Event

_INTRODUCED = Statement(
    "SELECT introductions.sha256, introductions.name, introductions.position, revocations.position "
    "FROM introductions LEFT JOIN revocations ON revocations.sha256 = introductions.sha256 "
    "WHERE introductions.sha256 IN (SELECT value FROM {given})"
)
_STORED = Statement("SELECT id, position, payload_sha256 FROM events WHERE id IN (SELECT value FROM {given})")
# The newest version of each stream by itself: grouping them would walk every version of a long stream.
_NEWEST = Statement("SELECT given.value, (SELECT max(version) FROM events WHERE stream = given.value) FROM {given}")
_INSERT_EVENT = Statement(
    "INSERT INTO events (position, id, stream, version, kind, payload_sha256, leaf_hash, entry) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_TILE = Statement("INSERT INTO tiles (level, tile, hashes, nodes) VALUES (?, ?, ?, ?)")
_INSERT_CHECKPOINT = Statement("INSERT INTO checkpoints (size, previous, note) VALUES (?, ?, ?)")
# What an earlier event introduced under the same name stays as it is.
_INTRODUCE = Statement("INSERT INTO introductions (sha256, name, position) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
_REVOKE = Statement("INSERT INTO revocations (sha256, position) VALUES (?, ?)")


class Row(NamedTuple):
    """One event as a row. introduced: (sha256, name) pairs; revoked: digests."""

    id: str
    stream: str
    version: int
    kind: str
    payload_sha256: str
    entry: bytes
    introduced: tuple[tuple[str, str], ...] = ()
    revoked: tuple[str, ...] = ()


def row_of(event: Event, payload_sha256: str, entry: bytes) -> Row:
    """What the database keeps of an event."""
    kind = KINDS[event.kind]
    return Row(
        id=event.id,
        stream=event.stream,
        version=event.version,
        kind=event.kind,
        payload_sha256=payload_sha256,
        entry=entry,
        introduced=tuple((s.sha256, s.name) for s in event.subjects) if kind.introduces else (),
        revoked=tuple(s.sha256 for s in event.subjects) if kind.revokes else (),
    )


@dataclass(frozen=True)
class Head:
    """The state readers see: tree size, right edge, signed checkpoint (empty for an empty log)."""

    size: int
    edge: Edge
    checkpoint: bytes


class Writing:
    """The inside of one write transaction."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self._driver = Driver(connection)
        self._start = head.size
        self.edge = head.edge.copy()

    @property
    def size(self) -> int:
        return self.edge.size

    def known(self, *, digests: Iterable[str], ids: Iterable[str], streams: Iterable[str]) -> Known:
        """What the rules need to know about these. Keys are the caller's to keep."""
        known = Known(size=self.size)
        rows = self._driver.rows
        for sha256, name, position, revoked_at in rows(_INTRODUCED, list({*digests})):
            earlier = known.artifacts.get(sha256)
            names = earlier.names | {name} if earlier else frozenset((name,))
            first = min(earlier.index, position) if earlier else position
            known.artifacts[sha256] = Introduced(names, first, revoked_at)
        known.ids = {id: (position, digest) for id, position, digest in rows(_STORED, list({*ids}))}
        known.streams = {stream: version for stream, version in rows(_NEWEST, list({*streams})) if version}
        return known

    def append(self, rows: Sequence[Row]) -> None:
        """Insert events at the next positions, with the tiles they complete."""
        if not rows:
            return
        completed: list[tuple[Tile, bytes]] = []
        events, revoked = [], []
        introduced: dict[tuple[str, str], int] = {}
        for position, row in enumerate(rows, self.size):
            if len(row.entry) > MAX_ENTRY:
                raise EventTooLarge(f"an entry of {len(row.entry)} bytes; at most {MAX_ENTRY} fit into a bundle")
            leaf = leaf_hash(row.entry)
            completed += self.edge.append(leaf)
            events.append((position, row.id, row.stream, row.version, row.kind, row.payload_sha256, leaf, row.entry))
            for pair in row.introduced:
                introduced.setdefault(pair, position)
            # One digest may be a subject under two names.
            revoked += [(sha256, position) for sha256 in dict.fromkeys(row.revoked)]
        write = self._driver.write
        write(_INSERT_EVENT, events)
        write(_INSERT_TILE, [(tile.level, tile.index, hashes, tile_nodes(hashes)) for tile, hashes in completed])
        write(_INTRODUCE, [(sha256, name, position) for (sha256, name), position in introduced.items()])
        write(_REVOKE, revoked)

    def seal(self, signer: LogSigner) -> Head:
        """Sign and insert the checkpoint of the tree as it is now."""
        note = sign_checkpoint(signer, self.size, self.edge.root())
        self.keep(self.size, self._start, note)
        return Head(self.size, self.edge, note)

    def keep(self, size: int, previous: int, note: bytes) -> None:
        """Insert a signed checkpoint that follows the one of size `previous`."""
        self._driver.write(_INSERT_CHECKPOINT, [(size, previous, note)])
