"""A helper process answers in order, and what is not an answer makes it Lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.kit.helper import Helper, Lost, answered


@pytest.fixture
def helper() -> Iterator[Helper[str]]:
    helper: Helper[str] = Helper("tests.services.odd_answers")
    yield helper
    helper.close()


def _start(helper: Helper[str]) -> None:
    assert answered([helper], 30), "it starts"
    assert helper.ready


def _answer(helper: Helper[str], question: str) -> list[tuple[str, object]]:
    assert helper.ask(f"about {question}", question)
    assert answered([helper], 30)
    return list(helper.answers())


def _insist(helper: Helper[str], question: str) -> None:
    while True:  # what nobody asked may be taken for the answer to the question before it
        _answer(helper, question)


def test_what_is_printed_is_no_answer_and_lands_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    helper: Helper[str] = Helper("tests.services.odd_answers")
    _start(helper)
    assert _answer(helper, "one") == [("about one", "one")]
    assert _answer(helper, "two") == [("about two", "two")]
    helper.process.stdin.close()  # type: ignore[union-attr]  # it was made with a pipe
    helper.process.wait()  # and has written what it printed
    helper.close()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "this neither" in printed.err
    assert "this is no answer" in printed.err
    assert "nor this" in printed.err


@pytest.mark.parametrize("question", ["unreadable", "unasked"])
def test_it_is_lost_with_what_is_no_answer(helper: Helper[str], question: str) -> None:
    _start(helper)
    with pytest.raises(Lost):
        _insist(helper, question)


def test_it_is_lost_when_its_start_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNREADABLE", "")
    helper: Helper[str] = Helper("tests.services.odd_answers")
    _start(helper)
    with pytest.raises(Lost):
        _insist(helper, "one")
    helper.close()


@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_while_it_starts_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Another thread may take the signal that this one blocks; the main thread raises it all the same."""
    started: list[int] = []
    over = threading.Event()
    for _ in range(threads):
        threading.Thread(target=over.wait).start()

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self.pid)
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(100):  # it is raised, if it is, between two steps
                time.sleep(0.001)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = _open_files(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(KeyboardInterrupt):
        Helper("tests.services.odd_answers")
    over.set()
    assert (_open_files(), signal.pthread_sigmask(signal.SIG_BLOCK, [])) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_one_that_cannot_be_started_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before = _open_files(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(OSError, match="/no/such/python"):
        Helper("tests.services.odd_answers")
    assert (_open_files(), signal.pthread_sigmask(signal.SIG_BLOCK, [])) == before


def test_its_parent_still_hears_ctrl_c(helper: Helper[str]) -> None:
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("closed", ["0<&- 1>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_hindrance(tmp_path: Path, closed: str) -> None:
    """The numbers of stdin, stdout and stderr are another file's then."""
    told = tmp_path / "answers"
    script = f"{sys.executable} -m tests.services.closed_streams {told} {closed}"
    subprocess.run(["sh", "-c", script], timeout=60, check=True)
    assert told.read_text() == "one two"


def test_ctrl_c_ends_none_that_has_only_just_started(helper: Helper[str]) -> None:
    os.kill(helper.process.pid, signal.SIGINT)
    _start(helper)
    assert _answer(helper, "one") == [("about one", "one")]


def test_many_open_files_are_no_hindrance() -> None:
    """select(2) takes no file descriptor above 1,023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4_096, hard), hard))
    opened = [os.dup(0) for _ in range(1_100)]
    try:
        helper: Helper[str] = Helper("tests.services.odd_answers")
        assert helper.fileno() > 1_023
        _start(helper)
        assert _answer(helper, "one") == [("about one", "one")]
        helper.close()
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
