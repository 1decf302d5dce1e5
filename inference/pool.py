"""The engines of one service: started on first use, shared, least recently used out, started again after a crash.

    async with aclosing(pool.generate(sha256, path, request)) as items: ...   # loaded if need be
    await pool.unload(sha256)                                    # running requests finish, then the engine goes

An engine is known by the digest of its file, so two names for one model share it, and a new version is another
engine beside the old one. One lock orders every load and unload; requests for a loaded engine never take it. Who
waits for an engine to become idle waits for the engine, never for a reader, and not longer than DRAIN_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from inference.engine_client import Engine
from inference.generation import Done, Generation, Piece
from inference.serving_config import EngineSettings
from ledger.errors import NotFound, Overloaded

# What running answers get before their engine is unloaded all the same; those left then fail with Unreachable.
DRAIN_SECONDS = 120.0

Reason = Literal["requested", "least recently used", "crashed", "shutdown"]


@dataclass(frozen=True)
class Change:
    """What the service may want to record: an engine came or went, and why. `seconds`: what loading took."""

    kind: Literal["loaded", "unloaded"]
    sha256: str
    memory_bytes: int
    reason: Reason
    seconds: float | None = None


@dataclass
class _Loaded:
    engine: Engine
    users: int = 0
    draining: bool = False
    last_used: float = field(default_factory=time.monotonic)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class EnginePool:
    """`settings` is asked at every load, so an edit of serving.toml holds for the next engine. `on_change` is called
    on the event loop and must not block."""

    def __init__(
        self, settings: Callable[[], EngineSettings], on_change: Callable[[Change], None] = lambda change: None
    ) -> None:
        self._settings = settings
        self._on_change = on_change
        self._engines: dict[str, _Loaded] = {}
        self._changing = asyncio.Lock()

    def loaded(self) -> dict[str, int]:
        """Digest -> resident memory in bytes as measured after loading, least recently used first."""
        by_use = sorted(self._engines.items(), key=lambda item: item[1].last_used)
        return {sha256: loaded.engine.ready.memory_bytes for sha256, loaded in by_use}

    @asynccontextmanager
    async def lease(self, sha256: str, path: Path) -> AsyncIterator[Engine]:
        """The engine of these bytes, not unloaded while leased. Raises what Engine.start raises, and Overloaded
        when the file alone is larger than the memory limit."""
        loaded = self._usable(sha256)
        if loaded is None:
            async with self._changing:
                # Whoever waited for the lock finds the engine the first one loaded.
                loaded = self._usable(sha256) or await self._load(sha256, path)
                self._take(loaded)
        else:
            self._take(loaded)
        try:
            yield loaded.engine
        finally:
            loaded.users -= 1
            loaded.last_used = time.monotonic()
            if not loaded.users:
                loaded.idle.set()

    async def generate(self, sha256: str, path: Path, request: Generation) -> AsyncGenerator[Piece | Done, None]:
        """One request on the engine of these bytes. Raises what `lease` and Engine.generate raise.

        The lease ends with the answer, not with its delivery: whoever reads slowly keeps no engine from being
        unloaded. What waits to be read is bounded by the request's max_tokens and the engine's context.
        """
        answer: asyncio.Queue[Piece | Done | Exception] = asyncio.Queue()
        answering = asyncio.create_task(self._answer(sha256, path, request, answer))
        try:
            done = False
            while not done:
                item = await answer.get()
                if isinstance(item, Exception):
                    raise item
                done = isinstance(item, Done)
                yield item
        finally:
            answering.cancel()
            await asyncio.wait([answering])

    async def unload(self, sha256: str) -> None:
        """Let running requests finish, then end the engine. Nothing happens if it is not loaded."""
        loaded = self._engines.get(sha256)
        if loaded is None:
            return
        deadline = time.monotonic() + DRAIN_SECONDS
        await _idle(loaded, deadline)  # without the lock: others are loaded meanwhile
        async with self._changing:
            if self._engines.get(sha256) is loaded:
                await self._remove(sha256, "requested", deadline)

    async def close(self) -> None:
        """End every engine now; running requests fail with Unreachable."""
        for loaded in self._engines.values():
            loaded.draining = True
            loaded.idle.set()  # nobody waits any longer
        async with self._changing:
            for sha256, loaded in list(self._engines.items()):
                await loaded.engine.close()
                self._forget(sha256, "shutdown")

    async def _answer(
        self, sha256: str, path: Path, request: Generation, answer: asyncio.Queue[Piece | Done | Exception]
    ) -> None:
        """Everything the engine answers, or the error it ends with, into the queue."""
        try:
            async with self.lease(sha256, path) as engine, aclosing(engine.generate(request)) as items:
                async for item in items:
                    answer.put_nowait(item)
        except Exception as error:  # whoever reads the answer raises it
            answer.put_nowait(error)

    def _usable(self, sha256: str) -> _Loaded | None:
        loaded = self._engines.get(sha256)
        return loaded if loaded and loaded.engine.alive and not loaded.draining else None

    @staticmethod
    def _take(loaded: _Loaded) -> None:
        loaded.users += 1
        loaded.last_used = time.monotonic()
        loaded.idle.clear()

    async def _load(self, sha256: str, path: Path) -> _Loaded:
        settings = self._settings()
        if sha256 in self._engines:  # it died: its requests have failed already
            await self._engines[sha256].engine.close()
            self._forget(sha256, "crashed")
        try:
            size = path.stat().st_size
        except OSError as error:
            raise NotFound(f"{path}: {error.strerror}") from None
        if size > settings.memory_limit_bytes:
            raise Overloaded(
                f"the model needs at least {size} bytes; engine.memory_limit_bytes is {settings.memory_limit_bytes}"
            )
        # The weights are what is known before loading; what it really takes is measured after.
        await self._make_room(size, settings, settings.max_engines - 1)
        started = time.monotonic()
        engine = await Engine.start(
            path, sha256, context=settings.context, threads=settings.threads, slots=settings.slots
        )
        seconds = time.monotonic() - started
        measured = engine.ready.memory_bytes
        if measured > settings.memory_limit_bytes:
            await engine.close()
            raise Overloaded(
                f"the loaded model takes {measured} bytes; engine.memory_limit_bytes is "
                f"{settings.memory_limit_bytes}; raise it, or lower engine.context or engine.slots"
            )
        loaded = self._engines[sha256] = _Loaded(engine)
        self._on_change(Change("loaded", sha256, measured, "requested", seconds))
        await self._make_room(0, settings, settings.max_engines, keep=sha256)
        return loaded

    async def _make_room(self, needed: int, settings: EngineSettings, most: int, keep: str = "") -> None:
        """Unload until at most `most` engines are left and `needed` bytes fit beside them: idle ones first, then the
        busy ones as their requests finish, each time the least recently used; never `keep`."""
        while others := [sha256 for sha256 in self.loaded() if sha256 != keep]:
            used = sum(self.loaded().values())
            if len(self._engines) <= most and used + needed <= settings.memory_limit_bytes:
                return
            idle = [sha256 for sha256 in others if not self._engines[sha256].users]
            victim = (idle or others)[0]
            await self._remove(victim, "least recently used", time.monotonic() + DRAIN_SECONDS)

    async def _remove(self, sha256: str, reason: Reason, deadline: float) -> None:
        """End an engine, when its running requests are done or at the deadline. Only with the lock."""
        loaded = self._engines[sha256]
        loaded.draining = True
        try:
            await _idle(loaded, deadline)
            await loaded.engine.close()
        except asyncio.CancelledError:
            loaded.draining = False
            raise
        self._forget(sha256, reason)

    def _forget(self, sha256: str, reason: Reason) -> None:
        loaded = self._engines.pop(sha256)
        self._on_change(Change("unloaded", sha256, loaded.engine.ready.memory_bytes, reason))


async def _idle(loaded: _Loaded, deadline: float) -> None:
    """Until nobody uses the engine, or time.monotonic() reaches the deadline."""
    if loaded.users:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline - time.monotonic()):
                await loaded.idle.wait()
