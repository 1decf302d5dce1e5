"""Named faults around a commit: whatever happens, no acknowledged event is lost and the log verifies as a whole."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from dataclasses import dataclass, field

import pytest

from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.committer import Committer
from ledger.errors import Unreachable
from ledger.merkle import consistency_proof, verify_consistency
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.databases import StoreFactory, log_signer
from tests.faults.writer import Message, write_until_killed
from tests.logs import ACTORS, Log, artifact, enrolment, event_of, signed, signer

POINTS = ["before_checkpoint", "before_commit", "after_commit_before_ack"]


class Fault(Exception):
    pass


@dataclass
class Trap:
    """Raises at one named point of a commit while it is armed."""

    point: str = ""

    def __call__(self, reached: str) -> None:
        if reached == self.point:
            raise Fault(reached)


# Faults inside the process


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


# kill -9 of a writer


@dataclass
class Crashes:
    """Starts writers on one database, kills them, and holds the log to everything they were told."""

    stores: StoreFactory
    store: Store
    acknowledged: dict[str, int] = field(default_factory=dict)
    newest: Checkpoint = field(init=False)
    in_doubt: int = 0  # events whose writer was killed between `try` and `ack`

    def __post_init__(self) -> None:
        Log(self.store)
        self.newest = self._open(self.store.head.checkpoint)

    def live(self, *, point: str = "", countdown: int = 0, seconds: float = 0.0) -> None:
        """One writer's life, until it kills itself at `point`, or for some seconds after it was ready."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.writer"])
        ours, theirs = context.Pipe(duplex=False)
        url = self.stores.url_of(self.store)
        child = context.Process(target=write_until_killed, args=(url, theirs, point, countdown))
        child.start()
        theirs.close()
        assert ours.poll(30), "the writer did not start"
        ready: Message = ours.recv()
        assert ready[2] >= self.newest.size, "the writer came back to a shorter log"
        if not point:
            time.sleep(seconds)
            child.kill()
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        tried = b""
        try:
            while True:
                kind, content, index, checkpoint = ours.recv()
                if kind == "try":
                    tried = content
                else:
                    self.acknowledged[content.decode()] = index
                    self.newest, tried = self._open(checkpoint), b""
        except (EOFError, OSError):
            pass  # the pipe ends where the writer was killed
        self._check(tried)

    def _check(self, tried: bytes) -> None:
        store = self.stores.reopen(self.store)
        lost = [one for one, index in self.acknowledged.items() if store.get_by_id(one).position != index]
        assert not lost, f"acknowledged and lost: {lost}"
        current, tiles = self._open(store.head.checkpoint), store.tiles()
        proof = consistency_proof(tiles, self.newest.size, current.size)
        verify_consistency(self.newest.size, current.size, self.newest.root, current.root, proof)
        if tried:
            self.in_doubt += 1
            (index,) = Committer(store).append([tried]).indexes
            self.acknowledged[event_of(tried).id] = index
        store.close()

    def _open(self, note: bytes) -> Checkpoint:
        return open_checkpoint(note, [log_signer().verifier], "test.log")


@pytest.mark.parametrize("point", POINTS)
def test_kill_at_a_named_point(store_factory: StoreFactory, point: str) -> None:
    crashes = Crashes(store_factory, store_factory())
    for countdown in range(1, 4 if store_factory.kind == "sqlite" else 2):
        crashes.live(point=point, countdown=countdown)
        assert crashes.in_doubt == countdown
    assert len(crashes.acknowledged) == sum(range(1, crashes.in_doubt + 1))
    verify_whole_log(store_factory.reopen(crashes.store))


def test_kill_at_random_moments(store_factory: StoreFactory) -> None:
    crashes = Crashes(store_factory, store_factory())
    moments = random.Random(20_261)
    for _ in range(21 if store_factory.kind == "sqlite" else 7):
        crashes.live(seconds=moments.uniform(0.0, 0.12))
    assert len(crashes.acknowledged) > 10
    assert verify_whole_log(store_factory.reopen(crashes.store)) == len(crashes.acknowledged) + 7


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
