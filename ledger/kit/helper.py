"""A helper process that is asked several things at once, for a thread that must never wait for it.

    helper = Helper("ledger.verifying")              # `python -m ledger.verifying` calls companion.answer_questions
    if helper.ready and helper.ask(piece, checks):   # False, and nothing is asked, while that would wait
        ...
    select.select([helper], [], [], 0)               # whether it has answered something
    for piece, verdicts in helper.answers():         # in the order in which it was asked
        ...

What a helper is for can be done without it: one that is `Lost` is closed, and whoever asked does what it was asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from mmap import PAGESIZE
from typing import Any, Generic, TypeVar

from ledger.kit.companion import Frames, frame

MAX_UNANSWERED = 1 << 20  # bytes that one helper is asked; what one user's pipe may hold, pipe(7)

T = TypeVar("T")


class Lost(Exception):
    """The process has ended, or its answers make no sense."""


class Helper(Generic[T]):
    """`asked`: what it has not answered yet, in the order in which it will. Raises OSError when there is no room."""

    def __init__(self, module: str) -> None:
        self.process = subprocess.Popen(
            # -P: what lies in the folder that somebody happens to stand in is not our code.
            [sys.executable, "-P", "-m", module, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self.asked: deque[T] = deque()
        self._bytes: deque[int] = deque()
        self._started = False
        self._answers = Frames(self.fileno())
        try:  # so that asking never waits, whatever the helper does
            fcntl.fcntl(self.process.stdin, fcntl.F_SETPIPE_SZ, MAX_UNANSWERED)  # type: ignore[arg-type]  # a pipe
        except OSError:  # one user's pipes have a limit, pipe(7)
            self.close()
            raise
        self._write(frame(None))

    @property
    def ready(self) -> bool:
        """Whether it has started; it says so by answering its first question."""
        if not self._started and select.select([self], [], [], 0)[0]:
            self._answers.take(wait=True)
            self._started = True
        return self._started

    def ask(self, about: T, question: Any) -> bool:
        """False, and nothing is asked, when this would wait: the question, with what is not answered yet, is larger
        than the pipe."""
        data = frame(question)
        size = -(-len(data) // PAGESIZE) * PAGESIZE  # what is written to a pipe takes whole pages, pipe(7)
        if sum(self._bytes) + size > MAX_UNANSWERED:
            return False
        self.asked.append(about)
        self._bytes.append(size)
        self._write(data)
        return True

    def answers(self) -> Iterator[tuple[T, Any]]:
        """What it was asked, with its answer, as far as answers have come. Raises Lost."""
        found = self._answers.read()
        if found is None:
            raise Lost
        for answer in found:
            if not self.asked:
                raise Lost
            self._bytes.popleft()
            yield self.asked.popleft(), answer

    def fileno(self) -> int:
        return self.process.stdout.fileno()  # type: ignore[union-attr]  # it was made with a pipe

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        with contextlib.suppress(BrokenPipeError):  # the answer will not come, either
            while rest:
                rest = rest[self.process.stdin.write(rest) :]  # type: ignore[union-attr]  # it was made with a pipe
