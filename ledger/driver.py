"""Statements that run for every batch of events, executed by the database's driver itself.

    STORED = Statement("SELECT position FROM events WHERE id IN (SELECT value FROM {given})")
    driver = Driver(connection)            # inside a transaction of SQLAlchemy's
    driver.rows(STORED, ["a", "b"])
    driver.write(INSERT, [(1, "a"), (2, "b")])

SQLAlchemy's own way to a statement takes five to ten times as long as SQLite takes for it, which is most of what a
lone append costs. Connections, transactions and the meaning of errors stay SQLAlchemy's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, StatementError

# What one message to PostgreSQL has at most, but for a larger row: less than a socket takes at once. A writer that is
# stopped between two messages is idle and loses its lock; one that is stopped within a message, or within psycopg's
# executemany, which waits for no answer, holds it for ever.
MESSAGE = 64 << 10  # bytes
MESSAGE_ROWS = 1_000
_ROW = re.compile(r"(?<=VALUES )\(.*?\)")


class Statement:
    """SQL with `?` for a value and `{given}` for a list of texts: a table `given` with one column `value`.

    Ask `IN (SELECT value FROM {given})` of it rather than a join, which SQLite may begin at the wrong end.
    """

    def __init__(self, text: str) -> None:
        self.sqlite = text.format(given="json_each(?) AS given")
        self.postgresql = text.format(given="unnest(?::text[]) AS given (value)").replace("?", "%s")

    def of_rows(self, rows: int) -> str:
        """An INSERT of so many rows at once, for PostgreSQL."""
        return _ROW.sub(lambda row: ", ".join([row[0]] * rows), self.postgresql)


class Driver:
    """Executes statements in the transaction that a connection has open. Raises DBAPIError, as SQLAlchemy does."""

    def __init__(self, connection: Connection) -> None:
        self._dialect = connection.dialect
        self._is_sqlite = connection.dialect.name == "sqlite"
        self._cursor: Any = connection.connection.cursor()

    def rows(self, statement: Statement, *values: Any) -> list[Any]:
        """All rows of a query, as tuples."""
        if self._is_sqlite:
            values = tuple(json.dumps(value) if isinstance(value, list) else value for value in values)
        text = self._text(statement)
        try:
            self._cursor.execute(text, values)
            found: list[Any] = self._cursor.fetchall()
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(text, error) from error
        return found

    def write(self, statement: Statement, rows: Sequence[tuple[Any, ...]]) -> None:
        """Execute once for each row, if there is any; for several rows it must be an INSERT."""
        if not rows:
            return
        text = self._text(statement)
        try:
            if len(rows) == 1:
                self._cursor.execute(text, rows[0])
            elif self._is_sqlite:
                self._cursor.executemany(text, rows)
            else:
                for some in _messages(rows):
                    self._cursor.execute(statement.of_rows(len(some)), [value for row in some for value in row])
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(text, error) from error

    def _text(self, statement: Statement) -> str:
        return statement.sqlite if self._is_sqlite else statement.postgresql

    def _told(self, text: str, error: Exception) -> StatementError:
        dialect = self._dialect
        return DBAPIError.instance(text, None, error, dialect.loaded_dbapi.Error, dialect=dialect)


def _messages(rows: Sequence[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """The rows, as many at a time as fit into one message."""
    some: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        bytes_of_row = sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
        if some and (size + bytes_of_row > MESSAGE or len(some) == MESSAGE_ROWS):
            yield some
            some, size = [], 0
        some.append(row)
        size += bytes_of_row
    yield some


class Reader:
    """Queries that each stand alone, from any thread. Raises DBAPIError.

    SQLite's are asked over one connection, which is kept: taking one of the engine's costs three times what a small
    query does. For PostgreSQL's the engine looks whether the server is still there.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keep = engine.dialect.name == "sqlite"
        self._lock = Lock()
        self._kept: Connection | None = None

    def rows(self, statement: Statement, *values: Any) -> list[Any]:
        """All rows of a query, as tuples."""
        if not self._keep:
            with self._engine.connect() as connection:
                return Driver(connection).rows(statement, *values)
        with self._lock:
            self._kept = self._kept or self._engine.connect()
            return Driver(self._kept).rows(statement, *values)

    def close(self) -> None:
        with self._lock:
            if self._kept is not None:
                self._kept.close()
            self._kept = None
