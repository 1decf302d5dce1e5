"""System calls of a running ledger fail: its callers are told what to do, and nothing is lost, halved or doubled.

tests/faults/test_power_cuts.py says what a power cut would leave after such faults; this is what callers see of them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from modelledger.cli.child import environment
from modelledger.ledger.v1 import ledger_pb2

from ledger.errors import DamagedLog, ModelLedgerError, Unreachable
from ledger.group_store import Group, GroupStore
from ledger.kit.client import call
from ledger.signers import log_signer
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.faults.ledger_process import FOUNDING, Ledger, ledger_process
from tests.faults.strace import calls, failing, strace
from tests.logs import dataset

SIZES = (1, 3, 1, 2, 1)  # events of each request
DISK = "the disk of the ledger's database reports errors, nothing was acknowledged; .* mend the disk, then retry"
# SQLite takes some reads that fail for damage.
UNREAD = f"{DISK}|the ledger's database is damaged or cannot be read; .* mend a disk that reports errors, then retry.*"
DIED = "the process ledger.writer ended while it worked; retry in a moment"
pytestmark = pytest.mark.usefixtures("strace_works")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """One for all of these faults: each leaves it in good order."""
    with ledger_process(tmp_path_factory.mktemp("ledger")) as running:
        yield running


class Caller:
    """Somebody with some requests, and what he was told of each: positions, or an error."""

    def __init__(self, ledger: Ledger, sizes: Sequence[int] = SIZES) -> None:
        self.ledger = ledger
        self.size = ledger.verify()
        self.requests = [
            [dataset(f"{self.size}-{number}-{one}", ledger.trainer)[1] for one in range(size)]
            for number, size in enumerate(sizes)
        ]
        self.answers: list[list[int] | ModelLedgerError] = []

    @property
    def errors(self) -> list[str]:
        return [answer.message for answer in self.answers if isinstance(answer, ModelLedgerError)]

    def append(self) -> None:
        """Every request once."""
        for request in self.requests:
            try:
                self.answers.append(self.ledger.append(*request))
            except (Unreachable, DamagedLog) as error:
                self.answers.append(error)

    def settle(self) -> None:
        """The fault is gone: what was acknowledged is where it was, and the rest is taken when it is sent again."""
        taken: list[int] = []
        for request, answer in zip(self.requests, self.answers, strict=True):
            again = self.ledger.append(*request)
            assert again == list(range(again[0], again[0] + len(request))), "half a request was there"
            assert isinstance(answer, ModelLedgerError) or answer == again, "acknowledged and moved"
            taken += again
        assert sorted(taken) == list(range(self.size, self.size + sum(map(len, self.requests))))
        assert self.ledger.verify() == self.size + len(taken), "acknowledged and lost, or there twice"


def _files(database: Path) -> list[Path]:
    return [database, *(database.with_name(f"{database.name}-{end}") for end in ("wal", "shm"))]


@pytest.mark.parametrize(
    "fault",
    [
        *(f"pwrite64:error=EIO:when={number}" for number in (1, 2, 3, 5, 8, 13, 21)),
        *(f"fdatasync:error=EIO:when={number}" for number in range(1, 6)),
        "pwrite64:error=EIO:when=2+17",
        "fdatasync:error=EIO:when=1+2",
        "fdatasync:error=EIO",
    ],
)
def test_the_log_cannot_be_written(ledger: Ledger, fault: str) -> None:
    caller = Caller(ledger)
    [writer] = ledger.processes("ledger.writer")
    with strace(writer, inject=[fault], paths=_files(ledger.database)):
        caller.append()
    assert caller.errors
    assert all(re.fullmatch(DISK, error) for error in caller.errors)
    assert ledger.processes("ledger.writer") == [writer], "it goes on"
    caller.settle()


def test_the_log_cannot_be_read(ledger: Ledger) -> None:
    caller = Caller(ledger)
    newest = ledger_pb2.GetEventRequest(index=caller.size - 1)
    with closing(GroupStore(f"sqlite:///{ledger.database}")) as groups:  # after which the writer must read again
        assert groups.add(Group("others", "", (), 0, 1, 1, 0), most=10)
    [writer] = ledger.processes("ledger.writer")
    with strace(writer, inject=["pread64:error=EIO"], paths=_files(ledger.database)):
        caller.append()
    with (
        strace(ledger.pid, inject=["pread64:error=EIO"], paths=_files(ledger.database)),
        pytest.raises((Unreachable, DamagedLog), match=UNREAD),
    ):
        call(ledger.log.GetEvent, newest)
    assert caller.errors
    assert all(re.fullmatch(UNREAD, error) for error in caller.errors)
    assert ledger.processes("ledger.writer") == [writer]
    assert call(ledger.log.GetEvent, newest).event.index == caller.size - 1
    caller.settle()


def test_the_writer_cannot_tell_what_it_has_committed(ledger: Ledger) -> None:
    caller = Caller(ledger)
    [writer] = ledger.processes("ledger.writer")
    with strace(writer, inject=["write:error=EIO:when=1"]):
        caller.append()
    assert caller.errors == [DIED]
    assert ledger.verify() == caller.size + sum(SIZES), "the first request was committed"
    assert ledger.processes("ledger.writer") != [writer]
    caller.settle()


def test_a_new_writer_cannot_read_the_log(ledger: Ledger) -> None:
    caller = Caller(ledger)
    # Whatever thread or child: the first read of each fails.
    with strace(ledger.pid, inject=["pread64:error=EIO:when=1"], paths=_files(ledger.database)):
        ledger.kill("ledger.writer")
        caller.append()
    assert len(caller.errors) == len(SIZES)
    assert all(re.fullmatch(f"{UNREAD}|{DIED}", error) for error in caller.errors)
    assert re.fullmatch(UNREAD, caller.errors[-1])
    caller.settle()


def test_pages_cannot_be_moved_from_the_write_ahead_log_into_the_database(tmp_path: Path) -> None:
    """Nobody is told: what is in the write-ahead log is safe there, and moved later."""
    faults, record = ["pwrite64:error=EIO:when=1", "fdatasync:error=EIO:when=1"], tmp_path / "record"
    with ledger_process(tmp_path) as ledger:
        caller = Caller(ledger, [12] * 150)
        [writer] = ledger.processes("ledger.writer")
        with strace(writer, inject=faults, paths=[ledger.database], record=record):
            caller.append()
        assert [found.name for found in calls(record) if found.result < 0] == ["pwrite64", "fdatasync"]
        assert caller.errors == []
        os.kill(ledger.pid, signal.SIGKILL)
    with ledger_process(tmp_path) as caller.ledger:
        caller.settle()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a ledger of 15 events left that was killed: its write-ahead log must be read at the next start."""
    folder = tmp_path_factory.mktemp("killed")
    with ledger_process(folder) as ledger:
        ledger.append(*(dataset(f"d{number}", ledger.trainer)[1] for number in range(15 - FOUNDING)))
        os.kill(ledger.pid, signal.SIGKILL)
    return folder / "data"


@pytest.mark.parametrize(
    "fault",
    [
        *(f"pread64:error=EIO:when={number}" for number in (1, 3, 6, 10, 15, 21, 28)),
        "fdatasync:error=EIO:when=1",
        "ftruncate:error=EIO:when=1",
        "pwrite64:error=EIO:when=1",
    ],
)
def test_the_log_cannot_be_opened(killed: Path, tmp_path: Path, fault: str) -> None:
    """One line says why, and the next start finds everything."""
    data, config = tmp_path / "data", tmp_path / "ledger.toml"
    shutil.copytree(killed, data)
    config.write_text(f"[ledger]\ndata = '{data}'\nlisten = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\n")
    command = failing(fault, _files(data / "log.db"), [sys.executable, "-m", "ledger", str(config)])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(f"error: ({UNREAD})", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    with closing(Store(f"sqlite:///{data / 'log.db'}", log_signer(data / "keys", ""))) as store:
        assert verify_whole_log(store) == 15
