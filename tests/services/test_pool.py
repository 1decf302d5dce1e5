"""The pool of engines, with real models in real child processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from inference import pool as pool_module
from inference.engines import Engines
from inference.gate import Vouched
from inference.generation import Generation
from inference.pool import Change, EnginePool
from inference.serving_config import EngineSettings, ServedModel, Serving
from inference.upkeep import Upkeep
from ledger.errors import ArtifactMismatch, NotFound, Overloaded, Unreachable
from ledger.statement import Artifact
from tests.engines import CONTEXT, QUESTIONS, RAMBLING, ask, chat, collect, digest

Scenario = Callable[[EnginePool, list[tuple[str, str]]], Awaitable[None]]


def with_pool(scenario: Scenario, **settings: int) -> None:
    """Run a scenario with a pool and the list of (loaded or unloaded, reason) it has reported so far."""

    async def run() -> None:
        seen: list[tuple[str, str]] = []

        def note(change: Change) -> None:
            seen.append((change.kind, change.reason))

        pool = EnginePool(lambda: EngineSettings(context=CONTEXT, slots=2, **settings), note)
        try:
            await scenario(pool, seen)
        finally:
            await pool.close()
        assert not pool.loaded()

    asyncio.run(run())


def test_the_first_requests_share_one_load(tiny_gguf: Path) -> None:
    async def scenario(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        sha256 = digest(tiny_gguf)
        answers = await asyncio.gather(
            *(collect(pool.generate(sha256, tiny_gguf, chat(question))) for question in QUESTIONS)
        )
        assert len(answers) == len(QUESTIONS)
        assert seen == [("loaded", "requested")]
        assert pool.loaded()[sha256] > tiny_gguf.stat().st_size

    with_pool(scenario)


def test_the_least_recently_used_goes_and_comes_back_the_same(tiny_gguf: Path, other_gguf: Path) -> None:
    async def scenario(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        request = Generation(prompt="Last summer", max_tokens=20, temperature=0)
        first = await collect(pool.generate(digest(tiny_gguf), tiny_gguf, request))
        await collect(pool.generate(digest(other_gguf), other_gguf, request))
        assert list(pool.loaded()) == [digest(other_gguf)]
        again = await collect(pool.generate(digest(tiny_gguf), tiny_gguf, request))
        assert again[0] == first[0]
        gone = ("unloaded", "least recently used")
        assert seen == [("loaded", "requested"), gone, ("loaded", "requested"), gone, ("loaded", "requested")]

    with_pool(scenario, max_engines=1)


def test_the_memory_limit_is_kept_with_measured_sizes(tiny_gguf: Path, other_gguf: Path) -> None:
    measured: list[int] = []

    async def measure(pool: EnginePool, _: list[tuple[str, str]]) -> None:
        async with pool.lease(digest(tiny_gguf), tiny_gguf):
            measured.extend(pool.loaded().values())

    async def one_fits(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        for path in (tiny_gguf, other_gguf):
            await collect(pool.generate(digest(path), path, Generation(prompt="Hello", max_tokens=1)))
        assert list(pool.loaded()) == [digest(other_gguf)]
        assert ("unloaded", "least recently used") in seen

    async def none_fits(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        with pytest.raises(Overloaded, match="memory_limit_bytes"):
            await collect(pool.generate(digest(tiny_gguf), tiny_gguf, chat("Hello!")))
        assert seen == []

    with_pool(measure)
    with_pool(one_fits, memory_limit_bytes=measured[0] * 3 // 2)
    with_pool(none_fits, memory_limit_bytes=measured[0] // 2)
    with_pool(none_fits, memory_limit_bytes=tiny_gguf.stat().st_size - 1)


ONE_WORD = Generation(prompt="Hello", max_tokens=1)


def test_whoever_reads_slowly_keeps_no_engine(endless_gguf: Path, other_gguf: Path) -> None:
    async def scenario(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        stalled = pool.generate(digest(endless_gguf), endless_gguf, RAMBLING)
        first = await anext(stalled)
        await asyncio.wait_for(collect(pool.generate(digest(other_gguf), other_gguf, ONE_WORD)), 20)
        assert seen[1:] == [("unloaded", "least recently used"), ("loaded", "requested")]
        rest, done = await collect(stalled)  # the whole answer is there, though its engine is gone
        assert done.finish_reason == "length"
        _, again = await collect(pool.generate(digest(endless_gguf), endless_gguf, RAMBLING))
        assert done.completion_tokens == again.completion_tokens
        assert first
        assert rest

    with_pool(scenario, max_engines=1)


def test_a_busy_engine_finishes_before_it_is_unloaded(endless_gguf: Path, other_gguf: Path) -> None:
    async def scenario(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        async with AsyncExitStack() as leases:
            engine = await leases.enter_async_context(pool.lease(digest(endless_gguf), endless_gguf))
            other = asyncio.create_task(collect(pool.generate(digest(other_gguf), other_gguf, ONE_WORD)))
            await asyncio.sleep(0.2)
            _, done = await ask(engine, RAMBLING)
            assert done.completion_tokens > 1
            assert seen == [("loaded", "requested")]
        await other
        assert seen[1:] == [("unloaded", "least recently used"), ("loaded", "requested")]

    with_pool(scenario, max_engines=1)


def test_unload_waits_for_running_requests_and_others_load_meanwhile(endless_gguf: Path, other_gguf: Path) -> None:
    async def scenario(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        sha256 = digest(endless_gguf)
        await pool.unload(sha256)  # not loaded: nothing to do
        async with pool.lease(sha256, endless_gguf) as engine:
            unloading = asyncio.create_task(pool.unload(sha256))
            await asyncio.sleep(0)
            await asyncio.wait_for(collect(pool.generate(digest(other_gguf), other_gguf, ONE_WORD)), 20)
            await ask(engine, chat("Hello!"))
            assert not unloading.done()
        await unloading
        assert seen == [("loaded", "requested"), ("loaded", "requested"), ("unloaded", "requested")]

    with_pool(scenario, max_engines=2)


def test_what_is_served_again_is_not_unloaded(
    endless_gguf: Path, other_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version is made active, and before the answers of the first have ended this one is again."""
    monkeypatch.setattr(pool_module, "DRAIN_SECONDS", 1.0)
    first, second = (
        Vouched("acme/m", version, Artifact("gguf/x", digest(path)), 1, path)
        for version, path in (("v1.0", endless_gguf), ("v1.1", other_gguf))
    )
    serving = Serving("acme/m", (ServedModel("acme/m", True),), EngineSettings(context=CONTEXT))
    active = [first]

    async def servable(model: ServedModel) -> tuple[Vouched, str]:
        return active[0], ""

    async def run() -> None:
        engines = Engines(lambda: serving.engine, SimpleNamespace(add=lambda *_: None))
        upkeep = Upkeep(
            SimpleNamespace(current=lambda: serving, path="serving.toml"),
            SimpleNamespace(servable=servable),
            engines,
            SimpleNamespace(changed=lambda *_: None),
        )
        await engines.load(first)
        upkeep.start()
        try:
            async with engines._pool.lease(digest(endless_gguf), endless_gguf) as engine:
                active[0] = second
                upkeep.look()
                while not upkeep._unloading:
                    await asyncio.sleep(0.01)
                active[0] = first
                upkeep.look()
                await asyncio.sleep(2)
                assert engine.alive
                assert not upkeep._unloading
                active[0] = second
                upkeep.look()
            while digest(endless_gguf) in engines.held():
                await asyncio.sleep(0.01)
        finally:
            await upkeep.stop()
            await engines.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_what_runs_too_long_is_ended_with_the_reason(
    endless_gguf: Path, other_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "DRAIN_SECONDS", 0.3)

    async def scenario(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        async with pool.lease(digest(endless_gguf), endless_gguf) as engine:
            await asyncio.wait_for(collect(pool.generate(digest(other_gguf), other_gguf, ONE_WORD)), 20)
            assert ("unloaded", "least recently used") in seen
            with pytest.raises(Unreachable, match="try again"):
                await ask(engine, RAMBLING)
        async with pool.lease(digest(other_gguf), other_gguf):
            await asyncio.wait_for(pool.unload(digest(other_gguf)), 20)
        assert not pool.loaded()

    with_pool(scenario, max_engines=1)


def test_closing_does_not_wait_for_a_busy_engine(endless_gguf: Path, other_gguf: Path) -> None:
    async def scenario(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        async with pool.lease(digest(endless_gguf), endless_gguf):
            waiting = asyncio.create_task(collect(pool.generate(digest(other_gguf), other_gguf, ONE_WORD)))
            await asyncio.sleep(0.2)
            await asyncio.wait_for(pool.close(), 20)
            await asyncio.wait([waiting])
        assert not pool.loaded()
        assert waiting.done()

    with_pool(scenario, max_engines=1)


def test_after_a_crash_the_next_request_starts_a_new_engine(endless_gguf: Path) -> None:
    async def scenario(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        sha256 = digest(endless_gguf)
        async with pool.lease(sha256, endless_gguf) as engine:
            before, _ = await ask(engine, chat("Hello!"))
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(Unreachable):
                await ask(engine, RAMBLING)
        after, _ = await collect(pool.generate(sha256, endless_gguf, chat("Hello!")))
        assert after == before
        assert seen == [("loaded", "requested"), ("unloaded", "crashed"), ("loaded", "requested")]

    with_pool(scenario)


def test_a_refused_model_leaves_the_pool_usable(tiny_gguf: Path) -> None:
    async def scenario(pool: EnginePool, seen: list[tuple[str, str]]) -> None:
        with pytest.raises(ArtifactMismatch):
            await collect(pool.generate("0" * 64, tiny_gguf, chat("Hello!")))
        with pytest.raises(NotFound):
            await collect(pool.generate("0" * 64, tiny_gguf.with_name("absent.gguf"), chat("Hello!")))
        assert seen == []
        await collect(pool.generate(digest(tiny_gguf), tiny_gguf, chat("Hello!")))

    with_pool(scenario)
