"""What a view keeps in the database: canonical documents by key, and the position it has folded so far.

Reads come from one snapshot; changes are gathered in memory and written at the end in one short transaction, so
that folding a batch does not keep the log's writer waiting.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from ledger import tables
from ledger.tables import begins_with

MAX_SCAN = 1_000


class ViewMoved(Exception):
    """Another process folded the same events first."""


class ViewRows:
    """A view's rows in one snapshot, with this transaction's own changes already in sight."""

    def __init__(self, connection: Connection, view: str) -> None:
        self._connection = connection
        self._view = view
        self._start: int | None = None
        self._next: int | None = None
        self._changed: dict[str, bytes] = {}
        self._seen: dict[str, bytes | None] = {}
        self._cleared = False

    @property
    def next_position(self) -> int:
        """How many events are folded."""
        if self._next is not None:
            return self._next
        column = tables.view_positions.c
        query = select(column.next_position).where(column.view == self._view)
        self._start = self._connection.execute(query).scalar() or 0
        return self._start

    def advance(self, next_position: int) -> None:
        """The changes of this transaction are those of all events before `next_position`."""
        if self._start is None:
            self._start = self.next_position
        self._next = next_position

    def get(self, key: str) -> bytes | None:
        if key in self._changed:
            return self._changed[key]
        if self._cleared or key in self._seen:
            return self._seen.get(key)
        column = tables.view_rows.c
        query = select(column.document).where(column.view == self._view, column.key == key)
        document = self._connection.execute(query).scalar()
        return None if document is None else bytes(document)

    def fetch(self, keys: Iterable[str]) -> None:
        """Read many rows at once, present or not; `get` answers them from memory after that."""
        column = tables.view_rows.c
        for some in tables.pieces(set(keys) - self._seen.keys()):
            query = select(column.key, column.document).where(column.view == self._view, column.key.in_(some))
            self._seen |= dict.fromkeys(some) | {
                row.key: bytes(row.document) for row in self._connection.execute(query)
            }

    def put(self, key: str, document: bytes) -> None:
        self._changed[key] = document

    def scan(
        self, prefix: str, *, after: str = "", limit: int = MAX_SCAN, descending: bool = False
    ) -> list[tuple[str, bytes]]:
        """Rows whose key begins with `prefix`, by key, beyond `after` in that order."""
        column = tables.view_rows.c
        key = column.key
        query = select(key, column.document).where(column.view == self._view, begins_with(key, prefix))
        if after:
            query = query.where(key < after if descending else key > after)
        rows: dict[str, bytes] = {}
        if not self._cleared:
            stored = self._connection.execute(query.order_by(key.desc() if descending else key).limit(limit))
            rows = {row.key: bytes(row.document) for row in stored}
        if self._changed:
            rows |= {
                key: document
                for key, document in self._changed.items()
                if key.startswith(prefix) and (not after or (key < after if descending else key > after))
            }
        return sorted(rows.items(), reverse=descending)[:limit]

    def clear(self) -> None:
        """Forget the view; it is rebuilt from position 0."""
        self._start, self._next, self._cleared = self.next_position, 0, True
        self._changed, self._seen = {}, {}

    def write(self, connection: Connection) -> None:
        """Write the changes in the caller's transaction. Raises ViewMoved."""
        if self._next is None:
            return
        rows, positions = tables.view_rows, tables.view_positions
        stored = select(positions.c.next_position).where(positions.c.view == self._view).with_for_update()
        if (connection.execute(stored).scalar() or 0) != self._start:
            raise ViewMoved(f"view {self._view!r} is not at {self._start} any more")
        if self._cleared:
            connection.execute(rows.delete().where(rows.c.view == self._view))
        if self._changed:
            upsert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(rows)
            connection.execute(
                upsert.on_conflict_do_update(
                    index_elements=[rows.c.view, rows.c.key], set_={"document": upsert.excluded.document}
                ),
                [
                    {"view": self._view, "key": key, "document": document}
                    for key, document in sorted(self._changed.items())
                ],
            )
        moved = positions.update().where(positions.c.view == self._view).values(next_position=self._next)
        if not connection.execute(moved).rowcount:
            connection.execute(insert(positions).values(view=self._view, next_position=self._next))
