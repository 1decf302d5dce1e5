"""The pool as the service uses it: files that the gate let through come in, and what the pool does is recorded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from modelledger.ledger.v1 import events_pb2

from inference.gate import Vouched
from inference.generation import Done, Generation, Piece
from inference.journal import Journal
from inference.pool import Change, EnginePool
from inference.serving_config import EngineSettings
from ledger.errors import Unreachable
from ledger.kit.serve import STOP_GRACE


class Engines:
    """Belongs to one event loop."""

    def __init__(self, settings: Callable[[], EngineSettings], journal: Journal) -> None:
        self._pool = EnginePool(settings, self._changed)
        self._journal = journal
        self._asked: dict[str, Vouched] = {}  # digest -> for which name and version it was asked last
        self._held: dict[str, Vouched] = {}  # digest -> for which it was loaded
        self._running = 0
        self._idle = asyncio.Event()
        self._closing = False

    def held(self) -> dict[str, Vouched]:
        """What is in memory now, by digest."""
        return dict(self._held)

    async def generate(self, file: Vouched, request: Generation) -> AsyncGenerator[Piece | Done, None]:
        """One answer of this file. Raises what EnginePool.generate raises."""
        self._admit(file)
        self._running += 1
        self._idle.clear()
        try:
            async with aclosing(self._pool.generate(file.gguf.sha256, file.path, request)) as items:
                async for item in items:
                    yield item
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def load(self, file: Vouched) -> None:
        """Load it if it is not. Raises what EnginePool.lease raises."""
        self._admit(file)
        async with self._pool.lease(file.gguf.sha256, file.path):
            pass

    async def unload(self, sha256: str) -> None:
        """Let running answers finish, then free the memory."""
        await self._pool.unload(sha256)

    async def close(self) -> None:
        """Refuse new answers, give running ones a moment, then end every engine."""
        self._closing = True
        if self._running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE):
                    await self._idle.wait()
        await self._pool.close()

    def _admit(self, file: Vouched) -> None:
        if self._closing:
            raise Unreachable("the inference service is stopping; try again in a moment")
        self._asked[file.gguf.sha256] = file

    def _changed(self, change: Change) -> None:
        if change.kind == "loaded":
            file = self._held[change.sha256] = self._asked[change.sha256]
            self._journal.add(
                file.name,
                events_pb2.ModelLoaded(
                    name=file.name,
                    version=file.version,
                    vouched_by=file.event_index,
                    seconds=round(change.seconds or 0.0, 3),
                ),
                file.gguf,
            )
        else:
            file = self._held.pop(change.sha256)
            self._journal.add(file.name, events_pb2.ModelUnloaded(name=file.name, reason=change.reason), file.gguf)
