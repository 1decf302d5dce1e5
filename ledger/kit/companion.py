"""A child process that answers one service's questions, so that its event loop never waits for heavy computation.

    companion = Companion("ledger.writer", settings)      # `python -m ledger.writer`
    await companion.start()
    answer = await companion.ask(question)
    await companion.close()

and in the child, `answer_questions(open_it)`: `open_it(settings)` gives the function that begins with a question.
A question that is there before the one in front of it is answered is begun meanwhile. Frames go over the child's
stdin and stdout: four bytes of length, then a pickle; answers come in the order of the questions. The child ends when
its stdin does, and the kernel ends it with the parent. What a child that died was asked is Unreachable; the next
question starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ledger.errors import ModelLedgerError, Unreachable
from ledger.kit.child import die_with_parent
from ledger.kit.collecting import collect_rarely

log = logging.getLogger("modelledger.companion")

PIPE = 1 << 20  # bytes

Begin = Callable[[Any], Callable[[], Any]]
"""Begins with a question; what it gives is called for the answer, in the order of the questions."""


class Companion:
    """The parent's end. It belongs to the event loop it is first used on."""

    def __init__(self, module: str, settings: Any) -> None:
        self._module = module
        self._settings = settings
        self._process: _Process | None = None
        self._start: asyncio.Task[_Process] | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises what its own start raised."""
        async with self._starting:
            await self._running()

    async def ask(self, question: Any) -> Any:
        """The child's answer; raises the error it answers with, and Unreachable when it ends first."""
        async with self._starting:  # whoever came while it started is before whoever comes when it has
            process = await self._running()
        return await process.ask(question)

    async def close(self) -> None:
        """Let it answer what it was asked, then end."""
        if self._start is not None:
            await asyncio.wait([self._start])
        if self._process is not None:
            await self._process.close()

    async def _running(self) -> _Process:
        if self._process is None or self._process.ended:
            if self._start is None or self._start.done():
                self._start = asyncio.create_task(self._started())
            # Whoever asks may go away meanwhile; the process would be left behind.
            return await asyncio.shield(self._start)
        return self._process

    async def _started(self) -> _Process:
        process = await _Process.start(self._module)
        try:
            await process.ask(self._settings)
        except BaseException:
            await process.close()
            raise
        self._process = process
        return process


class _Process(asyncio.Protocol):
    """One child, from its start to its end.

    Popen starts it, whatever the loop: uvloop would fork with gRPC's threads and with every open file.
    """

    def __init__(self, module: str, child: subprocess.Popen[bytes], questions: asyncio.WriteTransport) -> None:
        self._module = module
        self._child = child
        self._questions = questions
        self._answers = Incoming()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._over = asyncio.Event()

    @classmethod
    async def start(cls, module: str) -> _Process:
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        except OSError as error:  # this machine has no room for it
            raise Unreachable(f"the process {module} cannot be started ({error.strerror}); retry in a moment") from None
        with contextlib.suppress(OSError):  # one user's pipes have a limit, pipe(7): a smaller one is only slower
            # A question waits whole in the pipe, whatever the child and this loop are doing.
            fcntl.fcntl(child.stdin, fcntl.F_SETPIPE_SZ, PIPE)  # type: ignore[arg-type]  # it was made with a pipe
        loop = asyncio.get_running_loop()
        questions, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, child.stdin)
        process = cls(module, child, questions)
        await loop.connect_read_pipe(lambda: process, child.stdout)
        return process

    @property
    def ended(self) -> bool:
        """Whether it can be asked nothing any more."""
        return self._questions.is_closing()

    async def ask(self, question: Any) -> Any:
        if self.ended:
            raise self._gone()
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._questions.write(frame(question))
        return await answer

    async def close(self) -> None:
        self._questions.close()
        await self._over.wait()

    def data_received(self, data: bytes) -> None:
        for answer in self._answers.add(data):
            waiting = self._waiting.popleft()
            if waiting.done():
                continue  # whoever asked has gone away
            if isinstance(answer, Exception):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._questions.close()
        self._ending = asyncio.create_task(self._end())  # a task that nobody holds may vanish

    async def _end(self) -> None:
        code = await asyncio.to_thread(self._child.wait)
        if code:
            log.error("%s ended with exit code %d", self._module, code)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(self._gone())
        self._over.set()

    def _gone(self) -> Unreachable:
        return Unreachable(f"the process {self._module} ended while it worked; retry in a moment")


def answer_questions(open_it: Callable[[Any], Begin]) -> None:
    """The child's main function. A question that has come is begun before the one in front of it is answered."""
    die_with_parent(int(sys.argv[1]))
    for interruption in (signal.SIGINT, signal.SIGTERM):  # the parent says when it is over
        signal.signal(interruption, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever prints to stdout lands on stderr
    questions, child = Frames(sys.stdin.fileno()), _Child(open_it)
    come: deque[Any] = deque()
    begun: deque[Callable[[], Any]] = deque()
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        while True:
            come += questions.take(wait=not come and not begun)
            while come and len(begun) < 2:
                begun.append(child.begin(come.popleft()))
            if not begun:
                return
            _write(answers, frame(begun.popleft()()))


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


def frame(value: Any) -> bytes:
    """A question or an answer as it goes over a pipe."""
    data = pickle.dumps(value, protocol=5)
    return len(data).to_bytes(4, "big") + data


class Incoming:
    """Frames that come in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, data: bytes) -> Iterator[Any]:
        """What is complete with these bytes."""
        self._buffer += data
        while len(self._buffer) >= (end := 4 + int.from_bytes(self._buffer[:4], "big")) > 4:
            yield pickle.loads(self._buffer[4:end])  # noqa: S301  # a process of ours wrote it
            del self._buffer[:end]


class Frames:
    """What comes over a pipe."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._incoming = Incoming()

    def read(self) -> list[Any] | None:
        """What is complete with what is there, after waiting for something; None at the pipe's end."""
        data = os.read(self._file, PIPE)
        return list(self._incoming.add(data)) if data else None

    def take(self, *, wait: bool) -> list[Any]:
        """Everything that is there; with `wait` one thing at least, or nothing at the pipe's end."""
        found: list[Any] = []
        while not found if wait else select.select([self._file], [], [], 0)[0]:
            if (more := self.read()) is None:
                break
            found += more
        return found
