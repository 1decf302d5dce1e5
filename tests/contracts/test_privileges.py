"""A ledger under a PostgreSQL role that may append and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from modelledger import cli
from modelledger.client import Client

from ledger.cosignature_store import CosignatureStore
from ledger.errors import Refused, Unreachable
from ledger.kit.keys import actor_signer
from ledger.privileges import migrate
from ledger.registry_view import REGISTRY_VIEW, fold_registry
from ledger.signers import log_signer as signer_in
from ledger.store import Store
from ledger.tables import MIGRATIONS
from ledger.views import ViewRunner
from tests.audit import verify_whole_log
from tests.databases import Cluster, log_signer
from tests.logs import Log, dataset
from tests.two_ledgers import LedgerProcess
from tests.witnesses import cosigner, signature

OWNER, RUNNING = "log_owner", 'running "role"; --'
QUOTED = '"running ""role""; --"'
APPEND_ONLY = ("events", "tiles", "checkpoints", "introductions", "revocations", "cosignatures")


@dataclass
class TwoRoles:
    """A new database with an owner, and a role that has no rights in it yet."""

    cluster: Cluster
    database: str

    @property
    def owner(self) -> str:
        return self.cluster.url(self.database, OWNER)

    @property
    def running(self) -> str:
        return self.cluster.url(self.database, "running%20%22role%22%3B%20--")

    def execute(self, *statements: str) -> None:
        with self.cluster.connect(self.database) as connection:
            for statement in statements:
                connection.execute(statement)

    def rights(self, role: str) -> dict[str, set[str]]:
        query = "SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = %s"
        found: dict[str, set[str]] = {}
        with self.cluster.connect(self.database) as connection:
            for table, right in connection.execute(query, (role,)).fetchall():
                found.setdefault(table, set()).add(right)
        return found


@pytest.fixture
def roles(postgresql: Cluster) -> Iterator[TwoRoles]:
    name = postgresql.new_url().split("@/")[1].split("?")[0]
    with postgresql.connect() as connection:
        for role in (OWNER, QUOTED):
            connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"ALTER DATABASE {name} OWNER TO {OWNER}")
    yield TwoRoles(postgresql, name)
    with postgresql.connect() as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        for role in (OWNER, QUOTED):
            connection.execute(f"DROP ROLE {role}")


def test_the_running_role_has_exactly_the_rights_it_needs(roles: TwoRoles) -> None:
    assert migrate(roles.owner, RUNNING) == list(MIGRATIONS)
    roles.execute(f"GRANT ALL ON events, migrations TO {QUOTED}")
    assert migrate(roles.owner, RUNNING) == []
    rights = roles.rights(RUNNING)
    with roles.cluster.connect(roles.database) as connection:
        tables = {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
        guarded = {
            name
            for (name,) in connection.execute("SELECT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal")
        }
    assert guarded == set(APPEND_ONLY)
    assert rights.keys() == tables
    assert {table for table in tables if rights[table] == {"SELECT", "INSERT"}} == guarded
    assert rights["migrations"] == {"SELECT"}
    others = tables - guarded - {"migrations"}
    assert all(rights[table] == {"SELECT", "INSERT", "UPDATE", "DELETE"} for table in others)


def test_a_ledger_runs_under_it(roles: TwoRoles, tmp_path: Path) -> None:
    """The log, its view, its groups: a real process, and nothing in it needs more."""
    migrate(roles.owner, RUNNING)
    ledger = LedgerProcess("ledger", tmp_path, roles.running)
    ledger.launch()
    try:
        ledger.wait_until_ready()
        trainer = actor_signer(tmp_path / "data" / "keys" / "trainer.key")
        for number in range(2):
            ledger.append(dataset(f"d{number}", trainer)[1])
        with Client(ledger.address) as client:
            assert len(list(client.datasets("acme"))) == 2
            client.create_group("mail", kinds=["DatasetRegistered"])
            consumer = client.consume("mail", "worker")
            assert [next(consumer).event.index for _ in range(2)] == [7, 8]
            consumer.close()
    finally:
        ledger.end()
    store = Store(roles.running, signer_in(tmp_path / "data" / "keys", ""))
    assert verify_whole_log(store) == 9
    store.close()


def test_so_do_rebuilt_views_full_tiles_and_cosignatures(roles: TwoRoles) -> None:
    migrate(roles.owner, RUNNING)
    log = Log(Store(roles.running, log_signer()))
    log.append(*log.history(), *log.datasets(256))
    view = ViewRunner(log.store, REGISTRY_VIEW, fold_registry)
    assert view.rebuild()
    assert view.rebuild()
    kept, head = CosignatureStore(roles.running), log.store.head
    kept.add(head.size, signature(head.checkpoint, cosigner(1)))
    assert len(kept.lines(head.size)) == 1
    verify_whole_log(log.store)
    kept.close()
    log.store.close()


@pytest.mark.parametrize("statement", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}"])
def test_the_running_role_cannot_change_the_log(roles: TwoRoles, statement: str) -> None:
    migrate(roles.owner, RUNNING)
    with psycopg.connect(host=str(roles.cluster._socket), dbname=roles.database, user=RUNNING) as connection:
        for table in APPEND_ONLY:
            column = {"introductions": "position", "revocations": "position", "tiles": "level", "events": "position"}
            name = column.get(table, "size")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.format(table, name, name))
            connection.rollback()
            for trigger in (f"DROP TRIGGER {table}_no_change ON {table}", f"ALTER TABLE {table} DISABLE TRIGGER ALL"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(trigger)
                connection.rollback()


def test_without_rights_a_ledger_says_what_to_do(roles: TwoRoles) -> None:
    with pytest.raises(Unreachable, match="modelledger log migrate --role"):
        Store(roles.running, log_signer())
    Store(roles.owner, log_signer()).close()
    with pytest.raises(Unreachable, match="modelledger log migrate --role"):
        Store(roles.running, log_signer())
    with pytest.raises(Unreachable, match="modelledger log migrate --role"):
        migrate(roles.running, RUNNING)


def test_a_role_that_may_change_the_log_anyway_is_refused(roles: TwoRoles) -> None:
    migrate(roles.owner)
    for role in ("postgres", OWNER):
        with pytest.raises(Refused, match="may change events"):
            migrate(roles.owner, role)
    ways = {
        f"GRANT {OWNER} TO {QUOTED}": f"REVOKE {OWNER} FROM {QUOTED}",
        "GRANT UPDATE (entry) ON events TO PUBLIC": "REVOKE UPDATE (entry) ON events FROM PUBLIC",
        "GRANT TRUNCATE ON cosignatures TO PUBLIC": "REVOKE TRUNCATE ON cosignatures FROM PUBLIC",
    }
    for given, taken in ways.items():
        roles.execute(given)
        with pytest.raises(Refused, match="may change"):
            migrate(roles.owner, RUNNING)
        assert not roles.rights(RUNNING), "nothing of a refused grant stays"
        roles.execute(taken)
    migrate(roles.owner, RUNNING)


def test_the_command(roles: TwoRoles, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["log", "migrate", "--database", roles.owner]
    assert cli.run([*command, "--role", RUNNING, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"applied": list(MIGRATIONS), "role": RUNNING}
    assert cli.run(command) == 0
    assert capsys.readouterr().out == "nothing to migrate\n"
    assert cli.run([*command, "--role", "nobody_of_that_name"]) == 1
    assert "CREATE ROLE" in capsys.readouterr().err
    assert cli.run(["log", "migrate", "--database", f"sqlite:///{tmp_path}/log.db"]) == 0
    assert cli.run(["log", "migrate", "--database", f"sqlite:///{tmp_path}/log.db", "--role", "x"]) == 1
    assert cli.run(["log", "migrate", "--database", "nonsense"]) == 1
    assert cli.run(["log", "migrate"]) == 2
