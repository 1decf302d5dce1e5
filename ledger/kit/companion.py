"""A child process that answers one service's questions, so that its event loop never waits for heavy computation.

    companion = Companion("ledger.writer", settings)      # ledger.writer calls answering.answer_questions
    await companion.start()
    answer = await companion.ask(question)
    await companion.close()

What a child that died was asked is Unreachable; the next question starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
from collections import deque
from typing import Any

from ledger.errors import Unreachable
from ledger.kit.answering import Answering, start_answering
from ledger.kit.frames import PIPE, Incoming, frame

log = logging.getLogger("modelledger.companion")


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

    def __init__(self, module: str, process: Answering, questions: asyncio.WriteTransport) -> None:
        self._module = module
        self._child = process.child
        self._questions = questions
        self._answers = Incoming()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._over = asyncio.Event()
        self._broken = False

    @classmethod
    async def start(cls, module: str) -> _Process:
        try:
            answering = start_answering(module)
        except OSError as error:  # this machine has no room for it
            raise Unreachable(f"the process {module} cannot be started ({error.strerror}); retry in a moment") from None
        with contextlib.suppress(OSError):  # one user's pipes have a limit, pipe(7): a smaller one is only slower
            # A question waits whole in the pipe, whatever the child and this loop are doing.
            fcntl.fcntl(answering.questions, fcntl.F_SETPIPE_SZ, PIPE)
        loop = asyncio.get_running_loop()
        questions, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, answering.questions)
        process = cls(module, answering, questions)
        await loop.connect_read_pipe(lambda: process, answering.answers)
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
        if self._broken:
            return
        try:
            for answer in self._answers.add(data):
                self._answer(answer)
        except Exception:  # another release was installed meanwhile, or it is broken: its answers have no meaning
            log.exception("%s answers what cannot be read, and is ended; restart the service", self._module)
            self._broken = True
            self._questions.close()
            self._child.kill()

    def _answer(self, answer: Any) -> None:
        waiting = self._waiting.popleft()
        if waiting.done():
            return  # whoever asked has gone away
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
