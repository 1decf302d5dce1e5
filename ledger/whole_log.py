"""A whole log in a database, table by table: read in one snapshot, or written where there is none yet.

    with DatabaseLog(url) as source: audit(source, verifiers)      # believes none of the tables
    write_log(url, bundles)                                        # all of it or nothing

Reading needs no key and changes nothing, so it may run beside a ledger that goes on appending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Select, Table, inspect, select, type_coerce
from sqlalchemy.types import NullType

from ledger import envelope as dsse
from ledger import statement, tables
from ledger.audit_source import Bundle, Columns, KeptCheckpoint, cuts, fault
from ledger.database import driver_errors, reader_engine, writer_engine
from ledger.edge import Edge
from ledger.errors import NotFound, Refused
from ledger.merkle import TILE_HEIGHT, TILE_WIDTH, Tile
from ledger.writing import Head, Row, Writing, row_of

FETCHED = 1_000  # rows in memory for each table


class DatabaseLog:
    """Source of an audit: what a ledger's database holds at one moment."""

    def __init__(self, url: str) -> None:
        self.name = "the database"
        if not _exists(url):
            raise NotFound(f"{url.removeprefix('sqlite:///')}: there is no such file")
        self._engine = reader_engine(url)
        with driver_errors():
            self._connection = self._engine.connect()
            if not set(tables.IMMUTABLE) <= set(inspect(self._connection).get_table_names()):
                self.close()
                raise NotFound("the database holds no ledger")
            newest = _raw(tables.checkpoints).order_by(tables.checkpoints.c.size.desc()).limit(1)
            self._newest = self._connection.execute(newest).first()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    def checkpoint(self) -> bytes:
        if self._newest is None:
            raise NotFound(f"{self.name} holds an empty log: there is no checkpoint")
        note = self._newest.note
        return note if isinstance(note, bytes) else b""

    def bundles(self, start: int, stop: int) -> Iterator[Bundle]:
        """Events start..stop-1, and every row of every table that belongs behind `start`; none may be left over."""
        events, checkpoints, introductions, revocations = (
            _Rows(self._connection, table, column, start)
            for table, column in (
                (tables.events, "position"),
                (tables.checkpoints, "size"),
                (tables.introductions, "position"),
                (tables.revocations, "position"),
            )
        )
        for first, end in cuts(start, stop):
            rows = events.up_to(end - 1)
            for position, kept in enumerate(rows, first):
                if kept.position != position:
                    raise fault(position, f"event {position} is missing; the next one kept is {kept.position}")
            if rows:
                yield Bundle(
                    start=first,
                    entries=[r.entry for r in rows],
                    columns=[Columns(r.id, r.stream, r.version, r.kind, r.payload_sha256, r.leaf_hash) for r in rows],
                    checkpoints=tuple(KeptCheckpoint(r.size, r.previous, r.note) for r in checkpoints.up_to(end)),
                    introductions=frozenset((r.sha256, r.name, r.position) for r in introductions.up_to(end - 1)),
                    revocations=frozenset((r.sha256, r.position) for r in revocations.up_to(end - 1)),
                )
            if len(rows) != end - first:
                return
        for table in (events, checkpoints, introductions, revocations):
            if (left := table.next) is not None:
                raise fault(left, f"a row of {table.name} stands at {left}, and the log ends at {stop}")

    def tile(self, tile: Tile) -> bytes | None:
        if tile.width < TILE_WIDTH:
            return None
        column = tables.tiles.c
        query = _raw(tables.tiles).where(column.level == tile.level, column.tile == tile.index)
        with driver_errors():
            kept = self._connection.execute(query).first()
        return kept.hashes if kept and isinstance(kept.hashes, bytes) else b""

    def finish(self, size: int) -> None:
        """The tiles that entries complete were all asked for: what else is kept is no tile of this log."""
        query = _raw(tables.tiles, "level", "tile")
        with driver_errors():
            for level, index in self._connection.execute(query):
                if not (isinstance(level, int) and isinstance(index, int) and 0 <= level < 8):
                    raise fault(0, f"tile {index!r} of level {level!r} is kept")
                if not 0 <= index < size >> (TILE_HEIGHT * (level + 1)):
                    position = index * TILE_WIDTH << (TILE_HEIGHT * level)
                    raise fault(position, f"tile {index} of level {level} is kept, which {size} events do not complete")


class _Rows:
    """One table's rows in the order of a column, a few at a time in memory."""

    def __init__(self, connection: Connection, table: Table, column: str, start: int) -> None:
        order = table.c[column]
        query = _raw(table).order_by(order)
        if start:  # from the beginning everything is read, also what has a position that cannot be
            query = query.where(order > start if column == "size" else order >= start)
        self.name = table.name
        self._column = column
        self._types = tuple(c.type.python_type for c in table.c)
        self._last = start
        with driver_errors():
            self._rows = iter(connection.execution_options(yield_per=FETCHED).execute(query))
        self._advance()

    @property
    def next(self) -> int | None:
        """The position of the next row."""
        return None if self._row is None else int(getattr(self._row, self._column))

    def up_to(self, last: int) -> list[Any]:
        found = []
        while (position := self.next) is not None and position <= last:
            found.append(self._row)
            self._last = position
            self._advance()
        return found

    def _advance(self) -> None:
        with driver_errors():
            self._row = next(self._rows, None)
        if self._row is not None and tuple(map(type, self._row)) != self._types:
            position = getattr(self._row, self._column)
            where = position if isinstance(position, int) else self._last
            raise fault(where, f"the row of {self.name} at {position!r} holds values of other types than its columns")


def _raw(table: Table, *names: str) -> Select[Any]:
    """A table's rows as the driver reads them: SQLite keeps any value in any column, so types are compared here."""
    columns = (column for column in table.c if not names or column.name in names)
    return select(*(type_coerce(column, NullType()).label(column.name) for column in columns))


def write_log(url: str, bundles: Iterable[Bundle], still_good: Callable[[], None]) -> None:
    """Write a log that was audited into an empty database, in one transaction. Raises Refused when it is not empty.

    `still_good` is asked before the commit whether what was read is what was audited.
    """
    engine = writer_engine(url)
    try:
        with driver_errors(), engine.begin() as connection:
            tables.migrate(connection)
            _refuse_a_log(connection)
            writing = Writing(connection, Head(0, Edge(), b""))
            for bundle in bundles:
                writing.append([_row(entry) for entry in bundle.entries])
                for kept in bundle.checkpoints:
                    writing.keep(kept.size, kept.previous, kept.note)
            still_good()
    finally:
        engine.dispose()


def require_empty(url: str) -> None:
    """Raises Refused when the database holds a log, or a part of one. Makes nothing."""
    if not _exists(url):
        return
    engine = reader_engine(url)
    try:
        with driver_errors(), engine.begin() as connection:
            _refuse_a_log(connection)
    finally:
        engine.dispose()


def _refuse_a_log(connection: Connection) -> None:
    there = set(inspect(connection).get_table_names())
    for name in tables.IMMUTABLE:
        if name in there and connection.execute(select(tables.metadata.tables[name]).limit(1)).first():
            raise Refused(f"the database already holds {name}, and a restore changes no log; name an empty one")


def _exists(url: str) -> bool:
    """SQLite makes a file that is not there; a reader should not."""
    _, is_sqlite, path = url.partition("sqlite:///")
    return not is_sqlite or Path(path.partition("?")[0]).is_file()


def _row(entry: bytes) -> Row:
    envelope = dsse.parse(entry)
    return row_of(statement.decode(envelope.payload), dsse.payload_digest(envelope), entry)
