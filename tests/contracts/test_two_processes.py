"""Two processes on one database, and a database that refuses to be changed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ledger.committer import Committer
from ledger.view_store import ViewMoved
from ledger.views import ViewRunner
from tests.audit import verify_whole_log
from tests.databases import StoreFactory
from tests.logs import ACTORS, Log, artifact, enrolment, in_process, signed, signer

_FAQ = {"org": "acme", "name": "faq", "examples": 100, "band": "minimum"}


def test_a_second_store_sees_what_the_first_wrote_when_it_writes(log: Log, store_factory: StoreFactory) -> None:
    other = Log(store_factory.reopen(log.store))
    for number in range(40):
        writer = (log, other)[number % 2]
        assert writer.append(writer.dataset(f"s{number}")).indexes == (number + 7,)
    assert verify_whole_log(log.store) == other.store.head.size == 47


def test_two_writers_at_once_do_not_fork_the_log(log: Log, store_factory: StoreFactory) -> None:
    other = in_process(Committer(store_factory.reopen(log.store)))

    async def both() -> None:
        mine, theirs = log.datasets(60), log.datasets(60, start=60)
        await asyncio.gather(
            *(log.sequencer.append([entry]) for entry in mine), *(other.append([entry]) for entry in theirs)
        )
        await asyncio.gather(log.sequencer.close(), other.close())

    asyncio.run(both())
    assert verify_whole_log(log.store) == 127


def test_an_actor_enrolled_through_one_process_may_write_through_another(log: Log, store_factory: StoreFactory) -> None:
    other = Log(store_factory.reopen(log.store))
    key = signer(77)
    log.append(signed(enrolment("trainer-2", key, "trainer"), ACTORS["ledger"]))
    data = {**_FAQ, "name": "z"}
    event = other.event("trainer-2", "DatasetRegistered", "datasets/acme/z", [artifact("datasets/acme/z")], data)
    other.append(signed(event, key))
    verify_whole_log(log.store)


def test_many_processes_may_open_a_new_database_at_once(store_factory: StoreFactory) -> None:
    url = store_factory.url_of(store_factory())
    stores = [store_factory.open(url) for _ in range(3)]
    assert [store.head.size for store in stores] == [0, 0, 0]


def test_a_view_is_not_folded_twice_by_two_processes(log: Log, store_factory: StoreFactory) -> None:
    log.append(log.base(), log.dataset(), *log.training())
    other = store_factory.reopen(log.store)
    folded: list[int] = []
    views = [
        ViewRunner(store, "counting", lambda event, index, rows: folded.append(index)) for store in (log.store, other)
    ]
    for _ in range(2):
        for view in views:
            with contextlib.suppress(ViewMoved):
                view._fold_batch()
    assert folded == list(range(log.store.head.size))
    assert log.store.head.size == other.head.size


def test_another_process_sees_what_was_committed_when_it_looks(log: Log, store_factory: StoreFactory) -> None:
    other = store_factory.reopen(log.store)
    log.append(log.dataset())
    assert other.head.size == log.store.head.size - 1
    other.refresh()
    assert other.head.checkpoint == log.store.head.checkpoint


# Immutability


IMMUTABLE = ["events", "tiles", "checkpoints", "introductions", "revocations"]


def _refuses_all(stores: StoreFactory, template: str) -> None:
    log = Log(stores())
    log.append(*log.history(), *log.datasets(256))
    columns = {"tiles": "hashes", "events": "entry", "checkpoints": "note"}
    for table in IMMUTABLE:
        statement = text(template.format(table=table, column=columns.get(table, "sha256")))
        with log.store._writer.connect() as connection:
            with pytest.raises(DBAPIError, match=f"{table} are never changed"):
                connection.execute(statement)
            connection.rollback()
    verify_whole_log(log.store)


@pytest.mark.parametrize("template", ["UPDATE {table} SET {column} = {column}", "DELETE FROM {table}"])
def test_the_database_refuses_to_change_what_is_written(store_factory: StoreFactory, template: str) -> None:
    _refuses_all(store_factory, template)


def test_postgresql_refuses_to_truncate(postgresql_stores: StoreFactory) -> None:
    _refuses_all(postgresql_stores, "TRUNCATE {table}")
