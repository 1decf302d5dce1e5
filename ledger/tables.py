"""The ledger's tables, and the triggers that keep what is written as it was written.

events, tiles, checkpoints and cosignatures are append-only: the database itself refuses UPDATE and DELETE. tiles
holds only full tiles (256 hashes) with their nodes (ledger/merkle.py); the right edge of the tree is rebuilt from leaf
hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    and_,
    false,
    func,
    inspect,
    select,
    text,
)

from ledger import group_tables, view_tables
from ledger.errors import InvalidInput
from ledger.merkle import tile_nodes

Value = TypeVar("Value", str, int)

metadata = MetaData()

# Text is compared and sorted by its bytes on every database; only PostgreSQL has to be told.
STREAM = String(600).with_variant(String(600, collation="C"), "postgresql")
# In SQLite a key of type INTEGER, and of no other, is the row's own number and needs no index beside the table
# (https://www.sqlite.org/lang_createtable.html#rowid). Databases made before this was so have one, and work as well.
ROW_NUMBER = BigInteger().with_variant(Integer, "sqlite")

events = Table(
    "events",
    metadata,
    Column("position", ROW_NUMBER, primary_key=True, autoincrement=False),
    Column("id", String(64), nullable=False, unique=True),
    Column("stream", STREAM, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("kind", String(128), nullable=False),
    Column("payload_sha256", String(64), nullable=False),
    Column("leaf_hash", LargeBinary(32), nullable=False),
    Column("entry", LargeBinary, nullable=False),
    UniqueConstraint("stream", "version"),
    Index("events_by_kind", "kind", "position"),
)

tiles = Table(
    "tiles",
    metadata,
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("tile", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
    Column("nodes", LargeBinary, nullable=False),
)

# `previous` is unique: two writers that both extend the same checkpoint cannot both commit (compare-and-swap).
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("size", ROW_NUMBER, primary_key=True, autoincrement=False),
    Column("previous", BigInteger, nullable=False, unique=True),
    Column("note", LargeBinary, nullable=False),
)

# What the append rules ask: which event introduced a digest under a name, and which one revoked it.
introductions = Table(
    "introductions",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(300), primary_key=True),
    Column("position", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
revocations = Table(
    "revocations",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("position", BigInteger, nullable=False),
)

# What witnesses signed on a checkpoint: one line for each witness's key. It comes from outside, after the commit.
cosignatures = Table(
    "cosignatures",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("witness", STREAM, primary_key=True),
    Column("key_id", String(8), primary_key=True),
    Column("line", LargeBinary, nullable=False),
)

migrations = Table("migrations", metadata, Column("name", String(64), primary_key=True))

IMMUTABLE = ("events", "tiles", "checkpoints", "introductions", "revocations")


def migrate(connection: Connection) -> list[str]:
    """Bring the database to the newest form: every migration once, in order, in the caller's transaction.

    Returns the names of those that were missing. When none is, a role that may not change the form is enough. Raises
    InvalidInput for a database that a newer release has changed: this one would not keep what that one relies on.
    """
    lock(connection, "modelledger")
    migrations.create(connection, checkfirst=True)
    applied = set(connection.execute(migrations.select()).scalars())
    if unknown := sorted(applied - MIGRATIONS.keys()):
        raise InvalidInput(f"the database was changed by a newer release ({', '.join(unknown)}); update this one")
    missing = [name for name in MIGRATIONS if name not in applied]
    for name in missing:
        MIGRATIONS[name](connection)
        connection.execute(migrations.insert().values(name=name))
    # Inserts nothing; a database that may only be read is found out here, not at the first append.
    connection.execute(events.insert().from_select(list(events.c), select(events).where(false())))
    return missing


def lock(connection: Connection, name: str) -> None:
    """Hold off every other process that locks this name, until the transaction ends.

    SQLite needs nothing: BEGIN IMMEDIATE already lets one writer in at a time.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))


def pieces(values: Iterable[Value], size: int = 500) -> Iterator[list[Value]]:
    """Lists short enough for one IN (...) on every database."""
    everything = sorted(set(values))
    for start in range(0, len(everything), size):
        yield everything[start : start + size]


def begins_with(column: Column[str], prefix: str) -> ColumnElement[bool]:
    """Exactly this prefix, as a range an index can serve (LIKE ignores case on SQLite)."""
    return and_(column >= prefix, column < prefix + "\U0010ffff")


def _m001_initial(connection: Connection) -> None:
    metadata.create_all(connection, checkfirst=True)
    if connection.dialect.name == "postgresql":
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN RAISE EXCEPTION '% are never changed or deleted', TG_TABLE_NAME; END$$"
            )
        )
    for table in IMMUTABLE:
        _refuse_changes(connection, table)


def _m002_cosignatures(connection: Connection) -> None:
    cosignatures.create(connection, checkfirst=True)  # m001 makes every table of a new database
    _refuse_changes(connection, "cosignatures")


def _refuse_changes(connection: Connection, table: str) -> None:
    """Make the triggers that refuse UPDATE and DELETE."""
    if connection.dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            connection.execute(
                text(
                    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} are never changed or deleted'); END"
                )
            )
        return
    connection.execute(
        text(
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
    )


def _m003_groups(connection: Connection) -> None:
    group_tables.metadata.create_all(connection, checkfirst=True)


def _m004_lengths(connection: Connection) -> None:
    if "length" in {column["name"] for column in inspect(connection).get_columns("group_deliveries")}:
        return  # m003 makes the table of a new database as it is now
    connection.execute(text("ALTER TABLE group_deliveries ADD COLUMN length BIGINT NOT NULL DEFAULT 2592000000"))


def _m005_nodes(connection: Connection) -> None:
    if "nodes" in {column["name"] for column in inspect(connection).get_columns("tiles")}:
        return  # m001 makes the table of a new database as it is now
    sqlite, column = connection.dialect.name == "sqlite", tiles.c
    connection.execute(text(f"ALTER TABLE tiles ADD COLUMN nodes {'BLOB' if sqlite else 'BYTEA'} NOT NULL DEFAULT ''"))
    for trigger in ("tiles_no_update", "tiles_no_delete") if sqlite else ("tiles_no_change ON tiles",):
        connection.execute(text(f"DROP TRIGGER {trigger}"))
    for level, tile in connection.execute(select(column.level, column.tile)).all():
        this = (column.level == level) & (column.tile == tile)
        hashes = connection.execute(select(column.hashes).where(this)).scalar_one()
        connection.execute(tiles.update().where(this).values(nodes=tile_nodes(hashes)))
    _refuse_changes(connection, "tiles")


def _m006_views(connection: Connection) -> None:
    tables = view_tables.metadata.tables
    if connection.dialect.name == "sqlite":  # they have a file of their own now
        for name in tables:
            connection.execute(text(f"DROP TABLE IF EXISTS {name}"))
        return
    view_tables.metadata.create_all(connection, checkfirst=True)
    if "last_id" in {column["name"] for column in inspect(connection).get_columns("view_positions")}:
        return
    connection.execute(text("ALTER TABLE view_positions ADD COLUMN last_id VARCHAR(64) NOT NULL DEFAULT ''"))
    position = view_tables.view_positions.c
    last = select(events.c.id).where(events.c.position == position.next_position - 1).scalar_subquery()
    connection.execute(view_tables.view_positions.update().values(last_id=func.coalesce(last, "")))
    # Without it an older release that still runs is refused; with it, it would leave ids that do not fit.
    connection.execute(text("ALTER TABLE view_positions ALTER COLUMN last_id DROP DEFAULT"))


MIGRATIONS: dict[str, Callable[[Connection], None]] = {
    "m001_initial": _m001_initial,
    "m002_cosignatures": _m002_cosignatures,
    "m003_groups": _m003_groups,
    "m004_lengths": _m004_lengths,
    "m005_nodes": _m005_nodes,
    "m006_views": _m006_views,
}
