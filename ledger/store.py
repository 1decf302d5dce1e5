"""The log on disk: events, full tiles and checkpoints through SQLAlchemy, in SQLite or PostgreSQL.

    store = Store("sqlite:///log.db", signer)
    with store.writing() as writing:        # one transaction; the only way to write
        writing.append(rows, ...)
    store.head                              # size, edge and checkpoint that readers see

The store decides nothing about events; the sequencer does, between `writing.known(...)` and `append`.

Acknowledged means durable: SQLite runs with WAL and synchronous=FULL, PostgreSQL with synchronous_commit on.
Start-up verifies instead of trusting; damage stops it with the position (`DamagedLog`), and is never repaired. After
a commit that failed nothing is trusted either: the next one flushes again what the database holds.

Several processes may have a store on one database. Each write begins at the newest checkpoint there, under a lock that
all of them take, and what others have written is taken over only if it continues what was seen here before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

from ledger import tables
from ledger.checkpoint import open_checkpoint
from ledger.database import WriteTransactions, driver_errors, flush_again, reader_engine
from ledger.driver import Driver, Reader, Statement
from ledger.edge import Edge, LogTiles
from ledger.errors import Damaged, DamagedLog, NotFound, OtherLog
from ledger.merkle import NODES_SIZE, TILE_WIDTH, StoredTile, Tile, leaf_hash, root_from_tiles
from ledger.note import LogSigner, NoteError
from ledger.view_store import ViewStore
from ledger.writing import Head, Writing

RARE = 1_000  # events
FULL_TILES_CACHED = 4_096  # 34 MiB
log = logging.getLogger("modelledger.store")

Listener = Callable[["Head"], None]


class StoredRow(NamedTuple):
    """One event as it was read back. A tuple: rows become these by the ten thousand a second."""

    position: int
    id: str
    stream: str
    version: int
    kind: str
    payload_sha256: str
    entry: bytes


class Store:
    """One log in one database. `at` is called at named points of a commit, so that tests can fail there."""

    def __init__(self, url: str, signer: LogSigner, at: Callable[[str], None] = lambda point: None) -> None:
        self.signer = signer
        self._at = at
        self._writer = WriteTransactions(url)
        self._reader = reader_engine(url)
        self.views = ViewStore(url)
        self._lock = threading.Lock()
        self._in_doubt = False  # whether a commit failed since the database was last verified
        self._changed = threading.Condition()
        self.listeners: set[Listener] = set()
        self.full_tiles = FullTiles(self._reader)
        with driver_errors():
            with self._writer.begin() as connection:
                tables.migrate(connection)
            with self._writer.begin() as connection:
                flush_again(connection)
            with self._reader.begin() as connection:  # one snapshot: others may be writing
                self.head = self._load_head(connection)

    # Writing

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """One write transaction. It ends committed and visible in `head`, or with nothing written."""
        with self._lock:
            with self._doubt(), self._writer.begin() as connection:
                tables.lock(connection, "modelledger")  # one writer over all processes on this database
                head = self._verified_head(connection)
                writing = Writing(connection, head)
                yield writing
                if writing.size > head.size:
                    self._at("before_checkpoint")
                    head = writing.seal(self.signer)
                    self._at("before_commit")
            self._at("after_commit_before_ack")
        self.see(head)

    @contextmanager
    def _doubt(self) -> Iterator[None]:
        """What the database did with a transaction that it reported an error for is found out by the next one."""
        try:
            yield
        except DBAPIError:
            self._in_doubt = True
            raise

    def _verified_head(self, connection: Connection) -> Head:
        """The head that a write transaction starts from."""
        if self._in_doubt:
            flush_again(connection)
        head = self._newest_head(connection, self.head)
        self._in_doubt = False
        return head

    def refresh(self) -> None:
        """See what another process on this database has committed since."""
        seen = self.head  # before the snapshot, which therefore holds it
        with driver_errors(), self._reader.begin() as connection:
            head = self._newest_head(connection, seen)
        self.see(head)

    def see(self, head: Head) -> None:
        """Show what was committed and verified to readers and listeners; an older head than theirs changes nothing."""
        with self._changed:
            if head.size <= self.head.size:
                return
            self.head = head
            self._changed.notify_all()
        for listener in list(self.listeners):
            try:
                listener(head)
            except Exception:  # what was committed stays committed, whoever cannot be told
                log.exception("a listener could not be told of size %d", head.size)

    # Reading

    def tiles(self, head: Head | None = None) -> LogTiles:
        """A tile reader for every size up to the head's."""
        return LogTiles(self.full_tiles, (head or self.head).edge)

    def get(self, position: int) -> StoredRow:
        rows = self.select(start=position, limit=1)
        if not rows or rows[0].position != position:
            raise NotFound(f"there is no event {position}; the log has {self.head.size}")
        return rows[0]

    def get_all(self, positions: Iterable[int]) -> list[StoredRow]:
        """The events at these positions, by position. Raises NotFound when there is none at one of them."""
        wanted, found = set(positions), []
        for some in tables.pieces(wanted):
            found += self._read(EVENT_COLUMNS.where(tables.events.c.position.in_(some)))
        if missing := wanted - {row.position for row in found}:
            raise NotFound(f"there is no event {min(missing)}; the log has {self.head.size}")
        return sorted(found)

    def get_by_id(self, event_id: str) -> StoredRow:
        found = self._read(EVENT_COLUMNS.where(tables.events.c.id == event_id))
        if not found:
            raise NotFound(f"there is no event with id {event_id}")
        if found[0].position >= self.head.size:
            self.refresh()  # another process has committed it just now; whoever knows of it reads on from there
        return found[0]

    def select(
        self,
        *,
        start: int = 0,
        stop: int | None = None,
        stream: str = "",
        stream_prefix: str = "",
        kinds: Sequence[str] = (),
        after_version: int | None = None,
        up_to_version: int | None = None,
        descending: bool = False,
        limit: int | None = 100,
        rare: bool = False,
    ) -> list[StoredRow]:
        """Events with start <= position < stop that match every filter, at most `limit`, by position.

        `rare`: so few streams' events begin with the prefix that reading them all is quickest, see `is_rare`.
        """
        column = tables.events.c
        position: ColumnElement[int] = column.position
        kind: ColumnElement[str] = column.kind
        if stream or rare:
            # Found by the stream's index, whatever else is asked; SQLite would take one that looks as good to it.
            position, kind = column.position + 0, column.kind + ""
        query = EVENT_COLUMNS.where(position >= start).limit(limit)
        if stop is not None:
            query = query.where(position < stop)
        if stream:
            query = query.where(column.stream == stream)
        if stream_prefix:
            query = query.where(tables.begins_with(column.stream, stream_prefix))
        if kinds:
            query = query.where(kind.in_(kinds))
        if after_version is not None:
            query = query.where(column.version > after_version)
        if up_to_version is not None:
            query = query.where(column.version <= up_to_version)
        order = column.version if stream else column.position  # in a stream they grow together
        return self._read(query.order_by(order.desc() if descending else order))

    def is_rare(self, stream_prefix: str) -> bool:
        """Whether so few events are in streams that begin so that `select` had better read them all."""
        query = select(tables.events.c.version).where(tables.begins_with(tables.events.c.stream, stream_prefix))
        with driver_errors(), self._reader.connect() as connection:
            return len(connection.execute(query.limit(RARE)).all()) < RARE

    def page(self, start: int, stop: int) -> list[StoredRow]:
        """The events start..stop-1; a third of the time that `select` takes for them."""
        with driver_errors(), self._reader.connect() as connection:
            return list(map(StoredRow._make, Driver(connection).rows(_PAGE, start, stop)))

    def introduction(self, sha256: str, name: str) -> int | None:
        """Position of the event that introduced these bytes under this name."""
        column = tables.introductions.c
        query = select(column.position).where(column.sha256 == sha256, column.name == name)
        with driver_errors(), self._reader.connect() as connection:
            return connection.execute(query).scalar()

    def revocations(self, digests: Iterable[str]) -> dict[str, int]:
        """Position of the event that revoked it, for each of the digests that is revoked."""
        column, found = tables.revocations.c, {}
        with driver_errors(), self._reader.connect() as connection:
            for some in tables.pieces(digests):
                query = select(column.sha256, column.position).where(column.sha256.in_(some))
                found.update({row.sha256: row.position for row in connection.execute(query)})
        return found

    def entries(self, start: int, stop: int) -> list[bytes]:
        """The entries start..stop-1 for an entry bundle."""
        column = tables.events.c
        query = select(column.entry).where(column.position >= start, column.position < stop)
        with driver_errors(), self._reader.connect() as connection:
            return list(connection.execute(query.order_by(column.position)).scalars())

    def wait(self, size: int, timeout: float | None = None) -> bool:
        """Block until the log has more than `size` events; False when the timeout comes first."""
        with self._changed:
            return self._changed.wait_for(lambda: self.head.size > size, timeout)

    def close(self) -> None:
        self._writer.close()
        self.full_tiles.close()
        self._reader.dispose()
        self.views.close()

    # Start-up, and following other processes

    def _newest_head(self, connection: Connection, seen: Head) -> Head:
        """The head that the database has now. Raises DamagedLog when it does not continue the one that was seen."""
        newest = Driver(connection).rows(_NEWEST_NOTE)
        if (newest[0][0] if newest else b"") == seen.checkpoint:
            return seen
        head = self._load_head(connection)
        if head.size < seen.size or root_from_tiles(self.tiles(head), seen.size) != seen.edge.root():
            raise DamagedLog(
                f"the database holds {head.size} events that do not continue the {seen.size} that this ledger has "
                "published: it was put back to an earlier state; a log that forgot events must not go on under its key"
            )
        return head

    def _load_head(self, connection: Connection) -> Head:
        row = connection.execute(_NEWEST_CHECKPOINT).first()
        last = connection.execute(select(func.max(tables.events.c.position))).scalar()
        size = row.size if row else 0
        if last != (size - 1 if size else None):
            raise DamagedLog(
                f"the newest checkpoint covers {size} events, but the last event is at position {last}; "
                "restore the database from a backup"
            )
        if row is None:
            return Head(0, Edge(), b"")
        try:
            checkpoint = open_checkpoint(row.note, [self.signer.verifier], self.signer.name)
        except NoteError as error:
            raise OtherLog(
                f"the database's newest checkpoint is not signed by this log's key ({error}); "
                "use the key file that belongs to this database"
            ) from None
        edge = self._load_edge(connection, size)
        if checkpoint.size != size or checkpoint.root != edge.root():
            raise DamagedLog(
                f"the tree over events 0..{size - 1} does not have the root that its checkpoint signs; "
                "run `modelledger log verify` for the position, and restore the database from a backup"
            )
        return Head(size, edge, row.note)

    def _load_edge(self, connection: Connection, size: int) -> Edge:
        column = tables.events.c
        first = size - size % TILE_WIDTH
        query = select(column.position, column.leaf_hash, column.entry).where(column.position >= first)
        hashes = []
        for row in connection.execute(query.order_by(column.position)):
            if leaf_hash(row.entry) != row.leaf_hash:
                raise DamagedLog(f"event {row.position} was changed: its bytes do not have its leaf hash")
            hashes.append(row.leaf_hash)
        try:
            return Edge.load(size, self.full_tiles, hashes)
        except (ValueError, Damaged) as error:
            raise DamagedLog(f"the tree over {size} events cannot be rebuilt: {error}") from None

    def _read(self, query: Any) -> list[StoredRow]:
        with driver_errors(), self._reader.connect() as connection:
            return [StoredRow._make(row) for row in connection.execute(query).all()]


_NEWEST_CHECKPOINT = select(tables.checkpoints).order_by(tables.checkpoints.c.size.desc()).limit(1)
_PAGE = Statement(
    "SELECT position, id, stream, version, kind, payload_sha256, entry FROM events "
    "WHERE position >= ? AND position < ? ORDER BY position"
)
_FULL_TILE = Statement("SELECT hashes, nodes FROM tiles WHERE level = ? AND tile = ?")
_NEWEST_NOTE = Statement("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1")
EVENT_COLUMNS = select(
    tables.events.c.position,
    tables.events.c.id,
    tables.events.c.stream,
    tables.events.c.version,
    tables.events.c.kind,
    tables.events.c.payload_sha256,
    tables.events.c.entry,
)


class FullTiles:
    """TileReader over the full tiles in the database, the most used ones kept in memory."""

    def __init__(self, engine: Engine) -> None:
        self._reader = Reader(engine)
        self._one = lru_cache(FULL_TILES_CACHED)(self._read_one)

    def read_tiles(self, wanted: Sequence[Tile]) -> list[bytes]:
        return [self._one(tile.level, tile.index) for tile in wanted]

    def _read_one(self, level: int, index: int) -> bytes:
        with driver_errors():
            found = self._reader.rows(_FULL_TILE, level, index)
        if not found:
            raise Damaged(f"tile {index} of level {level} is missing")
        hashes, nodes = found[0]
        if not isinstance(hashes, bytes):
            raise Damaged(f"tile {index} of level {level} is kept without its hashes")
        if not (isinstance(nodes, bytes) and len(nodes) == NODES_SIZE):
            return hashes  # they are computed; an audit says so
        return StoredTile(hashes, nodes)

    def close(self) -> None:
        self._reader.close()
