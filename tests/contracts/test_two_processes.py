"""Two processes on one database, and a database that refuses to be changed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ledger.committer import Committer
from ledger.errors import DamagedLog
from ledger.events import ROLES
from ledger.following import Follower
from ledger.founding import found
from ledger.signers import actor_signers
from ledger.statement import Event
from ledger.store import Store
from ledger.view_store import ViewMoved, ViewRows
from ledger.views import ViewRunner
from tests.audit import verify_whole_log
from tests.databases import StoreFactory
from tests.logs import ACTORS, Log, artifact, enrolment, event_of, in_process, signed, signer

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


def test_a_view_that_another_process_has_just_folded_further_is_no_damage(
    log: Log, store_factory: StoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fold(event: Event, index: int, rows: ViewRows) -> None:
        """Nothing."""

    view = ViewRunner(log.store, "counting", fold)
    other = store_factory.reopen(log.store)
    refresh = other.refresh

    def refresh_and_then_others_go_on() -> None:
        refresh()
        log.append(log.dataset(f"d{log.store.head.size}"))
        while view.position < log.store.head.size:
            view._fold_batch()

    monkeypatch.setattr(other, "refresh", refresh_and_then_others_go_on)
    for _ in range(2):
        ViewRunner(other, "counting", fold)


def test_an_event_that_is_found_by_its_id_is_in_the_log_that_is_seen(log: Log, store_factory: StoreFactory) -> None:
    """Whoever finds that an event is there already asks for its proof, or for what a view makes of it."""
    other = store_factory.reopen(log.store)
    entry = log.dataset()
    (index,) = log.append(entry).indexes
    assert other.head.size == index
    assert other.get_by_id(event_of(entry).id).position == index
    assert other.head.size == index + 1


def test_another_process_sees_what_was_committed_when_it_looks(log: Log, store_factory: StoreFactory) -> None:
    other = store_factory.reopen(log.store)
    log.append(log.dataset())
    assert other.head.size == log.store.head.size - 1
    other.refresh()
    assert other.head.checkpoint == log.store.head.checkpoint


def test_a_follower_sees_it_without_being_asked_and_tells_listeners(log: Log, store_factory: StoreFactory) -> None:
    other = store_factory.reopen(log.store)
    told: list[int] = []
    other.listeners.add(lambda head: told.append(head.size))
    follower = Follower(other, interval=0.01)
    follower.start()
    for number in range(3):
        log.append(log.dataset(f"d{number}"))
        assert other.wait(log.store.head.size - 1, timeout=10)
    follower.stop()
    assert not follower.is_alive()
    assert told == sorted(told)
    assert told[-1] == log.store.head.size


def test_a_head_never_goes_back(log: Log) -> None:
    older = log.store.head
    log.append(log.dataset())
    newer = log.store.head
    log.store.see(older)
    assert log.store.head == newer


def test_a_store_may_be_opened_while_others_write(log: Log, store_factory: StoreFactory) -> None:
    stopped = threading.Event()

    def write() -> None:
        while not stopped.is_set():
            log.append(log.dataset(f"d{log.store.head.size}"))

    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(write)
        try:
            for _ in range(20):
                store_factory.reopen(log.store).close()
        finally:
            stopped.set()
        writing.result()


def test_ledgers_may_found_a_log_at_the_same_moment(store_factory: StoreFactory, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    signers = actor_signers(keys)
    stores = [store_factory()]
    stores += [store_factory.reopen(stores[0]) for _ in range(2)]
    together = threading.Barrier(len(stores))

    def start(store: Store) -> None:
        committer = Committer(store)
        together.wait()
        found(committer, store.signer, signers, keys / "log.vkey")

    with ThreadPoolExecutor(len(stores)) as threads:
        list(threads.map(start, stores))
    stores[0].refresh()
    assert verify_whole_log(stores[0]) == stores[0].head.size == len(ROLES) + 1


# A database that was put back to an earlier state


def _forget(log: Log, size: int) -> None:
    """What only the owner of the tables can do."""
    with log.store._writer.begin() as connection:
        for table, column in (("events", "position >="), ("checkpoints", "size >"), ("introductions", "position >=")):
            if connection.dialect.name == "sqlite":
                connection.execute(text(f"DROP TRIGGER {table}_no_delete"))
            else:
                connection.execute(text(f"DROP TRIGGER {table}_no_change ON {table}"))
            connection.execute(text(f"DELETE FROM {table} WHERE {column} {size}"))  # noqa: S608


@pytest.mark.parametrize("written_since", [0, 1, 2])
def test_a_ledger_does_not_go_on_with_a_log_that_forgot_events(
    log: Log, store_factory: StoreFactory, written_since: int
) -> None:
    """Also when it has as many again by now, or more."""
    log.append(log.dataset("forgotten"))
    size = log.store.head.size
    _forget(log, size - 1)
    later = Log(store_factory.reopen(log.store))
    for number in range(written_since):
        later.append(later.dataset(f"d{number}"))
    head = log.store.head
    for attempt in (log.store.refresh, lambda: log.append(log.dataset("next"))):
        with pytest.raises(DamagedLog, match="put back to an earlier state"):
            attempt()
    assert log.store.head == head
    assert verify_whole_log(later.store) == size - 1 + written_since


# Immutability


IMMUTABLE = ["events", "tiles", "checkpoints", "introductions", "revocations"]


def _refuses_all(stores: StoreFactory, template: str) -> None:
    log = Log(stores())
    log.append(*log.history(), *log.datasets(256))
    columns = {"tiles": "hashes", "events": "entry", "checkpoints": "note"}
    for table in IMMUTABLE:
        statement = text(template.format(table=table, column=columns.get(table, "sha256")))
        with (
            pytest.raises(DBAPIError, match=f"{table} are never changed"),
            log.store._writer.begin() as connection,
        ):
            connection.execute(statement)
    verify_whole_log(log.store)


@pytest.mark.parametrize("template", ["UPDATE {table} SET {column} = {column}", "DELETE FROM {table}"])
def test_the_database_refuses_to_change_what_is_written(store_factory: StoreFactory, template: str) -> None:
    _refuses_all(store_factory, template)


def test_postgresql_refuses_to_truncate(postgresql_stores: StoreFactory) -> None:
    _refuses_all(postgresql_stores, "TRUNCATE {table}")
