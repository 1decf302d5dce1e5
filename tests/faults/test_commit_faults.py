"""Named faults around a commit: whatever happens, no acknowledged event is lost and the log verifies as a whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.committer import Committer
from ledger.errors import DamagedLog, OtherLog, Unreachable
from ledger.merkle import consistency_proof, verify_consistency
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.databases import StoreFactory, log_signer, sqlite_factory
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


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, which only root may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no small file system here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def _append_without_end(log: Log, tried: list[bytes]) -> None:
    """Big events, so that the disk is soon full. The last of `tried` is the one that was refused."""
    materials = [artifact("base-models/tiny"), *(artifact(f"datasets/acme/d{i}") for i in range(200))]
    for number in range(1_000):
        request = artifact(f"requests/r{number}")
        asked = {"run": f"r{number}", "org": "acme", "model": "m", "bases": ["tiny"], "dataset": "acme/d0"}
        tried.append(log.sign("trainer", "TrainingRequested", f"training-runs/r{number}", [request], asked, materials))
        log.append(tried[-1])


def _write_until_refused(log: Log) -> bytes:
    tried: list[bytes] = []
    with pytest.raises(Unreachable, match="is full, nothing was recorded; free space"):
        _append_without_end(log, tried)
    return tried[-1]


def test_a_full_disk(small_disk: Path) -> None:
    stores = sqlite_factory(small_disk)
    log = Log(stores())
    log.append(log.base(), *log.datasets(200))
    refused = _write_until_refused(log)
    size = log.store.head.size
    with pytest.raises(Unreachable):
        log.append(refused)
    assert verify_whole_log(log.store) == size
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert log.append(refused).indexes == (size,)
    assert verify_whole_log(stores.reopen(log.store)) == size + 1
    stores.close()


def test_a_full_database(sqlite_stores: StoreFactory) -> None:
    """The same without root: SQLite's own limit on the number of pages."""
    log = Log(sqlite_stores())
    log.append(log.base(), *log.datasets(200))
    _limit_pages(log.store, 300)
    refused = _write_until_refused(log)
    size = log.store.head.size
    assert verify_whole_log(log.store) == size
    _limit_pages(log.store, 1_000_000)
    assert log.append(refused).indexes == (size,)
    assert verify_whole_log(sqlite_stores.reopen(log.store)) == size + 1


def _limit_pages(store: Store, pages: int) -> None:
    with store._writer.connect() as connection:  # the only one in its pool, so the next writer has it
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_read_only_database_is_named_as_such(sqlite_stores: StoreFactory, tmp_path: Path, what: str) -> None:
    log = Log(sqlite_stores())
    log.append(log.dataset())
    log.store.close()
    database = sqlite_stores.file_of(log.store)
    script = f"""
import sys
from ledger.errors import Unreachable
from ledger.store import Store
from tests.databases import log_signer
try:
    Store("sqlite:///{database}", log_signer())
except Unreachable as error:
    print(error.message)
"""
    # Root may write anywhere; without this capability it is told no like everybody else.
    command = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    target = database if what == "file" else tmp_path
    for path in (database, target):
        path.chmod(0o444 if path.is_file() else 0o555)
    try:
        told = subprocess.run(
            [*command, sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            text=True,
            capture_output=True,
            check=True,
        ).stdout
    finally:
        for path in (database, target):
            path.chmod(0o755)
    assert "cannot be opened for writing; check its path and permissions" in told
    assert verify_whole_log(sqlite_stores.reopen(log.store)) == 8


def test_a_directory_that_is_not_there(sqlite_stores: StoreFactory) -> None:
    with pytest.raises(Unreachable, match="cannot be opened for writing; check its path"):
        sqlite_stores.open("sqlite:////nowhere/at/all/log.db")


def test_the_database_of_another_log(store_factory: StoreFactory) -> None:
    log = Log(store_factory())
    with pytest.raises(OtherLog, match="the key file that belongs to this database"):
        store_factory.reopen(log.store, signer=log_signer(b"k" * 32))
    verify_whole_log(log.store)


# Tampering with the file


@dataclass
class Tampered:
    """A closed SQLite log of 600 events, its triggers dropped, to be changed by hand."""

    stores: StoreFactory
    store: Store

    def run(self, statement: str, *values: object) -> None:
        connection = sqlite3.connect(self.stores.file_of(self.store))
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        assert connection.execute(statement, values).rowcount, "nothing was changed"
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stores = sqlite_factory(tmp_path_factory.mktemp("untouched"))
    log = Log(stores())
    log.append(*log.history())
    log.append(*log.datasets(600 - log.store.head.size))
    stores.close()
    return stores.file_of(log.store)


@pytest.fixture
def tampered(sqlite_stores: StoreFactory, untouched: Path) -> Tampered:
    store = sqlite_stores()
    store.close()
    shutil.copyfile(untouched, sqlite_stores.file_of(store))
    return Tampered(sqlite_stores, store)


def _flip(table: str, column: str, row: str) -> str:
    """One byte of a blob, overwritten."""
    changed = f"CAST(substr({column}, 1, 20) || x'00' || substr({column}, 22) AS BLOB)"
    return f"UPDATE {table} SET {column} = {changed} WHERE {row}"  # noqa: S608


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (_flip("events", "entry", "position = 555"), "event 555 was changed"),
        (_flip("events", "leaf_hash", "position = 599"), "event 599 was changed"),
        (_flip("tiles", "hashes", "level = 0 AND tile = 1"), "does not have the root"),
        ("DELETE FROM tiles WHERE level = 0 AND tile = 0", "tile 0 of level 0 is missing"),
        ("UPDATE tiles SET hashes = substr(hashes, 1, 100) WHERE tile = 1", "must have 8192 bytes"),
        ("DELETE FROM events WHERE position = 599", "covers 600 events, but the last event is at position 598"),
        ("DELETE FROM events WHERE position = 540", "needs 88 leaf hashes, got 87"),
        ("DELETE FROM events", "covers 600 events, but the last event is at position None"),
        ("DELETE FROM checkpoints WHERE size = 600", "covers 20 events, but the last event is at position 599"),
        ("DELETE FROM checkpoints", "covers 0 events, but the last event is at position 599"),
        (_flip("checkpoints", "note", "size = 600"), "not signed by this log's key"),
        ("UPDATE checkpoints SET note = (SELECT note FROM checkpoints WHERE size = 20) WHERE size = 600", "the root"),
    ],
)
def test_damage_at_the_right_edge_stops_the_start(tampered: Tampered, statement: str, message: str) -> None:
    tampered.run(statement)
    with pytest.raises((DamagedLog, OtherLog), match=message):
        tampered.stores.reopen(tampered.store)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (_flip("events", "entry", "position = 100"), "event 100 was changed: its bytes"),
        ("UPDATE events SET stream = 'datasets/acme/other' WHERE position = 590", "event 590: stream is kept as"),
        ("UPDATE events SET kind = 'ModelLoaded' WHERE position = 30", "event 30: kind is kept as"),
        (
            "UPDATE introductions SET name = 'base-models/x' WHERE name = 'datasets/acme/faq'",
            "event 8: its introduction",
        ),
        ("DELETE FROM revocations", "event 19: its revocation"),
        (_flip("checkpoints", "note", "size = 7"), "size 7 does not verify: control character"),
    ],
)
def test_damage_in_the_middle_is_found_by_the_audit(tampered: Tampered, statement: str, message: str) -> None:
    tampered.run(statement)
    store = tampered.stores.reopen(tampered.store)
    with pytest.raises((AssertionError, ValueError), match=message):
        verify_whole_log(store)


def test_damage_to_an_old_tile_is_found_by_the_audit(sqlite_stores: StoreFactory) -> None:
    """Beyond 65,536 events a full level 0 tile is no part of the edge; here an extra one stands in for it."""
    log = Log(sqlite_stores())
    log.append(*log.datasets(300))
    Tampered(sqlite_stores, log.store).run("INSERT INTO tiles VALUES (0, 7, zeroblob(8192))")
    with pytest.raises(AssertionError, match="tile 7 of level 0 is kept, which 307 events do not complete"):
        verify_whole_log(sqlite_stores.reopen(log.store))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:100],
        lambda data: b"not a database at all" * 500,
        lambda data: data[:4_096] + b"\xff" * (len(data) - 4_096),
    ],
    ids=["half", "header", "other-file", "overwritten"],
)
def test_a_damaged_file_stops_the_start(tampered: Tampered, damage: Callable[[bytes], bytes]) -> None:
    path = tampered.stores.file_of(tampered.store)
    path.write_bytes(damage(path.read_bytes()))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with pytest.raises(DamagedLog, match="restore"):
        tampered.stores.reopen(tampered.store)
