"""PostgreSQL with two roles: one owns the tables and migrates them, ledgers run under one that cannot change the log.

    migrate(owner_url, "ledger")        # the role `ledger` may do exactly this:

    events and what belongs to them, cosignatures     SELECT, INSERT
    views, consumer groups                            SELECT, INSERT, UPDATE, DELETE
    migrations                                        SELECT

The triggers of ledger/tables.py refuse changes to whoever has the rights; only the owner could drop them.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from ledger import group_tables, tables, view_tables
from ledger.database import driver_errors, writer_engine
from ledger.errors import InvalidInput, Refused

_TABLES = (*tables.metadata.tables, *group_tables.metadata.tables, *view_tables.metadata.tables)
_APPEND_ONLY = (*tables.IMMUTABLE, "cosignatures")
_RIGHTS = {table: "SELECT, INSERT, UPDATE, DELETE" for table in _TABLES}
_RIGHTS |= {table: "SELECT, INSERT" for table in _APPEND_ONLY}
_RIGHTS |= {"migrations": "SELECT"}

_EXISTS = text("SELECT count(*) FROM pg_roles WHERE rolname = :role")
# Also by way of another role, as the owner, or as a superuser.
_MAY_CHANGE = text(
    "SELECT pg_has_role(:role, tableowner, 'MEMBER') OR has_any_column_privilege(:role, tablename, 'UPDATE') "
    "OR has_table_privilege(:role, tablename, 'DELETE, TRUNCATE, TRIGGER') "
    "FROM pg_tables WHERE tablename = :table AND schemaname = current_schema()"
)


def migrate(url: str, role: str = "") -> list[str]:
    """Bring a database to the newest form, and give `role` its rights and no others, all or nothing.

    Returns the migrations that were missing. Raises InvalidInput when there is no such role, Refused when it may
    change the log all the same.
    """
    engine = writer_engine(url)
    try:
        with driver_errors(), engine.begin() as connection:
            missing = tables.migrate(connection)
            if role:
                _grant(connection, role)
            return missing
    finally:
        engine.dispose()


def _grant(connection: Connection, role: str) -> None:
    if connection.dialect.name != "postgresql":
        raise InvalidInput("--role: only PostgreSQL has roles; who may write a SQLite file may change it")
    if not connection.execute(_EXISTS, {"role": role}).scalar():
        raise InvalidInput(f"--role: there is no role {role!r}; make it first: CREATE ROLE … LOGIN")
    quoted = connection.dialect.identifier_preparer.quote_identifier(role)
    for table, rights in _RIGHTS.items():
        connection.execute(text(f"REVOKE ALL ON {table} FROM {quoted}"))
        connection.execute(text(f"GRANT {rights} ON {table} TO {quoted}"))
    for table in _APPEND_ONLY:
        if connection.execute(_MAY_CHANGE, {"role": role, "table": table}).scalar():
            raise Refused(
                f"--role: {role!r} may change {table}: it is a superuser, the owner, or has more rights by another "
                "role; run ledgers under a role of their own"
            )
