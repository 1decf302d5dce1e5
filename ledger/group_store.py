"""What consumer groups keep in the ledger's database, and the only file that writes their SQL.

    with store.changing("mail") as group:     # one transaction; nobody else changes this group meanwhile
        held = group.held()
        group.lease(...)

Nothing is decided here; ledger/groups.py does. Not flushed to disk on SQLite: a power cut may deliver an event again
that was settled a moment before, which is what "at least once" allows, and loses none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select

from ledger import tables
from ledger.database import driver_errors, reader_engine, writer_engine
from ledger.group_tables import deliveries, groups
from ledger.store import EVENT_COLUMNS, StoredRow


@dataclass(frozen=True)
class Group:
    """One group. position: every event before it was taken from the log; closed_reason: empty while it is open."""

    name: str
    stream_prefix: str
    kinds: tuple[str, ...]
    start_index: int
    max_attempts: int
    max_in_flight: int
    position: int
    acked: int = 0
    closed_reason: str = ""


class Held(NamedTuple):
    """An event that a group has taken from the log and not acknowledged.

    attempts: deliveries so far; lease, consumer: of the last one, `lease` is empty when it was given back; due: when
    the lease ends, when a retry may be delivered, or when it was parked, in milliseconds since 1970; length: how long
    before that it was decided.
    """

    position: int
    stream: str
    attempts: int
    lease: str
    consumer: str
    due: int
    length: int
    reason: str

    def set_back(self, now: int) -> bool:
        """Whether the clock was set back since `due` was decided."""
        return self.due - self.length > now


@dataclass(frozen=True)
class Counts:
    """Events of one group by state."""

    leased: int
    waiting: int
    parked: int


_HELD = [deliveries.c[field] for field in Held._fields]


class GroupStore:
    """The groups of one database."""

    def __init__(self, url: str) -> None:
        self._writer = writer_engine(url, synchronous="NORMAL")
        self._reader = reader_engine(url)

    def close(self) -> None:
        for engine in (self._writer, self._reader):
            engine.dispose()

    def add(self, group: Group, most: int) -> bool:
        """Insert a new group; False when `most` groups are open already."""
        with driver_errors(), self._writer.begin() as connection:
            tables.lock(connection, "groups")
            opened = select(func.count()).select_from(groups).where(groups.c.closed_reason == "")
            if _group(connection, group.name) is not None:
                return True
            if (connection.execute(opened).scalar() or 0) >= most:
                return False
            connection.execute(insert(groups).values({**vars(group), "kinds": ",".join(group.kinds)}))
            return True

    def get(self, name: str) -> Group | None:
        with driver_errors(), self._reader.connect() as connection:
            return _group(connection, name)

    def page(self, after: str, limit: int) -> list[Group]:
        """Groups by name."""
        query = select(groups).where(groups.c.name > after).order_by(groups.c.name).limit(limit)
        with driver_errors(), self._reader.connect() as connection:
            return [_read(row) for row in connection.execute(query)]

    def counts(self, name: str, now: int) -> Counts:
        column = deliveries.c
        parked, leased = column.parked, (column.lease != "") & (column.due > now)
        query = select(
            func.count().filter(~parked & leased), func.count().filter(~parked & ~leased), func.count().filter(parked)
        ).where(column.group_name == name)
        with driver_errors(), self._reader.connect() as connection:
            return Counts(*connection.execute(query).one())

    def any_due(self, name: str, now: int) -> bool:
        """Whether an event that is not parked might be delivered again."""
        column = deliveries.c
        due = (column.due <= now) | (column.due - column.length > now)
        query = select(column.position).where(column.group_name == name, column.parked.is_(False), due)
        with driver_errors(), self._reader.connect() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def parked(self, name: str, start: int, limit: int) -> list[Held]:
        """Parked events by position, from `start` on."""
        column = deliveries.c
        query = select(*_HELD).where(column.group_name == name, column.parked.is_(True), column.position >= start)
        with driver_errors(), self._reader.connect() as connection:
            return [Held._make(row) for row in connection.execute(query.order_by(column.position).limit(limit))]

    @contextmanager
    def changing(self, name: str) -> Iterator[Changing]:
        """One transaction, in which nobody else changes the group."""
        with driver_errors(), self._writer.begin() as connection:
            tables.lock(connection, f"group {name}")
            yield Changing(connection, name)


class Changing:
    """The inside of one transaction on one group."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._mine = deliveries.c.group_name == name

    def group(self) -> Group | None:
        return _group(self._connection, self._name)

    def held(self) -> list[Held]:
        """Events that are neither acknowledged nor parked, by position: max_in_flight of them at most."""
        return self._select(deliveries.c.parked.is_(False))

    def leased(self, lease: str) -> list[Held]:
        """Events under this lease, by position."""
        return self._select(deliveries.c.parked.is_(False) & (deliveries.c.lease == lease))

    def parked(self, positions: Sequence[int], limit: int) -> list[Held]:
        """The parked ones among these, or among all when there are none, by position."""
        chosen = deliveries.c.parked.is_(True)
        return self._select(chosen & deliveries.c.position.in_(positions) if positions else chosen, limit)

    def count_parked(self) -> int:
        query = select(func.count()).select_from(deliveries).where(self._mine, deliveries.c.parked.is_(True))
        return self._connection.execute(query).scalar() or 0

    def events(self, positions: Sequence[int]) -> list[StoredRow]:
        """The log's events at these positions, by position."""
        query = EVENT_COLUMNS.where(tables.events.c.position.in_(positions)).order_by(tables.events.c.position)
        return [StoredRow._make(row) for row in self._connection.execute(query)]

    def take(self, rows: Sequence[Held]) -> None:
        """Insert events that are taken from the log."""
        values = [{**row._asdict(), "group_name": self._name, "parked": False} for row in rows]
        if values:
            self._connection.execute(insert(deliveries), values)

    def lease(self, rows: Sequence[Held], lease: str, consumer: str, end: int, length: int) -> None:
        """Deliver these once more."""
        again = deliveries.c.attempts + 1
        self.update(rows, attempts=again, lease=lease, consumer=consumer, due=end, length=length)

    def uncount(self, rows: Sequence[Held]) -> None:
        """As if their last delivery had not been."""
        self.update(rows, attempts=deliveries.c.attempts - 1)

    def update(self, rows: Sequence[Held], **values: Any) -> None:
        """Change these columns of some rows."""
        if rows:
            chosen = deliveries.c.position.in_([row.position for row in rows])
            self._connection.execute(deliveries.update().where(self._mine, chosen).values(**values))

    def settle(self, rows: Sequence[Held]) -> None:
        """Acknowledged: nothing is kept of them but their number."""
        if rows:
            chosen = deliveries.c.position.in_([row.position for row in rows])
            self._connection.execute(deliveries.delete().where(self._mine, chosen))
            self.set(acked=groups.c.acked + len(rows))

    def set(self, **values: Any) -> None:
        """Change these columns of the group."""
        self._connection.execute(groups.update().where(groups.c.name == self._name).values(**values))

    def _select(self, condition: Any, limit: int | None = None) -> list[Held]:
        query = select(*_HELD).where(self._mine, condition).order_by(deliveries.c.position).limit(limit)
        return [Held._make(row) for row in self._connection.execute(query)]


def _group(connection: Connection, name: str) -> Group | None:
    row = connection.execute(select(groups).where(groups.c.name == name)).first()
    return None if row is None else _read(row)


def _read(row: Any) -> Group:
    return Group(**{**row._mapping, "kinds": tuple(filter(None, row.kinds.split(",")))})
