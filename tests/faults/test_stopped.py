"""A ledger, or one of its processes, is stopped under load and goes on later: callers know, and nothing is doubled."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest
from modelledger.ledger.v1 import ledger_pb2

from ledger.errors import Unreachable
from ledger.kit.client import stream
from tests.faults.ledger_process import FOUNDING, Ledger
from tests.house import eventually
from tests.logs import dataset

CALLERS, PATIENCE = 8, 0.5  # seconds that each of them waits for an answer
SAID = "no answer from the service (Deadline Exceeded); is it running? start it with: modelledger up"


@dataclass
class Load:
    """Callers that append one event after another, each again and again until somebody answers."""

    ledger: Ledger
    entries: dict[str, bytes] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    refusals: list[tuple[int, str]] = field(default_factory=list)  # caller, what it was told
    watched: list[int] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def call(self, caller: int) -> None:
        for number in itertools.count():
            if self.ended.is_set():
                return
            event_id, entry = dataset(f"d{caller}-{number}", self.ledger.trainer)
            self.entries[event_id] = entry
            while event_id not in self.acknowledged:
                try:
                    [self.acknowledged[event_id]] = self.ledger.append(entry, timeout=PATIENCE)
                except Unreachable as error:
                    self.refusals.append((caller, error.message))

    def watch(self, pages: Iterator[ledger_pb2.WatchEventsResponse]) -> None:
        for page in pages:
            self.watched += [event.index for event in page.events]

    def goes_on(self) -> None:
        """Wait for some more answers."""
        before = len(self.acknowledged)
        eventually(lambda: len(self.acknowledged) > before + 2 * CALLERS, 20)

    def is_told(self) -> None:
        """Wait until every caller has given up at least once from now on."""
        before = len(self.refusals)
        eventually(lambda: len({caller for caller, _ in self.refusals[before:]}) == CALLERS, 20)


@contextmanager
def load(ledger: Ledger) -> Iterator[Load]:
    running = Load(ledger)
    cancel, pages = stream(ledger.log.WatchEvents, ledger_pb2.WatchEventsRequest())
    with ThreadPoolExecutor(CALLERS + 1) as threads:
        watching = threads.submit(running.watch, pages)
        calling = [threads.submit(running.call, caller) for caller in range(CALLERS)]
        try:
            yield running
        finally:
            running.ended.set()
            wait(calling)
            with suppress(AssertionError):  # the test says what is missing
                eventually(lambda: len(running.watched) == FOUNDING + len(running.entries), 10)
            cancel()
    for done in calling:
        done.result()
    with pytest.raises(Unreachable, match="ancelled"):
        watching.result()


@pytest.mark.parametrize("which", ["ledger", "writer", "all"])
def test_stopped_under_load(ledger: Ledger, which: str) -> None:
    companions = ledger.processes()
    assert len(companions) == 2
    processes = {"ledger": [ledger.pid], "writer": ledger.processes("ledger.writer"), "all": [ledger.pid, *companions]}
    with load(ledger) as running, ThreadPoolExecutor(1) as patient:
        for _ in range(2):
            running.goes_on()
            with _stopped(processes[which]):
                running.is_told()
                event_id, entry = dataset(f"patient-{len(running.entries)}", ledger.trainer)
                waits = patient.submit(ledger.append, entry)
                running.is_told()
                assert not waits.done()
            [running.acknowledged[event_id]] = waits.result(30)
            running.entries[event_id] = entry
        running.goes_on()
    assert {message for _, message in running.refusals} == {SAID}
    assert ledger.processes() == companions, "nobody died of it"
    entries = list(running.entries.values())
    positions = [running.acknowledged[event_id] for event_id in running.entries]
    assert ledger.append(*entries[:900]) == positions[:900]
    assert sorted(positions) == running.watched[FOUNDING:] == list(range(FOUNDING, FOUNDING + len(entries)))
    assert ledger.verify() == FOUNDING + len(entries), "acknowledged and lost, or there twice"


@contextmanager
def _stopped(processes: list[int]) -> Iterator[None]:
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
