"""A child process that answers one service's questions, so that its event loop never waits for heavy computation.

    companion = Companion("ledger.writer", settings)      # `python -m ledger.writer`
    await companion.start()
    answer = await companion.ask(question)
    await companion.close()

and in the child, `answer_questions(open_it)`: `open_it(settings)` gives the function that answers. Frames go over the
child's stdin and stdout: four bytes of length, then a pickle; answers come in the order of the questions. The child
ends when its stdin does, and the kernel ends it with the parent. What a child that died was asked is Unreachable;
the next question starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any

from ledger.errors import ModelLedgerError, Unreachable
from ledger.kit.child import die_with_parent

log = logging.getLogger("modelledger.companion")


class Companion:
    """The parent's end. It belongs to the event loop it is first used on."""

    def __init__(self, module: str, settings: Any) -> None:
        self._module = module
        self._settings = settings
        self._process: _Process | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises what its own start raised."""
        async with self._starting:
            await self._running()

    async def ask(self, question: Any) -> Any:
        """The child's answer; raises the error it answers with, and Unreachable when it ends first."""
        process = self._process
        if process is None or process.ended:
            async with self._starting:
                process = await self._running()
        return await process.ask(question)

    async def close(self) -> None:
        """Let it answer what it was asked, then end."""
        if self._process is not None:
            await self._process.close()

    async def _running(self) -> _Process:
        if self._process is None or self._process.ended:
            process = _Process(
                self._module,
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", self._module, str(os.getpid())),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                ),
            )
            try:
                await process.ask(self._settings)
            except BaseException:
                await process.close()
                raise
            self._process = process
        return self._process


class _Process:
    """One child, from its start to its end."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("a companion needs pipes")
        self._module = module
        self._process = process
        self._questions, self._answers = process.stdin, process.stdout
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self.ended = False
        self._listening = asyncio.create_task(self._listen())

    async def ask(self, question: Any) -> Any:
        if self.ended:
            raise self._gone()
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._questions.write(frame(question))
        return await answer

    async def close(self) -> None:
        self._questions.close()
        await self._listening

    async def _listen(self) -> None:
        with contextlib.suppress(OSError, EOFError):  # it ended
            while True:
                size = int.from_bytes(await self._answers.readexactly(4), "big")
                answer = pickle.loads(await self._answers.readexactly(size))  # noqa: S301  # our own child wrote it
                waiting = self._waiting.popleft()
                if waiting.done():
                    continue  # whoever asked has gone away
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)
        self.ended = True
        code = await self._process.wait()
        if code:
            log.error("%s ended with exit code %d", self._module, code)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(self._gone())

    def _gone(self) -> Unreachable:
        return Unreachable(f"the process {self._module} ended while it worked; retry in a moment")


def answer_questions(open_it: Callable[[Any], Callable[[Any], Any]]) -> None:
    """The child's main function."""
    die_with_parent(int(sys.argv[1]))
    for interruption in (signal.SIGINT, signal.SIGTERM):  # the parent says when it is over
        signal.signal(interruption, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints to stdout lands on stderr
    respond: Callable[[Any], Any] | None = None
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        for question in frames(sys.stdin.buffer):
            answer = None
            try:
                if respond is None:
                    respond = open_it(question)
                else:
                    answer = respond(question)
            except Exception as error:
                answer = portable(error)
            answers.write(frame(answer))
            answers.flush()


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


def frames(stream: IO[bytes]) -> Iterator[Any]:
    """What comes over a pipe, to its end."""
    while len(start := stream.read(4)) == 4:
        yield pickle.loads(stream.read(int.from_bytes(start, "big")))  # noqa: S301  # a process of ours wrote it
