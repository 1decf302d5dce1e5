"""Where views lie: in PostgreSQL beside the log, for SQLite in a file of their own, `log-views.db` for `log.db`.

A SQLite file has one writer at a time, and what one writes empties the others' page caches: a view that catches up
would hold up the log. Everything here can be deleted: it is folded from the events again.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, String, Table, make_url

from ledger.errors import InvalidInput

metadata = MetaData()

# Sorted by its bytes on every database; only PostgreSQL has to be told.
_KEY = String(1000).with_variant(String(1000, collation="C"), "postgresql")

view_rows = Table(
    "view_rows",
    metadata,
    Column("view", String(64), primary_key=True),
    Column("key", _KEY, primary_key=True),
    Column("document", LargeBinary, nullable=False),
)

# last_id is the id of the event before next_position, and empty at 0: a file may outlive the log that it was made of.
view_positions = Table(
    "view_positions",
    metadata,
    Column("view", String(64), primary_key=True),
    Column("next_position", BigInteger, nullable=False),
    Column("last_id", String(64), nullable=False),
)


def views_url(url: str) -> str:
    """Where the views of the log in this database are. Raises InvalidInput for one that is not in a file."""
    parts = make_url(url)
    if parts.get_backend_name() != "sqlite":
        return url
    folder, slash, name = (parts.database or "").rpartition("/")
    if not name.strip(".") or name.endswith(":memory:"):
        raise InvalidInput(f"a ledger's SQLite database is a file, not {parts.database!r}")
    # Only the name is looked at: what stands before it may be a URI.
    beside = parts.set(database=f"{folder}{slash}{Path(name).stem}-views{Path(name).suffix}")
    return beside.render_as_string(hide_password=False)
