"""What a view keeps in the database: canonical documents by key, and the position it has folded so far.

Reads come from one snapshot; changes are gathered in memory and written at the end in one short transaction, so
that folding a batch does not keep the log's writer waiting.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from ledger import tables
from ledger.driver import Driver, Statement
from ledger.tables import begins_with

MAX_SCAN = 1_000

_POSITION = Statement("SELECT next_position FROM view_positions WHERE view = ?")
_ONE = Statement("SELECT document FROM view_rows WHERE view = ? AND key = ?")
_MANY = Statement("SELECT key, document FROM view_rows WHERE view = ? AND key IN (SELECT value FROM {given})")
_CLEAR = Statement("DELETE FROM view_rows WHERE view = ?")
_PUT = Statement(
    "INSERT INTO view_rows (view, key, document) VALUES (?, ?, ?) "
    "ON CONFLICT (view, key) DO UPDATE SET document = excluded.document"
)
_MOVE = Statement(
    "INSERT INTO view_positions (view, next_position) VALUES (?, ?) "
    "ON CONFLICT (view) DO UPDATE SET next_position = excluded.next_position"
)


class ViewMoved(Exception):
    """Another process folded the same events first."""


class ViewRows:
    """A view's rows in one snapshot, with this transaction's own changes already in sight."""

    def __init__(self, connection: Connection, view: str) -> None:
        self._connection = connection
        self._driver = Driver(connection)
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
        self._start = _position(self._driver, self._view)
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
        found = self._driver.rows(_ONE, self._view, key)
        return found[0][0] if found else None

    def fetch(self, keys: Iterable[str]) -> None:
        """Read many rows at once, present or not; `get` answers them from memory after that."""
        missing = list({*keys} - self._seen.keys())
        self._seen |= dict.fromkeys(missing)
        self._seen.update(self._driver.rows(_MANY, self._view, missing))

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
        driver = Driver(connection)
        if _position(driver, self._view) != self._start:
            raise ViewMoved(f"view {self._view!r} is not at {self._start} any more")
        if self._cleared:
            driver.write(_CLEAR, [(self._view,)])
        driver.write(_PUT, [(self._view, key, document) for key, document in sorted(self._changed.items())])
        driver.write(_MOVE, [(self._view, self._next)])


def _position(driver: Driver, view: str) -> int:
    found = driver.rows(_POSITION, view)
    return found[0][0] if found else 0
