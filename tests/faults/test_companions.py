"""The ledger's writer and its view are processes of their own: killed at any moment, nothing is lost."""

from __future__ import annotations

import os
import random
import runpy
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from modelledger.ledger.v1 import ledger_pb2

from ledger import writer
from ledger.errors import Damaged, DamagedLog, Unreachable
from tests.faults.ledger_process import FOUNDING, Ledger, ledger_process
from tests.logs import dataset

T = TypeVar("T")
PROCESSES = ["ledger.writer", "ledger.view_process"]


def test_kill_the_writer_under_load(ledger: Ledger) -> None:
    """Callers are told Unreachable and may repeat themselves; what was acknowledged stays where it was."""
    events = [dataset(f"d{number}", ledger.trainer) for number in range(400)]

    def insist(event: tuple[str, bytes]) -> int:
        while True:
            try:
                return ledger.append(event[1])[0]
            except Unreachable:
                time.sleep(0.05)

    moments = random.Random(7)
    with ThreadPoolExecutor(16) as callers:
        answers = callers.map(insist, events)
        for _ in range(5):
            time.sleep(moments.uniform(0.05, 0.3))
            ledger.kill("ledger.writer")
        acknowledged = dict(zip((event_id for event_id, _ in events), answers, strict=True))
    assert len(set(acknowledged.values())) == len(events)
    for event_id, index in acknowledged.items():
        assert ledger.log.GetEvent(ledger_pb2.GetEventRequest(id=event_id)).event.index == index
    assert ledger.verify() == FOUNDING + len(events)


def test_a_killed_view_comes_back(ledger: Ledger) -> None:
    ledger.append(dataset("one", ledger.trainer)[1])
    assert len(ledger.datasets()) == 1
    ledger.kill("ledger.view_process")
    ledger.append(dataset("two", ledger.trainer)[1])
    assert len(_eventually(ledger.datasets)) == 2


def test_a_damaged_file_of_views_keeps_nobody_from_appending(tmp_path: Path) -> None:
    """Readers learn what to do about it."""
    with ledger_process(tmp_path) as ledger:
        ledger.append(dataset("one", ledger.trainer)[1])
        assert len(ledger.datasets()) == 1
    for path in ledger.data.glob("log-views.db-*"):
        path.unlink()
    views = ledger.data / "log-views.db"
    views.write_bytes(b"no database" * 1_000)
    with ledger_process(tmp_path) as ledger:
        ledger.append(dataset("two", ledger.trainer)[1])
        for _ in range(2):
            with pytest.raises(Damaged, match="delete the file"):
                ledger.datasets()
    views.unlink()
    with ledger_process(tmp_path) as ledger:
        assert len(ledger.datasets()) == 2
        assert ledger.verify() == FOUNDING + 2


def test_a_stopped_view_delays_no_append(ledger: Ledger) -> None:
    (view,) = ledger.processes("ledger.view_process")
    os.kill(view, signal.SIGSTOP)
    try:
        assert ledger.append(dataset("one", ledger.trainer)[1]) == [FOUNDING]
    finally:
        os.kill(view, signal.SIGCONT)
    assert len(ledger.datasets()) == 1


def test_a_writer_does_not_come_back_to_a_damaged_log(ledger: Ledger) -> None:
    ledger.append(dataset("one", ledger.trainer)[1])
    with sqlite3.connect(ledger.database) as connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("UPDATE events SET entry = CAST(replace(entry, 'a', 'b') AS BLOB) WHERE position = 7")
    ledger.kill("ledger.writer")
    entry = dataset("two", ledger.trainer)[1]
    for _ in range(2):
        with pytest.raises(DamagedLog, match="event 7 was changed"):
            _eventually(lambda: ledger.append(entry))


def test_a_writer_stays_awake_for_a_lone_caller_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Callable[[object], float]] = []
    monkeypatch.setattr("ledger.kit.answering.answer_questions", lambda open_it, attentive: given.append(attentive))
    runpy.run_path(writer.__file__, run_name="__main__")
    (attentive,) = given
    assert 0 < writer.ATTENTIVE < 0.01
    assert attentive([[b"one event"]]) == attentive([[b"two", b"events"]]) == writer.ATTENTIVE
    assert attentive([[b"one"], [b"and another caller's"]]) == 0


def test_a_writer_sleeps_when_nobody_appends(ledger: Ledger) -> None:
    ledger.append(dataset("one", ledger.trainer)[1])
    (process,) = ledger.processes("ledger.writer")
    before = _seconds_of_work(process)
    time.sleep(1)
    assert _seconds_of_work(process) - before < 0.3


def _seconds_of_work(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_ledger(ledger: Ledger, number: signal.Signals) -> None:
    processes = [process for module in PROCESSES for process in ledger.processes(module)]
    assert len(processes) == 2
    os.kill(ledger.pid, number)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.02)
    assert ledger.verify() == FOUNDING


def _eventually(ask: Callable[[], T]) -> T:
    """The answer once nobody is Unreachable any more."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask()
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
