"""What a witness remembers: for each log the newest checkpoint it cosigned. SQL for SQLite, one row per log.

A witness is worth what it remembers, so the database itself refuses to forget a log or to go back to a smaller tree,
and an update is flushed to disk before it can be answered.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import BigInteger, Column, Connection, LargeBinary, MetaData, String, Table, inspect, select, text

from ledger.database import driver_errors, flush_again, reader_engine, writer_engine

_metadata = MetaData()
_witnessed = Table(
    "witnessed",
    _metadata,
    Column("origin_sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("root", LargeBinary(32), nullable=False),
    Column("note", LargeBinary, nullable=False),
)
_TRIGGERS = (
    "CREATE TRIGGER IF NOT EXISTS witnessed_no_delete BEFORE DELETE ON witnessed "
    "BEGIN SELECT RAISE(ABORT, 'a witness forgets no log'); END",
    "CREATE TRIGGER IF NOT EXISTS witnessed_no_rollback BEFORE UPDATE ON witnessed "
    "WHEN NEW.size < OLD.size OR NEW.origin_sha256 <> OLD.origin_sha256 "
    "OR (NEW.size = OLD.size AND NEW.root <> OLD.root) "
    "BEGIN SELECT RAISE(ABORT, 'a witness never goes back'); END",
)


@dataclass(frozen=True)
class Witnessed:
    """The newest checkpoint of a log: what it commits to, and the note with the log's and our signatures."""

    size: int
    root: bytes
    note: bytes


def remembers(path: Path) -> bool:
    """Whether the file holds a witness's memory, be it of nothing. An empty one is a database too."""
    if not path.exists():
        return False
    engine = reader_engine(f"sqlite:///{path}")
    try:
        with driver_errors(), engine.connect() as connection:
            return inspect(connection).has_table(_witnessed.name)
    finally:
        engine.dispose()


class State:
    """One file; several threads or processes may share it."""

    def __init__(self, path: Path) -> None:
        self._writer = writer_engine(f"sqlite:///{path}")
        self._reader = reader_engine(f"sqlite:///{path}")
        # Waiting in Python is fair and quick; SQLite's own waiting for a lock is neither.
        self._lock = threading.Lock()
        with driver_errors(), self._writer.begin() as connection:
            _metadata.create_all(connection)
            for trigger in _TRIGGERS:
                connection.execute(text(trigger))
        with driver_errors(), self._writer.begin() as connection:
            flush_again(connection)

    def get(self, origin_sha256: str) -> Witnessed | None:
        with driver_errors(), self._reader.connect() as connection:
            return _read(connection, origin_sha256)

    @contextmanager
    def updating(self, origin_sha256: str) -> Iterator[Update]:
        """One write transaction: what is read in it stays so until it ends, durable or with nothing changed."""
        with self._lock, driver_errors(), self._writer.begin() as connection:
            yield Update(connection, origin_sha256)

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()


class Update:
    """The inside of one write transaction."""

    def __init__(self, connection: Connection, origin_sha256: str) -> None:
        self._connection = connection
        self._origin_sha256 = origin_sha256
        self.newest = _read(connection, origin_sha256)

    def store(self, witnessed: Witnessed) -> None:
        values = {"size": witnessed.size, "root": witnessed.root, "note": witnessed.note}
        if self.newest is None:
            self._connection.execute(_witnessed.insert().values(origin_sha256=self._origin_sha256, **values))
        else:
            mine = _witnessed.c.origin_sha256 == self._origin_sha256
            self._connection.execute(_witnessed.update().where(mine).values(**values))


def _read(connection: Connection, origin_sha256: str) -> Witnessed | None:
    column = _witnessed.c
    query = select(column.size, column.root, column.note).where(column.origin_sha256 == origin_sha256)
    row = connection.execute(query).first()
    return None if row is None else Witnessed(row.size, bytes(row.root), bytes(row.note))
