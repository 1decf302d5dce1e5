"""Named faults around a commit: whatever happens, no acknowledged event is lost and the log verifies as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ledger.committer import Committer
from ledger.errors import UnknownActor, Unreachable
from tests.audit import verify_whole_log
from tests.databases import StoreFactory
from tests.logs import ACTORS, Log, artifact, enrolment, event_of, rotation, signed, signer


class Fault(Exception):
    pass


@dataclass
class Trap:
    """Raises at one named point of a commit while it is armed."""

    point: str = ""

    def __call__(self, reached: str) -> None:
        if reached == self.point:
            raise Fault(reached)


@pytest.mark.parametrize("point", ["before_checkpoint", "before_commit"])
def test_fail_before_the_commit(store_factory: StoreFactory, point: str) -> None:
    trap = Trap()
    log = Log(store_factory(at=trap))
    head, entry = log.store.head, log.dataset()
    trap.point = point
    for _ in range(2):
        with pytest.raises(Fault):
            log.append(entry)
    assert log.store.head == head
    assert store_factory.reopen(log.store).head.checkpoint == head.checkpoint
    trap.point = ""
    assert log.append(entry).indexes == (head.size,)
    assert verify_whole_log(log.store) == head.size + 1


def test_fail_after_commit_before_ack(store_factory: StoreFactory) -> None:
    trap = Trap()
    log = Log(store_factory(at=trap))
    size, entry = log.store.head.size, log.dataset()
    trap.point = "after_commit_before_ack"
    with pytest.raises(Fault):
        log.append(entry)
    assert Committer(store_factory.reopen(log.store)).append([entry]).indexes == (size,)
    trap.point = ""
    assert log.append(entry).indexes == (size,)
    assert verify_whole_log(log.store) == log.store.head.size == size + 1


def test_an_actor_whose_enrolment_was_not_acknowledged_may_write(store_factory: StoreFactory) -> None:
    trap = Trap()
    log = Log(store_factory(at=trap))
    key = signer(99)
    trap.point = "after_commit_before_ack"
    with pytest.raises(Fault):
        log.append(signed(enrolment("late", key, "trainer"), ACTORS["ledger"]))
    trap.point = ""
    subject = artifact("datasets/acme/late")
    data = {"org": "acme", "name": "late", "examples": 1, "band": "minimum"}
    log.append(signed(log.event("late", "DatasetRegistered", subject.name, [subject], data), key))
    verify_whole_log(log.store)


def test_a_key_change_whose_commit_fails_changes_nothing(store_factory: StoreFactory) -> None:
    trap = Trap()
    log = Log(store_factory(at=trap))
    old, new = ACTORS["trainer"], signer(99)
    rotated = signed(rotation("trainer", old, new, 2))
    trap.point = "before_commit"
    with pytest.raises(Fault):
        log.append(rotated)
    trap.point = ""
    log.append(log.dataset("by-the-old-key"))
    by_new = signed(event_of(log.dataset("by-the-new-key")), new)
    with pytest.raises(UnknownActor):
        log.append(by_new)
    log.append(rotated)
    log.append(by_new)
    verify_whole_log(log.store)


def test_fail_while_a_tile_is_completed(store_factory: StoreFactory) -> None:
    trap = Trap()
    log = Log(store_factory(at=trap))
    log.append(*log.datasets(255 - log.store.head.size))
    crossing = log.datasets(3, start=1_000)
    for point in ("before_checkpoint", "before_commit", "after_commit_before_ack"):
        trap.point = point
        with pytest.raises(Fault):
            log.append(*crossing)
    trap.point = ""
    assert log.append(*crossing).indexes == (255, 256, 257)
    assert verify_whole_log(log.store) == verify_whole_log(store_factory.reopen(log.store)) == 258


def test_postgresql_going_away_is_an_error_and_coming_back_is_enough(postgresql_stores: StoreFactory) -> None:
    log = Log(postgresql_stores())
    log.append(log.dataset("before"))
    with postgresql_stores()._reader.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s",
            (postgresql_stores.url_of(log.store).split("/")[3].split("?")[0],),
        )
    entry = log.dataset("after")
    try:
        log.append(entry)
    except Unreachable:
        log.append(entry)
    assert verify_whole_log(log.store) == 9
