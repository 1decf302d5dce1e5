"""The engine as the service sees it: asyncio in, asyncio out, llama.cpp far away in a child process.

    engine = await Engine.start(path, sha256, context=2048, threads=1, slots=4)
    async with aclosing(engine.generate(Generation(prompt="Once", max_tokens=20))) as answer:
        async for item in answer: ...            # Piece, Piece, ..., Done
    await engine.close()

Closing the iterator early cancels the request in the child. If the child dies, every running request fails with
Unreachable; the engine is then not `alive`, and inference/pool.py starts another one on the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from inference.generation import Done, Generation, Piece
from ledger.errors import BY_REASON, ModelLedgerError, Unreachable
from ledger.kit.child import signal_name

log = logging.getLogger(__name__)
MAX_LINE = 1 << 20
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Ready:
    """What the engine loaded: tokens per request, vocabulary size, architecture, resident memory in bytes."""

    context: int
    vocabulary: int
    architecture: str
    chat_template: bool
    sha256: str
    memory_bytes: int


class Engine:
    """One child process with one loaded model. Made by `start`, belongs to one event loop."""

    def __init__(self, process: subprocess.Popen[bytes], pipes: _Pipes, path: Path) -> None:
        self._process = process
        self._pipes = pipes
        self._path = path
        self._last_words: deque[str] = deque(maxlen=20)
        self._answers: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._closing = False
        self._logging = asyncio.create_task(self._log_errors())
        self._reading: asyncio.Task[None] | None = None
        self.ready: Ready

    @classmethod
    async def start(cls, path: Path, sha256: str, *, context: int, threads: int, slots: int) -> Engine:
        """Load `path`, whose bytes must hash to `sha256`. Raises ArtifactMismatch (other bytes), NotFound, Damaged
        (not a loadable GGUF), MissingCapability (no llama.cpp), InvalidConfig (no room for the context) or
        Unreachable (the process died).

        Linux ends the child when the thread that started it ends: run the loop in a thread that outlives it.
        """
        # Popen starts it, whatever the loop: uvloop would fork with gRPC's threads and with every open file.
        process = subprocess.Popen(
            [sys.executable, "-m", "inference.engine", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).parent.parent,
        )
        try:
            engine = cls(process, await _Pipes.of(process), path)
        except BaseException:
            process.kill()
            process.wait()
            raise
        try:
            engine._send(
                {
                    "type": "load",
                    "path": str(path.absolute()),
                    "sha256": sha256,
                    "context": context,
                    "threads": threads,
                    "slots": slots,
                }
            )
            first = await engine._receive()
            if first is None:
                raise Unreachable(await engine._epitaph("while loading"))
            if first.pop("type") == "refused":
                raise BY_REASON.get(first["reason"], ModelLedgerError)(first["message"])
            engine.ready = Ready(**first)
        except BaseException:
            await engine._kill()
            raise
        engine._reading = asyncio.create_task(engine._route())
        return engine

    @property
    def alive(self) -> bool:
        return self._reading is not None and not self._reading.done() and not self._closing

    @property
    def pid(self) -> int:
        return self._process.pid

    async def generate(self, request: Generation) -> AsyncGenerator[Piece | Done, None]:
        """Pieces, then one Done. Raises InvalidInput (the prompt does not fit: metadata code
        `context_length_exceeded`), MissingCapability (no chat template), Overloaded, or Unreachable (crash)."""
        request_id = str(next(self._ids))
        answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if not self.alive:
            raise Unreachable(await self._epitaph("before this request"))
        self._answers[request_id] = answers
        finished = False
        try:
            asked = {name: value for name, value in asdict(request).items() if value is not None}
            self._send({"type": "generate", "id": request_id, **asked})
            while not finished:
                message = await answers.get()
                kind = message.pop("type")
                finished = kind != "token"
                if kind == "token":
                    yield Piece(message["text"])
                elif kind == "error":
                    known = BY_REASON.get(message["reason"], ModelLedgerError)
                    raise known(message["message"], metadata=message.get("metadata"))
                elif message["finish_reason"] == "cancelled":
                    raise Unreachable("the model was unloaded while it answered; try again")
                else:
                    yield Done(**{field: value for field, value in message.items() if field != "id"})
        finally:
            del self._answers[request_id]
            if not finished and self.alive:
                self._send({"type": "cancel", "id": request_id})

    async def close(self) -> None:
        """Unload and end the process; running requests fail. Safe to call twice."""
        if not self._closing and self.alive:
            self._send({"type": "unload"})
            self._closing = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await self._wait()
        self._closing = True
        await self._kill()

    def _send(self, message: dict[str, Any]) -> None:
        # A broken pipe needs no word here: the reader sees the end of the output and fails every request.
        if not self._pipes.input.is_closing():
            self._pipes.input.write(json.dumps(message).encode() + b"\n")

    async def _receive(self) -> dict[str, Any] | None:
        line = await self._pipes.output.readline()
        message: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return message

    async def _route(self) -> None:
        """Hand every line of the child to the request it belongs to, until the child ends."""
        try:
            while message := await self._receive():
                if answers := self._answers.get(message["id"]):
                    answers.put_nowait(message)
        except ValueError:  # too long, or no JSON: a bug in the engine
            log.exception("engine %d sent a line that is no message", self.pid)
            self._process.kill()
        reason = await self._epitaph("while it answered")
        for answers in self._answers.values():
            answers.put_nowait({"type": "error", "reason": Unreachable.reason, "message": reason})

    async def _log_errors(self) -> None:
        while line := await self._error_line():
            text = line.decode(errors="replace").rstrip()
            self._last_words.append(text)
            log.info("engine %d: %s", self._process.pid, text)

    async def _error_line(self) -> bytes:
        try:
            return await self._pipes.errors.readline()
        except ValueError:  # it has been passed over; what comes behind it is read on
            return b"(a line that is too long to show)"

    async def _epitaph(self, when: str) -> str:
        """One sentence about how the child ended. The file's name only: callers need no path of this machine."""
        code = await self._wait()
        await self._logging
        how = signal_name(-code) if code < 0 else f"exit code {code}"
        log.log(
            logging.INFO if self._closing else logging.WARNING,
            "engine %d of %s ended %s (%s): %s",
            self.pid,
            self._path,
            when,
            how,
            " | ".join(self._last_words),
        )
        return f"the inference engine of {self._path.name} ended {when} ({how}); try again"

    async def _kill(self) -> None:
        self._process.kill()
        await self._wait()
        self._pipes.input.close()
        if self._reading:
            await self._reading
        await self._logging

    async def _wait(self) -> int:
        return await asyncio.to_thread(self._process.wait)


class _Pipes(NamedTuple):
    """The parent's ends of a child's pipes."""

    input: asyncio.WriteTransport
    output: asyncio.StreamReader
    errors: asyncio.StreamReader

    @classmethod
    async def of(cls, process: subprocess.Popen[bytes]) -> _Pipes:
        loop = asyncio.get_running_loop()
        written, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
        return cls(written, await _reader(process.stdout), await _reader(process.stderr))


async def _reader(pipe: IO[bytes] | None) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MAX_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader
