"""A child process that answers questions, in their order: how it is started, and its main function.

    process = start_answering("ledger.writer")     # `python -m ledger.writer`, which calls
    answer_questions(open_it)                      # open_it(settings) gives the function that begins with a question

The first question is what the child is opened with; its answer is None. A question that is there before the one in
front of it is answered is begun meanwhile. Questions come over the child's stdin, answers go over a pipe of their own:
whatever prints to stdout lands on stderr. The child ends when its stdin does, and the kernel ends it with the parent.
Who asks: ledger/kit/companion.py for an event loop, ledger/kit/helper.py for a thread that must not wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from ledger.errors import ModelLedgerError
from ledger.kit.child import die_with_parent
from ledger.kit.collecting import collect_rarely
from ledger.kit.frames import Frames, frame

log = logging.getLogger("modelledger.answering")

Begin = Callable[[Any], Callable[[], Any]]
"""Begins with a question; what it gives is called for the answer, in the order of the questions."""

Attentive = Callable[[Any], float]
"""Seconds for which the next question is awaited without going to sleep, after this one, or the first, is answered."""


@dataclass(frozen=True)
class Answering:
    """The child, and the ends of its pipes that are the parent's."""

    child: subprocess.Popen[bytes]
    questions: IO[bytes]
    answers: IO[bytes]

    def end(self) -> None:
        """End it whatever it is doing."""
        self.child.kill()
        self.questions.close()
        self.answers.close()
        self.child.wait()


def start_answering(module: str) -> Answering:
    """Start `python -m module`. Raises OSError when there is no room for it."""
    with contextlib.ExitStack() as undone:
        with _interrupted_afterwards():
            answers, writing = _pipe()
            undone.callback(answers.close)
            try:
                child = subprocess.Popen(
                    # -P: what lies in the folder that somebody happens to stand in is not our code.
                    [sys.executable, "-P", "-m", module, str(os.getpid()), str(writing)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL if sys.__stderr__ is None else 2,
                    bufsize=0,
                    pass_fds=[writing],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                )
            finally:
                os.close(writing)
            answering = Answering(child, child.stdin, answers)  # type: ignore[arg-type]  # it was made with a pipe
            undone.callback(answering.end)
        undone.pop_all()
    return answering


@contextlib.contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Have Ctrl-C wait until the end: in the middle of Popen it would leave the child behind.

    It is blocked, so that a child is born with it blocked: Ctrl-C is the parent's, also before the child can say so.
    That holds for this thread; whichever thread takes it, Python's handler runs in the main one, so it is held there.
    """
    pressed: list[Any] = []
    handler = signal.getsignal(signal.SIGINT)
    held = callable(handler) and threading.current_thread() is threading.main_thread()
    if held:
        signal.signal(signal.SIGINT, lambda *what: pressed.append(what))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if held:
            signal.signal(signal.SIGINT, handler)
        if pressed and callable(handler):
            handler(*pressed[0])


def _pipe() -> tuple[IO[bytes], int]:
    """A pipe's ends, to read and to write, under numbers that a child's stdin, stdout and stderr do not have."""
    ends = os.pipe()
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in ends)
    for end in ends:
        os.close(end)
    return os.fdopen(reading, "rb", buffering=0), writing


def answer_questions(open_it: Callable[[Any], Begin], attentive: Attentive = lambda question: 0.0) -> None:
    """The child's main function. A question that has come is begun before the one in front of it is answered."""
    parent, answers = map(int, sys.argv[1:])
    die_with_parent(parent)
    for interruption in (signal.SIGINT, signal.SIGTERM):  # the parent says when it is over
        signal.signal(interruption, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    questions, child = Frames(sys.stdin.fileno()), _Child(open_it)
    come: deque[Any] = deque()
    begun: deque[tuple[Any, Callable[[], Any]]] = deque()
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        while True:
            come += questions.take(wait=not come and not begun)
            while come and len(begun) < 2:
                question = come.popleft()
                begun.append((question, child.begin(question)))
            if not begun:
                return
            question, answer = begun.popleft()
            _write(answers, frame(answer()))
            seconds = 0.0 if come or begun else attentive(question)
            del question, answer  # they may be large, and the next one may be long in coming
            if seconds:
                questions.watch(seconds)


def _write(file: int, data: bytes) -> None:
    """All of it, or what cannot be written is never written: no buffer that is flushed when the process ends."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


class _Child:
    """What the first question opens, and every other one asks."""

    def __init__(self, open_it: Callable[[Any], Begin]) -> None:
        self._open = open_it
        self._begin: Begin | None = None

    def begin(self, question: Any) -> Callable[[], Any]:
        """What gives the answer, or the error as an answer."""
        try:
            if self._begin is not None:
                return partial(self._finish, self._begin(question))
            self._begin = self._open(question)
            collect_rarely()
        except Exception as error:
            return partial(portable, error)
        return lambda: None

    def _finish(self, answer: Callable[[], Any]) -> Any:
        try:
            return answer()
        except Exception as error:
            return portable(error)


def portable(error: Exception) -> Exception:
    """An error as it can be sent: one of our tree as it is, a fault of ours by its name, its traceback in the log."""
    if isinstance(error, ModelLedgerError):
        return error.with_traceback(None)
    log.error("something unexpected", exc_info=error)
    return RuntimeError(f"in a companion process: {error!r}")
