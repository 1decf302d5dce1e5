"""What a view keeps in the database: canonical documents by key, and the position it has folded so far."""

from __future__ import annotations

from sqlalchemy import Connection, select

from ledger import tables
from ledger.tables import begins_with

MAX_SCAN = 1_000


class ViewRows:
    """A view's rows inside one transaction: canonical documents by key, and the position folded so far."""

    def __init__(self, connection: Connection, view: str) -> None:
        self._connection = connection
        self._view = view

    @property
    def next_position(self) -> int:
        column = tables.view_positions.c
        query = select(column.next_position).where(column.view == self._view)
        return self._connection.execute(query).scalar() or 0

    def advance(self, next_position: int) -> None:
        column = tables.view_positions.c
        change = tables.view_positions.update().where(column.view == self._view)
        if not self._connection.execute(change.values(next_position=next_position)).rowcount:
            insert = tables.view_positions.insert()
            self._connection.execute(insert.values(view=self._view, next_position=next_position))

    def get(self, key: str) -> bytes | None:
        column = tables.view_rows.c
        query = select(column.document).where(column.view == self._view, column.key == key)
        document = self._connection.execute(query).scalar()
        return None if document is None else bytes(document)

    def put(self, key: str, document: bytes) -> None:
        column = tables.view_rows.c
        change = tables.view_rows.update().where(column.view == self._view, column.key == key)
        if not self._connection.execute(change.values(document=document)).rowcount:
            insert = tables.view_rows.insert()
            self._connection.execute(insert.values(view=self._view, key=key, document=document))

    def scan(
        self, prefix: str, *, after: str = "", limit: int = MAX_SCAN, descending: bool = False
    ) -> list[tuple[str, bytes]]:
        """Rows whose key begins with `prefix`, by key, beyond `after` in that order."""
        column = tables.view_rows.c
        key = column.key
        query = select(key, column.document).where(column.view == self._view, begins_with(key, prefix))
        if after:
            query = query.where(key < after if descending else key > after)
        rows = self._connection.execute(query.order_by(key.desc() if descending else key).limit(limit))
        return [(row.key, bytes(row.document)) for row in rows]

    def clear(self) -> None:
        """Forget the view; it is rebuilt from position 0."""
        self._connection.execute(tables.view_rows.delete().where(tables.view_rows.c.view == self._view))
        self._connection.execute(tables.view_positions.delete().where(tables.view_positions.c.view == self._view))
