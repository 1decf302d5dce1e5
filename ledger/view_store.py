"""What a view keeps: canonical documents by key, and the position it has folded so far.

    views = ViewStore("sqlite:///log.db")
    with views.open("registry", write=True) as rows:
        rows.put(key, document)
        rows.advance(position, last_id)

Reads come from one snapshot; changes are gathered in memory and written at the end in one short transaction, so
that folding a batch keeps nobody waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from ledger import view_tables
from ledger.database import meaning, reader_engine, writer_engine
from ledger.driver import Driver, Statement
from ledger.errors import Damaged, DamagedLog
from ledger.tables import begins_with, lock

MAX_SCAN = 1_000

_PLACE = Statement("SELECT next_position, last_id FROM view_positions WHERE view = ?")
_ONE = Statement("SELECT document FROM view_rows WHERE view = ? AND key = ?")
_MANY = Statement("SELECT key, document FROM view_rows WHERE view = ? AND key IN (SELECT value FROM {given})")
_CLEAR = Statement("DELETE FROM view_rows WHERE view = ?")
_PUT = Statement(
    "INSERT INTO view_rows (view, key, document) VALUES (?, ?, ?) "
    "ON CONFLICT (view, key) DO UPDATE SET document = excluded.document"
)
_MOVE = Statement(
    "INSERT INTO view_positions (view, next_position, last_id) VALUES (?, ?, ?) "
    "ON CONFLICT (view) DO UPDATE SET next_position = excluded.next_position, last_id = excluded.last_id"
)


class ViewMoved(Exception):
    """Another process folded the same events first."""


class Place(NamedTuple):
    """How many events are folded, and the id of the last of them; empty for none."""

    next_position: int
    last_id: str


NOWHERE = Place(0, "")


class ViewStore:
    """The views of the log in a database."""

    def __init__(self, url: str) -> None:
        url = view_tables.views_url(url)
        self._reader = reader_engine(url)
        self._writer = writer_engine(url, synchronous="NORMAL")
        self._there = self._writer.dialect.name != "sqlite"  # ledger/tables.py makes PostgreSQL's tables

    @contextmanager
    def open(self, name: str, *, write: bool = False) -> Iterator[ViewRows]:
        """A view's rows in one snapshot; with `write` the changes made to them are written at the end.

        Not flushed to disk: a view can always be rebuilt. Raises ViewMoved, with nothing written, when another
        process has folded the same events meanwhile; Damaged when the file of the views is.
        """
        with self._errors():
            self._make()
            with self._reader.begin() as connection:
                rows = ViewRows(connection, name)
                yield rows
            if write:
                with self._writer.begin() as connection:
                    lock(connection, f"view {name}")
                    rows.write(connection)

    def close(self) -> None:
        for engine in (self._reader, self._writer):
            engine.dispose()

    def _make(self) -> None:
        """The tables of a file that does not have them yet."""
        if not self._there:
            with self._writer.begin() as connection:
                view_tables.metadata.create_all(connection, checkfirst=True)
            self._there = True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What this database's driver reports, as an error of ours."""
        try:
            yield
        except DBAPIError as error:
            told = meaning(error)
            if self._writer.dialect.name == "sqlite" and isinstance(told, DamagedLog):
                told = Damaged(
                    "the file of the ledger's views, beside its database, is damaged or cannot be read: stop the "
                    "ledger, delete the file, and it is made again from the events"
                )
            raise told from error


class ViewRows:
    """A view's rows in one snapshot, with this transaction's own changes already in sight."""

    def __init__(self, connection: Connection, view: str) -> None:
        self._connection = connection
        self._driver = Driver(connection)
        self._view = view
        self._start: Place | None = None
        self._next: Place | None = None
        self._changed: dict[str, bytes] = {}
        self._seen: dict[str, bytes | None] = {}
        self._cleared = False

    @property
    def place(self) -> Place:
        """How far the view is."""
        if self._next is not None:
            return self._next
        self._start = _place(self._driver, self._view)
        return self._start

    @property
    def next_position(self) -> int:
        """How many events are folded."""
        return self.place.next_position

    def advance(self, next_position: int, last_id: str) -> None:
        """The changes of this transaction are those of all events before `next_position`; the last one has this id."""
        self._move(Place(next_position, last_id))

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
        column = view_tables.view_rows.c
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
        self._move(NOWHERE)
        self._changed, self._seen, self._cleared = {}, {}, True

    def write(self, connection: Connection) -> None:
        """Write the changes in the caller's transaction. Raises ViewMoved."""
        if self._next is None:
            return
        driver = Driver(connection)
        if _place(driver, self._view) != self._start:
            raise ViewMoved(f"view {self._view!r} is not at {self._start} any more")
        if self._cleared:
            driver.write(_CLEAR, [(self._view,)])
        driver.write(_PUT, [(self._view, key, document) for key, document in sorted(self._changed.items())])
        driver.write(_MOVE, [(self._view, *self._next)])

    def _move(self, place: Place) -> None:
        if self._start is None:
            self._start = self.place
        self._next = place


def _place(driver: Driver, view: str) -> Place:
    found = driver.rows(_PLACE, view)
    return Place(*found[0]) if found else NOWHERE
