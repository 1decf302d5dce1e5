"""A whole log in a database, table by table: read in one snapshot, or written where there is none yet.

    with DatabaseLog(url) as source: audit(source, verifiers)      # believes none of the tables
    write_log(url, bundles)                                        # all of it or nothing

Reading needs no key and changes nothing, so it may run beside a ledger that goes on appending.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Select, Table, inspect, select, type_coerce
from sqlalchemy.types import NullType

from ledger import envelope as dsse
from ledger import statement, tables
from ledger.audit_source import Bundle, Columns, KeptCheckpoint, cuts, fault
from ledger.database import audit_engine, driver_errors, reader_engine, writer_engine
from ledger.edge import Edge
from ledger.errors import DamagedLog, NotFound, Refused
from ledger.merkle import TILE_HEIGHT, TILE_WIDTH, StoredTile, Tile
from ledger.writing import Head, Row, Writing, row_of

FETCHED = 1_000  # rows in memory for each table


class DatabaseLog:
    """Source of an audit: what a ledger's database holds at one moment."""

    def __init__(self, url: str) -> None:
        self.name = "the database"
        if not _exists(url):
            raise NotFound(f"{url.removeprefix('sqlite:///')}: there is no such file")
        self._engine = audit_engine(url)
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
            if rows := events.up_to(end - 1):
                positions, *columns, entries = zip(*rows, strict=True)
                for position, kept in enumerate(positions, first):
                    if kept != position:
                        raise fault(position, f"event {position} is missing; the next one kept is {kept}")
                yield Bundle(
                    start=first,
                    entries=list(entries),
                    columns=Columns(*columns),
                    checkpoints=tuple(KeptCheckpoint(*row) for row in checkpoints.up_to(end)),
                    introductions=frozenset(map(tuple, introductions.up_to(end - 1))),
                    revocations=frozenset(map(tuple, revocations.up_to(end - 1))),
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
        if not (kept and isinstance(kept.hashes, bytes)):
            return b""
        return StoredTile(kept.hashes, kept.nodes if isinstance(kept.nodes, bytes) else b"")

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
        self._types = tuple(c.type.python_type for c in table.c)
        self._key = list(table.c).index(order)
        self._last = start
        self._block: list[Any] = []
        self._positions: list[int] = []
        self._at = 0
        self._wrong: DamagedLog | None = None  # what stands behind the block
        with driver_errors():
            self._rows = connection.execution_options(yield_per=FETCHED).execute(query)

    @property
    def next(self) -> int | None:
        """The position of the next row. Raises DamagedLog when it holds what cannot be there."""
        if self._at == len(self._block):
            self._fetch()
        return self._positions[self._at] if self._block else None

    def up_to(self, last: int) -> list[Any]:
        found: list[Any] = []
        # What stands behind `last` need not be looked at: it may be damaged, and its turn comes later.
        while not (found and self._last == last) and (position := self.next) is not None and position <= last:
            end = bisect_right(self._positions, last, self._at)
            found += self._block[self._at : end]
            self._at, self._last = end, self._positions[end - 1]
        return found

    def _fetch(self) -> None:
        if self._wrong:
            raise self._wrong
        with driver_errors():
            self._block, self._at = list(self._rows.fetchmany(FETCHED)), 0
        types = [set(map(type, column)) for column in zip(*self._block, strict=True)]
        if types and types != [{each} for each in self._types]:
            self._cut_off(next(i for i, row in enumerate(self._block) if tuple(map(type, row)) != self._types))
        self._positions = [row[self._key] for row in self._block]

    def _cut_off(self, good: int) -> None:
        """Keep the good rows of the block; what comes behind them is a fault, which may have to wait for its turn."""
        before = self._block[good - 1][self._key] if good else self._last
        position = self._block[good][self._key]
        where = position if isinstance(position, int) else before
        self._wrong = fault(
            where, f"the row of {self.name} at {position!r} holds values of other types than its columns"
        )
        del self._block[good:]
        if not self._block:
            raise self._wrong


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
