"""The inside of one write transaction: what the rules ask, and the rows, tiles and checkpoint that are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from ledger import tables
from ledger.checkpoint import sign_checkpoint
from ledger.edge import Edge
from ledger.envelope import MAX_ENTRY
from ledger.errors import EventTooLarge
from ledger.events import KINDS
from ledger.merkle import leaf_hash
from ledger.note import LogSigner
from ledger.rules import Introduced, Known
from ledger.statement import Event


@dataclass(frozen=True)
class Row:
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
        self._connection = connection
        self._start = head.size
        self.edge = head.edge.copy()

    @property
    def size(self) -> int:
        return self.edge.size

    def known(self, *, digests: Iterable[str], ids: Iterable[str], streams: Iterable[str]) -> Known:
        """What the rules need to know about these. Keys are the caller's to keep."""
        known = Known(size=self.size)
        introduced, revoked, stored = tables.introductions.c, tables.revocations.c, tables.events.c
        execute = self._connection.execute
        for some in tables.pieces(digests):
            gone: dict[str, int] = {
                r.sha256: r.position
                for r in execute(select(revoked.sha256, revoked.position).where(revoked.sha256.in_(some)))
            }
            query = select(introduced.sha256, introduced.name, introduced.position)
            for row in execute(query.where(introduced.sha256.in_(some))):
                earlier = known.artifacts.get(row.sha256, Introduced(frozenset(), row.position))
                known.artifacts[row.sha256] = Introduced(
                    earlier.names | {row.name}, min(earlier.index, row.position), gone.get(row.sha256)
                )
        for some in tables.pieces(ids):
            query = select(stored.id, stored.position, stored.payload_sha256).where(stored.id.in_(some))
            known.ids.update({row.id: (row.position, row.payload_sha256) for row in execute(query)})
        for some in tables.pieces(streams):
            newest = select(stored.stream, func.max(stored.version)).where(stored.stream.in_(some))
            known.streams.update({stream: version for stream, version in execute(newest.group_by(stored.stream))})
        return known

    def append(self, rows: Sequence[Row]) -> None:
        """Insert events at the next positions, with the tiles they complete."""
        if not rows:
            return
        position, completed, values = self.size, [], []
        for offset, row in enumerate(rows):
            if len(row.entry) > MAX_ENTRY:
                raise EventTooLarge(f"an entry of {len(row.entry)} bytes; at most {MAX_ENTRY} fit into a bundle")
            leaf = leaf_hash(row.entry)
            completed += self.edge.append(leaf)
            values.append(
                {
                    "position": position + offset,
                    "id": row.id,
                    "stream": row.stream,
                    "version": row.version,
                    "kind": row.kind,
                    "payload_sha256": row.payload_sha256,
                    "leaf_hash": leaf,
                    "entry": row.entry,
                }
            )
        execute = self._connection.execute
        execute(tables.events.insert(), values)
        if completed:
            execute(
                tables.tiles.insert(),
                [{"level": t.level, "tile": t.index, "hashes": hashes} for t, hashes in completed],
            )
        introduced: dict[tuple[str, str], int] = {}
        for offset, row in enumerate(rows):
            for pair in row.introduced:
                introduced.setdefault(pair, position + offset)
            for sha256 in dict.fromkeys(row.revoked):  # one digest may be a subject under two names
                execute(tables.revocations.insert().values(sha256=sha256, position=position + offset))
        if introduced:
            self._introduce(introduced)

    def seal(self, signer: LogSigner) -> Head:
        """Sign and insert the checkpoint of the tree as it is now."""
        note = sign_checkpoint(signer, self.size, self.edge.root())
        self.keep(self.size, self._start, note)
        return Head(self.size, self.edge, note)

    def keep(self, size: int, previous: int, note: bytes) -> None:
        """Insert a signed checkpoint that follows the one of size `previous`."""
        self._connection.execute(tables.checkpoints.insert().values(size=size, previous=previous, note=note))

    def _introduce(self, introduced: dict[tuple[str, str], int]) -> None:
        column = tables.introductions.c
        present: set[tuple[str, str]] = set()
        for some in tables.pieces({sha256 for sha256, _ in introduced}):
            query = select(column.sha256, column.name).where(column.sha256.in_(some))
            present |= {(row.sha256, row.name) for row in self._connection.execute(query)}
        fresh = [
            {"sha256": sha256, "name": name, "position": position}
            for (sha256, name), position in introduced.items()
            if (sha256, name) not in present
        ]
        if fresh:
            self._connection.execute(tables.introductions.insert(), fresh)
