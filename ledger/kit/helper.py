"""A helper process that is asked several things at once, for a thread that must never wait for it.

    helper = Helper("ledger.verifying")              # ledger.verifying calls answering.answer_questions
    if helper.ready and helper.ask(piece, checks):   # False, and nothing is asked, while that would wait
        ...
    for helper in answered([helper], timeout):
        for piece, verdicts in helper.answers():     # in the order in which it was asked
            ...

What a helper is for can be done without it: one that is `Lost` is closed, and whoever asked does what it was asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
from collections import deque
from collections.abc import Iterable, Iterator
from mmap import PAGESIZE
from typing import Any, Generic, TypeVar

from ledger.kit.answering import start_answering
from ledger.kit.frames import PIPE, Frames, frame

MAX_UNANSWERED = PIPE  # bytes that one helper is asked

T = TypeVar("T")


class Lost(Exception):
    """The process has ended, or its answers make no sense."""


class Helper(Generic[T]):
    """`asked`: what it has not answered yet, in the order in which it will. Raises OSError when there is no room."""

    def __init__(self, module: str) -> None:
        self._answering = start_answering(module)
        self.process = self._answering.child
        self.asked: deque[T] = deque()
        self._bytes: deque[int] = deque()
        self._started = False
        self._answers = Frames(self.fileno())
        try:  # so that asking never waits, whatever the helper does
            fcntl.fcntl(self._answering.questions, fcntl.F_SETPIPE_SZ, MAX_UNANSWERED)
            self._write(frame(None))
        except BaseException:  # Ctrl-C, or one user's pipes have a limit, pipe(7)
            self.close()
            raise

    @property
    def ready(self) -> bool:
        """Whether it has started; it says so by answering its first question."""
        if not self._started and answered([self], 0):
            try:
                self._started = bool(self._read())
            except Lost:  # it is found out when it is asked
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
        for answer in self._read():
            if not self.asked:
                raise Lost
            self._bytes.popleft()
            yield self.asked.popleft(), answer

    def fileno(self) -> int:
        """Where its answers come from."""
        return self._answering.answers.fileno()

    def close(self) -> None:
        self._answering.end()

    def _read(self) -> list[Any]:
        try:
            found = self._answers.read()
        except Exception as error:  # another release, installed meanwhile, wrote what this one cannot read
            raise Lost from error
        if found is None:
            raise Lost
        return found

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        with contextlib.suppress(BrokenPipeError):  # the answer will not come, either
            while rest:
                rest = rest[self._answering.questions.write(rest) :]


def answered(helpers: Iterable[Helper[T]], timeout: float) -> list[Helper[T]]:
    """Those of which something has come, an end too, after waiting so many seconds for the first."""
    by_file = {helper.fileno(): helper for helper in helpers}
    there = select.poll()  # it takes any number of a file, where select(2) ends at 1,024
    for file in by_file:
        there.register(file, select.POLLIN)
    return [by_file[file] for file, _ in there.poll(timeout * 1_000)]
