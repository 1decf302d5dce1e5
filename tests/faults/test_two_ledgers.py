"""Two ledgers on one database: killed, stopped, or without their database, they lose nothing and never fork the log."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from modelledger.ledger.v1 import ledger_pb2

from ledger.database import IDLE_SECONDS
from tests.databases import Cluster, postgresql_cluster
from tests.logs import dataset
from tests.two_ledgers import LedgerProcess, Load, TwoLedgers, two_ledgers

pytestmark = pytest.mark.slow  # for each test two ledgers of three processes start, and most are killed and start again
TAKE_OVER_SECONDS = 5.0
# Who holds the lock that a ledger takes to write, and is doing nothing at the moment.
_HOLDS_THE_LOG = """
    SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND state = 'idle in transaction' AND datname = current_database()
      AND objid = (hashtext('modelledger')::bigint & 4294967295)::oid
"""
_OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Of these tests alone: it is killed, and comes back."""
    with postgresql_cluster() as running:
        yield running


@pytest.fixture
def ledgers(tmp_path: Path, cluster: Cluster) -> Iterator[TwoLedgers]:
    with two_ledgers(tmp_path, cluster.new_url()) as both:
        yield both


def test_what_one_ledger_writes_the_other_serves_within_a_second(ledgers: TwoLedgers) -> None:
    other = ledgers.second
    watching = other.log.WatchEvents(ledger_pb2.WatchEventsRequest(kinds=["DatasetRegistered"]), timeout=60)
    assert not next(watching).events
    waited = []
    for number in range(3):
        event_id, entry = dataset(f"d{number}", ledgers.trainer)
        written = ledgers.first.append(entry).checkpoint
        began = time.monotonic()
        assert [event.id for event in next(watching).events] == [event_id]
        waited.append(time.monotonic() - began)
        assert other.checkpoint() == httpx.get(f"http://{other.http}/checkpoint").content == written
    watching.cancel()
    assert min(waited) < 1.5  # a second, and some for a busy machine


def test_kill_the_writer_and_take_over(ledgers: TwoLedgers) -> None:
    moments = random.Random(3)
    load = Load(ledgers, ledgers.first, ledgers.second)
    with load:
        for _ in range(3):
            time.sleep(moments.uniform(0.5, 1.5))
            load.writer.kill()
            assert load.first_append(load.reader) < TAKE_OVER_SECONDS
            time.sleep(0.3)
            load.writer.launch()
            load.writer.wait_until_ready()
            load.writer, load.reader = load.reader, load.writer
    assert load.refusals <= {grpc.StatusCode.UNAVAILABLE}
    load.check()


def test_a_stopped_writer_loses_its_lock_and_cannot_fork_the_log(ledgers: TwoLedgers, cluster: Cluster) -> None:
    stopped, other = ledgers.first, ledgers.second
    load = Load(ledgers, stopped, other)
    with load:
        time.sleep(0.5)
        load.writer = load.reader  # who calls for the next time calls the other one
        _stop_inside_a_transaction(stopped, cluster)
        waited = load.first_append(other)
        assert waited < IDLE_SECONDS + 3
        time.sleep(0.5)
        stopped.signal(signal.SIGCONT)
        assert load.first_append(stopped) < TAKE_OVER_SECONDS
        time.sleep(0.5)
    assert load.refusals <= {grpc.StatusCode.UNAVAILABLE}
    load.check()


def _stop_inside_a_transaction(ledger: LedgerProcess, cluster: Cluster) -> None:
    with cluster.connect(cluster.newest) as connection:
        for _ in range(500):
            ledger.signal(signal.SIGSTOP)
            time.sleep(0.02)  # what was on its way to the database has arrived
            if connection.execute(_HOLDS_THE_LOG).fetchall():
                return
            ledger.signal(signal.SIGCONT)
            time.sleep(0.02)
    raise AssertionError("it was never stopped inside a transaction")


def _terminate(cluster: Cluster) -> None:
    """Every session of the ledgers ends."""
    with cluster.connect(cluster.newest) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid) {_OTHERS}")


def _kill_one(cluster: Cluster) -> None:
    """One server process dies of kill -9; PostgreSQL ends all of them and recovers."""
    with cluster.connect(cluster.newest) as connection:
        [(process,)] = connection.execute(f"SELECT pid {_OTHERS} ORDER BY query_start DESC LIMIT 1").fetchall()
    os.kill(process, signal.SIGKILL)


def _restart(cluster: Cluster) -> None:
    cluster.crash()
    time.sleep(0.7)
    cluster.start()


@pytest.mark.parametrize("fault", [_terminate, _kill_one, _restart])
def test_the_database_dies_mid_load(ledgers: TwoLedgers, cluster: Cluster, fault: Callable[[Cluster], None]) -> None:
    moments = random.Random(11)
    load = Load(ledgers, ledgers.first, ledgers.second)
    with load:
        for _ in range(3):
            time.sleep(moments.uniform(0.3, 0.8))
            fault(cluster)
            for ledger in (load.writer, load.reader):
                load.first_append(ledger)
    # A session that ends between two commits is replaced before anybody notices.
    assert load.refusals <= {grpc.StatusCode.UNAVAILABLE}
    load.check()
