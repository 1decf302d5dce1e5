"""The ledger's writer and its view are processes of their own: killed at any moment, nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from modelledger.cli.child import Child, environment
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc, registry_pb2, registry_pb2_grpc

from ledger.kit.keys import actor_signer
from ledger.signers import log_signer
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.logs import dataset

T = TypeVar("T")
PROCESSES = ["ledger.writer", "ledger.view_process"]


class Ledger:
    """`python -m modelledger.cli.bench_servers ledger`: a real ledger process, and what it keeps."""

    def __init__(self, data: Path, child: Child) -> None:
        self.data = data
        self.pid = child._process.pid
        self.channel = grpc.insecure_channel(child.ready["grpc"])
        self.log = ledger_pb2_grpc.LedgerServiceStub(self.channel)
        self.registry = registry_pb2_grpc.RegistryServiceStub(self.channel)
        self.trainer = actor_signer(data / "keys" / "trainer.key")

    def processes(self, module: str) -> list[int]:
        """Ids of this ledger's processes that run a module."""
        found = subprocess.run(
            ["pgrep", "--parent", str(self.pid), "--full", f" -m {module} "], capture_output=True, text=True
        )
        return [int(line) for line in found.stdout.split()]

    def kill(self, module: str) -> None:
        for process in self.processes(module):
            os.kill(process, signal.SIGKILL)

    def append(self, *entries: bytes) -> list[int]:
        answer = self.log.AppendEvents(ledger_pb2.AppendEventsRequest(envelopes=entries), timeout=20)
        return [proof.index for proof in answer.proofs]

    def datasets(self) -> list[str]:
        listed = self.registry.ListDatasets(registry_pb2.ListDatasetsRequest(parent="orgs/acme"), timeout=20)
        return [dataset.name for dataset in listed.datasets]

    def verify(self) -> int:
        store = Store(f"sqlite:///{self.data / 'log.db'}", log_signer(self.data / "keys", ""))
        try:
            return verify_whole_log(store)
        finally:
            store.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    data = tmp_path / "data"
    command = [sys.executable, "-m", "modelledger.cli.bench_servers", "ledger", str(data)]
    with Child(command, tmp_path / "ledger.log", environment()) as child:
        running = Ledger(data, child)
        yield running
        running.channel.close()


def test_kill_the_writer_under_load(ledger: Ledger) -> None:
    """Callers are told UNAVAILABLE and may repeat themselves; what was acknowledged stays where it was."""
    events = [dataset(f"d{number}", ledger.trainer) for number in range(400)]
    refusals: list[grpc.StatusCode] = []

    def insist(event: tuple[str, bytes]) -> int:
        while True:
            try:
                return ledger.append(event[1])[0]
            except grpc.RpcError as error:
                refusals.append(error.code())
                time.sleep(0.05)

    moments = random.Random(7)
    with ThreadPoolExecutor(16) as callers:
        answers = callers.map(insist, events)
        for _ in range(5):
            time.sleep(moments.uniform(0.05, 0.3))
            ledger.kill("ledger.writer")
        acknowledged = dict(zip((event_id for event_id, _ in events), answers, strict=True))
    assert set(refusals) <= {grpc.StatusCode.UNAVAILABLE}
    assert len(set(acknowledged.values())) == len(events)
    for event_id, index in acknowledged.items():
        assert ledger.log.GetEvent(ledger_pb2.GetEventRequest(id=event_id)).event.index == index
    assert ledger.verify() == 7 + len(events)


def test_a_killed_view_comes_back(ledger: Ledger) -> None:
    ledger.append(dataset("one", ledger.trainer)[1])
    assert len(ledger.datasets()) == 1
    ledger.kill("ledger.view_process")
    ledger.append(dataset("two", ledger.trainer)[1])
    assert len(_eventually(ledger.datasets)) == 2


def test_a_stopped_view_delays_no_append(ledger: Ledger) -> None:
    (view,) = ledger.processes("ledger.view_process")
    os.kill(view, signal.SIGSTOP)
    try:
        assert ledger.append(dataset("one", ledger.trainer)[1]) == [7]
    finally:
        os.kill(view, signal.SIGCONT)
    assert len(ledger.datasets()) == 1


def test_a_writer_does_not_come_back_to_a_damaged_log(ledger: Ledger) -> None:
    ledger.append(dataset("one", ledger.trainer)[1])
    with sqlite3.connect(ledger.data / "log.db") as connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("UPDATE events SET entry = CAST(replace(entry, 'a', 'b') AS BLOB) WHERE position = 7")
    ledger.kill("ledger.writer")
    entry = dataset("two", ledger.trainer)[1]
    for _ in range(2):
        with pytest.raises(grpc.RpcError, match="event 7 was changed") as caught:
            _eventually(lambda: ledger.append(entry))
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_ledger(ledger: Ledger, number: signal.Signals) -> None:
    processes = [process for module in PROCESSES for process in ledger.processes(module)]
    assert len(processes) == 2
    os.kill(ledger.pid, number)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.02)
    assert ledger.verify() == 7


def _eventually(ask: Callable[[], T]) -> T:
    """The answer once nobody is UNAVAILABLE any more."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
