"""The inside of one write transaction: what the rules ask, and the rows, tiles and checkpoint that are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select, text

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

# Statements that every batch executes, built once.
_INTRODUCED = (
    select(
        tables.introductions.c.sha256,
        tables.introductions.c.name,
        tables.introductions.c.position,
        tables.revocations.c.position,
    )
    .outerjoin(tables.revocations, tables.introductions.c.sha256 == tables.revocations.c.sha256)
    .where(tables.introductions.c.sha256.in_(bindparam("sha256", expanding=True)))
)
_STORED = select(tables.events.c.id, tables.events.c.position, tables.events.c.payload_sha256).where(
    tables.events.c.id.in_(bindparam("id", expanding=True))
)
# The newest version stream by stream: GROUP BY would go through every version of each.
_NEWEST = {
    "sqlite": text("SELECT value, (SELECT max(version) FROM events WHERE stream = value) FROM json_each(:streams)"),
    "postgresql": text(
        "SELECT value, (SELECT max(version) FROM events WHERE stream = value) "
        "FROM json_array_elements_text(CAST(:streams AS json)) AS wanted(value)"
    ),
}
_INSERT_EVENT = tables.events.insert()
_INSERT_CHECKPOINT = tables.checkpoints.insert()
# Both databases spell it so; SQLAlchemy's own form is compiled anew each time.
_INTRODUCE = text(
    "INSERT INTO introductions (sha256, name, position) VALUES (:sha256, :name, :position) ON CONFLICT DO NOTHING"
)


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
        execute = self._connection.execute
        for some in tables.pieces(digests):
            for sha256, name, position, revoked_at in execute(_INTRODUCED, {"sha256": some}):
                earlier = known.artifacts.get(sha256)
                names = earlier.names | {name} if earlier else frozenset((name,))
                first = min(earlier.index, position) if earlier else position
                known.artifacts[sha256] = Introduced(names, first, revoked_at)
        for some in tables.pieces(ids):
            known.ids.update({id: (position, digest) for id, position, digest in execute(_STORED, {"id": some})})
        newest = _NEWEST[self._connection.dialect.name]
        for stream, version in execute(newest, {"streams": json.dumps(sorted(set(streams)))}):
            if version is not None:
                known.streams[stream] = version
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
        execute(_INSERT_EVENT, values)
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
            # What an earlier event introduced under the same name stays as it is.
            execute(_INTRODUCE, [{"sha256": s, "name": n, "position": at} for (s, n), at in introduced.items()])

    def seal(self, signer: LogSigner) -> Head:
        """Sign and insert the checkpoint of the tree as it is now."""
        note = sign_checkpoint(signer, self.size, self.edge.root())
        self.keep(self.size, self._start, note)
        return Head(self.size, self.edge, note)

    def keep(self, size: int, previous: int, note: bytes) -> None:
        """Insert a signed checkpoint that follows the one of size `previous`."""
        self._connection.execute(_INSERT_CHECKPOINT, {"size": size, "previous": previous, "note": note})
