"""The tables of consumer groups: what each group wants and how far it is, and the events it has not settled.

An event that a group wants has a row from when it is taken from the log until it is acknowledged; what has no row
and lies before `position` is done. Times are milliseconds since 1970.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, text

# Of its own: these tables came after the log's, by a migration.
metadata = MetaData()

# Text is compared and sorted by its bytes on every database; only PostgreSQL has to be told.
NAME = String(128).with_variant(String(128, collation="C"), "postgresql")

groups = Table(
    "consumer_groups",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("stream_prefix", String(600), nullable=False),
    Column("kinds", String(16_000), nullable=False),  # comma separated
    Column("start_index", BigInteger, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("max_in_flight", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),  # every event before it was taken from the log
    Column("acked", BigInteger, nullable=False),
    Column("closed_reason", String(1_000), nullable=False),  # empty while the group is open
)

# `due` is when a lease ends, when a retry may be delivered, or when an event was parked; `length` is how long before
# that it was decided, in milliseconds. Who finds himself before that moment knows that the clock was set back.
deliveries = Table(
    "group_deliveries",
    metadata,
    Column("group_name", NAME, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("stream", String(600), nullable=False),
    Column("parked", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False),  # deliveries so far
    Column("lease", String(32), nullable=False),  # empty when no consumer has it
    Column("consumer", String(128), nullable=False),  # that had it last
    Column("due", BigInteger, nullable=False),
    # Rows older than this column: the longest time there is, so that none of them is ended too early.
    Column("length", BigInteger, nullable=False, server_default=text("2592000000")),
    Column("reason", String(1_000), nullable=False),
    Index("deliveries_by_state", "group_name", "parked", "position"),
)
