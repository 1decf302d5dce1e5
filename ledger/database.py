"""SQLAlchemy engines as the store wants them, and what a driver's errors mean to a caller.

A driver's own words name hosts, users and paths: they go to the log, and the caller gets a plain sentence.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError

from ledger.driver import Driver, Statement
from ledger.errors import DamagedLog, InvalidInput, ModelLedgerError, Unreachable

log = logging.getLogger("modelledger.database")

# The file is not the database that was written (https://www.sqlite.org/rescode.html), or the disk failed to read it:
# SQLite's unixRead makes SQLITE_CORRUPT of EIO.
_SQLITE_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# data_corrupted and index_corrupted: https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRESQL_DAMAGE = ("XX001", "XX002")
_POSTGRESQL_FULL = "53100"  # disk_full
_POSTGRESQL_DENIED = "42501"  # insufficient_privilege
_POSTGRESQL_LOCKED = "55P03"  # lock_not_available: LOCK_SECONDS have passed

# A writer that was stopped, or whose machine is gone, still holds its locks: PostgreSQL ends its session, and what it
# was writing is not written. No write of ours rests so long between two statements.
IDLE_SECONDS = 5
# Who waits longer for a lock is told so. More than IDLE_SECONDS, so that a writer that was stopped costs time only.
LOCK_SECONDS = 10
# A database server whose machine is gone is noticed after about ten seconds; the URL may say otherwise.
_POSTGRESQL_TCP = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# Of one SQLite connection. The indexes of ten million events have about as much above their leaves; with SQLite's own
# 2 MiB an append there costs a tenth more.
CACHE_KIB = 64 << 10
# After so many pages in its write-ahead log SQLite copies them into the file: a page that was written again and again
# is copied once. With SQLite's own 1,000 batches took a tenth longer, and one append in 140 waited 7 ms for it, where
# now one in 570 waits 25 ms.
WAL_PAGES = 4_000
_PIECE = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds that SQLite waits for a lock
_DISK_FAILS = (
    "the disk of the ledger's database reports errors, nothing was acknowledged; look at the system's log, mend the "
    "disk, then retry"
)


def writer_engine(url: str, *, synchronous: str = "FULL") -> Engine:
    """For write transactions. `synchronous` is SQLite's: FULL flushes every commit to disk."""
    if _is_sqlite(url):
        # The write lock is taken at once: upgrading a read transaction later can fail under another writer.
        return _sqlite(url, Statement("BEGIN IMMEDIATE"), synchronous, CACHE_KIB)
    # READ COMMITTED: what is read after the advisory lock was waited for is what its last holder committed.
    return _postgresql(
        url,
        "READ COMMITTED",
        synchronous_commit="on",  # acknowledged means durable, whatever the server's own setting is
        idle_in_transaction_session_timeout=f"{IDLE_SECONDS}s",
        lock_timeout=f"{LOCK_SECONDS}s",
    )


class WriteTransactions:
    """Write transactions, one after another.

    SQLite's are all on one connection, which is kept: a new one for each would be a twentieth of a lone append. For
    PostgreSQL's the engine looks whether the server is still there.
    """

    def __init__(self, url: str) -> None:
        self._engine = writer_engine(url)
        self._keep = self._engine.dialect.name == "sqlite"
        self._kept: Connection | None = None

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """The connection of a transaction that is committed at the end, or undone when something was raised."""
        if not self._keep:
            with self._engine.begin() as connection:
                yield connection
            return
        # Nobody else has it meanwhile: closing would undo what is written, and the end would not say so.
        connection, self._kept = self._kept or self._engine.connect(), None
        try:
            with connection.begin():
                yield connection
        except BaseException:
            connection.close()  # whatever is wrong with it
            raise
        self._kept = connection

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        self._engine.dispose()


def reader_engine(url: str) -> Engine:
    """For read transactions, each on one snapshot, and as long as it takes."""
    return _sqlite(url, Statement("BEGIN"), "FULL") if _is_sqlite(url) else _postgresql(url, "REPEATABLE READ")


def audit_engine(url: str) -> Engine:
    """As `reader_engine`, and what is read stays as it is to the byte, also where nothing can be written."""
    return _sqlite(_unchanged(url), Statement("BEGIN"), "FULL", wal=False) if _is_sqlite(url) else reader_engine(url)


def _unchanged(url: str) -> str:
    """The URL under which SQLite writes nothing into a database file, https://www.sqlite.org/uri.html.

    Whoever is the last to close one that was left with a write-ahead log would write that into it. A file system that
    takes no writes has no place for the files beside it, and nobody who changes it.
    """
    with _usable_url():
        parsed = make_url(url)
    path = Path(parsed.database or "").resolve()  # SQLite follows links, too, and looks beside what they point at
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        how = {"mode": "ro"}
    elif path.exists() and os.statvfs(path).f_flag & os.ST_RDONLY:
        how = {"immutable": "1"}
    else:
        return url  # the files beside it are made, and removed at the end
    query = {**parsed.query, **how, "uri": "true"}
    return parsed.set(database=f"file:{quote(str(path))}", query=query).render_as_string(hide_password=False)


@contextmanager
def driver_errors() -> Iterator[None]:
    """Raise what the database's driver reports as an error of ours."""
    try:
        yield
    except DBAPIError as error:
        raise meaning(error) from error


def meaning(error: DBAPIError) -> ModelLedgerError:
    """DamagedLog when the database says its own bytes are wrong, InvalidInput when it cannot hold a value (trying
    again would not help), otherwise Unreachable."""
    log.error("database: %s", error.orig)
    if isinstance(error, DataError):
        return InvalidInput("a text or number of the request cannot be stored: it is too long, too large or holds NUL")
    code = getattr(error.orig, "sqlite_errorcode", None)
    damaged = code is not None and code & 0xFF in _SQLITE_DAMAGE
    if damaged or getattr(error.orig, "sqlstate", None) in _POSTGRESQL_DAMAGE:
        return DamagedLog(
            "the ledger's database is damaged or cannot be read; look at the ledger's and the system's log: mend a "
            "disk that reports errors, then retry; otherwise restore the database from a backup"
        )
    sqlite, postgresql = None if code is None else code & 0xFF, getattr(error.orig, "sqlstate", None)
    if postgresql == _POSTGRESQL_LOCKED:
        return Unreachable("another process has kept the ledger's database to itself for too long; retry in a moment")
    if postgresql == _POSTGRESQL_DENIED:
        return Unreachable(
            "the ledger's database role may not do this; under the role that owns the tables run: "
            "modelledger log migrate --role ROLE"
        )
    if sqlite == sqlite3.SQLITE_FULL or postgresql == _POSTGRESQL_FULL:
        return Unreachable("the disk of the ledger's database is full, nothing was recorded; free space, then retry")
    if sqlite == sqlite3.SQLITE_IOERR:
        return Unreachable(_DISK_FAILS)
    if sqlite in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return Unreachable(
            "the ledger's database file cannot be opened for writing; check its path and permissions"
            "; only to read it, copy it and the -wal beside it to a folder where you may write"
        )
    return Unreachable(
        "the ledger's database cannot be used; its log has the details: check the URL, permissions and free disk space"
    )


@contextmanager
def _usable_url() -> Iterator[None]:
    try:
        yield
    except (ArgumentError, ImportError) as error:
        raise InvalidInput(f"not the URL of a database that can be used: {error}") from None


def flush_again(connection: Connection) -> None:
    """Write to disk once more what a transaction finds in a SQLite database. It must be a write transaction.

    A commit that was cut off before its flush comes back with the write-ahead log, though it may be in memory only.
    And once a flush has failed, the kernel takes what it could not write for written: the next flush succeeds without
    it. So what is read back at a start, or after a failed commit, is written anew before anybody is told of it.
    PostgreSQL does as much by itself, and stops when a flush fails.
    """
    if connection.dialect.name != "sqlite":
        return
    path = connection.exec_driver_sql("SELECT file FROM pragma_database_list WHERE name = 'main'").scalar()
    try:
        # Whoever has the write lock is the only one who may change this file.
        file = os.open(f"{path}-wal", os.O_RDWR)
        try:
            for position in range(0, os.fstat(file).st_size, _PIECE):
                os.pwrite(file, os.pread(file, _PIECE, position), position)
            os.fdatasync(file)
        finally:
            os.close(file)
    except OSError as error:
        log.error("database: what is in its write-ahead log cannot be flushed: %s", error)
        raise Unreachable(_DISK_FAILS) from None


def _is_sqlite(url: str) -> bool:
    return url.startswith("sqlite")


def _postgresql(url: str, isolation_level: str, **settings: str) -> Engine:
    with _usable_url():
        given = make_url(url).query
        connect: dict[str, Any] = {name: value for name, value in _POSTGRESQL_TCP.items() if name not in given}
        connect["options"] = " ".join(f"-c {name}={value}" for name, value in settings.items())
        return create_engine(url, pool_pre_ping=True, isolation_level=isolation_level, connect_args=connect)


def _use_wal(connection: sqlite3.Connection) -> None:
    """SQLite does not wait by itself for others that do the same with a new file at the same moment."""
    until = time.monotonic() + _TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _sqlite(url: str, begin: Statement, synchronous: str, cache_kib: int = 2_000, *, wal: bool = True) -> Engine:
    with _usable_url():
        engine = create_engine(url, connect_args={"timeout": _TIMEOUT, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions; the next function does
        if wal:
            _use_wal(connection)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute(f"PRAGMA cache_size=-{cache_kib}")
        connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        Driver(connection).write(begin, [()])  # SQLAlchemy's own way to it takes as long as SQLite does

    return engine
