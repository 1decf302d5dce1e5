"""The engine process and the pool, with a real model in a real child process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvloop  # services run on it

from inference.engine_client import Engine
from inference.generation import Generation, Message
from ledger.errors import ArtifactMismatch, Damaged, InvalidInput, MissingCapability, NotFound, Unreachable
from ledger.kit.work import Ended
from tests.engines import CONTEXT, QUESTIONS, RAMBLING, ask, chat, digest


@asynccontextmanager
async def running(path: Path, slots: int = 2, context: int = CONTEXT) -> AsyncIterator[Engine]:
    engine = await Engine.start(path, digest(path), context=context, threads=1, slots=slots)
    try:
        yield engine
    finally:
        await engine.close()


def start_of(path: Path, sha256: str) -> Awaitable[Engine]:
    return Engine.start(path, sha256, context=CONTEXT, threads=1, slots=1)


def test_ready_tells_what_was_loaded(tiny_gguf: Path) -> None:
    async def scenario() -> None:
        async with running(tiny_gguf) as engine:
            ready = engine.ready
            assert (ready.context, ready.architecture, ready.chat_template) == (CONTEXT, "llama", True)
            assert ready.sha256 == digest(tiny_gguf)
            assert ready.vocabulary > 256
            assert ready.memory_bytes > tiny_gguf.stat().st_size
            assert engine.alive
        assert not engine.alive
        with pytest.raises(ProcessLookupError):
            os.kill(engine.pid, 0)

    uvloop.run(scenario())


def test_a_context_is_never_longer_than_the_model_was_trained_for(tiny_gguf: Path) -> None:
    async def scenario() -> None:
        async with running(tiny_gguf, context=1 << 18, slots=1) as engine:
            assert engine.ready.context < 1 << 18

    uvloop.run(scenario())


def test_other_bytes_than_asked_for_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.gguf"
    data = bytearray(tiny_gguf.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    with pytest.raises(ArtifactMismatch, match="not loaded"):
        uvloop.run(start_of(changed, digest(tiny_gguf)))


def test_a_truncated_file_under_its_own_digest_is_damaged(tiny_gguf: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny_gguf.read_bytes()[:-100_000])
    with pytest.raises(Damaged, match="cannot load"):
        uvloop.run(start_of(short, digest(short)))


def test_what_is_no_gguf_is_damaged_and_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    with pytest.raises(Damaged):
        uvloop.run(start_of(text, digest(text)))
    with pytest.raises(NotFound):
        uvloop.run(start_of(tmp_path / "absent.gguf", "0" * 64))


def test_without_llama_cpp_the_capability_is_missing(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingCapability, match="install modelledger"):
        uvloop.run(start_of(tiny_gguf, digest(tiny_gguf)))


def test_concurrent_answers_equal_serial_ones(tiny_gguf: Path) -> None:
    """More requests than slots, prompts of different length, one of them almost a whole decode batch."""
    questions = [*(f"{question}{' Thanks!' * n}" for n, question in enumerate(QUESTIONS * 2)), "Hello! " * 100]

    async def scenario() -> None:
        async with running(tiny_gguf, slots=3, context=512) as engine:
            serial = [await ask(engine, chat(question)) for question in questions]
            together = await asyncio.gather(*(ask(engine, chat(question)) for question in questions))
            assert [text for text, _ in together] == [text for text, _ in serial]
            assert [done.prompt_tokens for _, done in together] == [done.prompt_tokens for _, done in serial]
            assert any(text for text, _ in serial)

    uvloop.run(scenario())


def test_a_short_request_overtakes_a_long_one(endless_gguf: Path) -> None:
    async def scenario() -> list[str]:
        order: list[str] = []

        async def note(name: str, request: Generation) -> None:
            await ask(engine, request)
            order.append(name)

        async with running(endless_gguf) as engine:
            await asyncio.gather(note("long", RAMBLING), note("short", chat("Hello!", max_tokens=1)))
        return order

    assert uvloop.run(scenario()) == ["short", "long"]


def test_a_seed_repeats_an_answer_and_another_seed_does_not(tiny_gguf: Path) -> None:
    async def scenario() -> None:
        async with running(tiny_gguf) as engine:
            first, again, other, unseeded, unseeded2 = [
                await ask(engine, Generation(prompt="Last summer", max_tokens=40, temperature=2.0, seed=seed))
                for seed in (7, 7, 8, None, None)
            ]
            assert first[0] == again[0] != other[0]
            assert unseeded[0] != unseeded2[0]
            greedy = Generation(prompt="Last summer", max_tokens=40, temperature=0)
            top_1 = Generation(prompt="Last summer", max_tokens=40, temperature=2.0, top_k=1)
            top_p_0 = Generation(prompt="Last summer", max_tokens=40, temperature=2.0, top_p=0)
            texts = [(await ask(engine, request))[0] for request in (greedy, top_1, top_p_0)]
            assert len(set(texts)) == 1

    uvloop.run(scenario())


def test_limits_end_an_answer_as_length(endless_gguf: Path) -> None:
    async def scenario() -> None:
        async with running(endless_gguf) as engine:
            _, done = await ask(engine, Generation(prompt="Last summer", max_tokens=3, temperature=2.0, seed=1))
            assert (done.finish_reason, done.completion_tokens) == ("length", 3)
            text, done = await ask(engine, RAMBLING)
            assert text
            assert done.finish_reason == "length"
            assert done.prompt_tokens + done.completion_tokens == CONTEXT
            assert done.seconds > 0

    uvloop.run(scenario())


def test_a_stop_string_ends_the_answer_and_never_shows(tiny_gguf: Path) -> None:
    async def scenario() -> None:
        async with running(tiny_gguf) as engine:
            plain = Generation(prompt="Last summer", max_tokens=60, temperature=2.0, seed=3)
            whole, _ = await ask(engine, plain)
            stop = whole[20:27]  # wherever the tokens are cut
            cut, done = await ask(
                engine,
                Generation(prompt="Last summer", max_tokens=60, temperature=2.0, seed=3, stop=("never", stop)),
            )
            assert cut == whole[: whole.index(stop)]
            assert done.finish_reason == "stop"

    uvloop.run(scenario())


@pytest.mark.parametrize("prompt", ["hello " * CONTEXT, "a" * (1 << 20), "a" * ((1 << 20) + 1)])
def test_a_prompt_that_does_not_fit_is_refused_and_the_engine_lives_on(tiny_gguf: Path, prompt: str) -> None:
    async def scenario() -> None:
        async with running(tiny_gguf) as engine:
            with pytest.raises(InvalidInput) as refusal:
                await ask(engine, Generation(prompt=prompt))
            assert refusal.value.metadata["code"] == "context_length_exceeded"
            with pytest.raises(InvalidInput, match="surrogate"):
                await ask(engine, Generation(prompt="\ud800"))
            assert (await ask(engine, chat("Hello!")))[1].completion_tokens > 0

    uvloop.run(scenario())


def test_one_long_word_does_not_end_the_engine(tiny_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp splits text for this pre-tokenizer with std::regex, which recurses once per character."""
    data = tiny_gguf.read_bytes()
    assert data.count(b"gpt-2") == 1
    path = tmp_path / "bloom.gguf"
    path.write_bytes(data.replace(b"gpt-2", b"bloom"))

    async def scenario() -> None:
        async with running(path) as engine:
            with pytest.raises(InvalidInput) as refusal:
                await ask(engine, Generation(prompt="a" * (1 << 20)))
            assert refusal.value.metadata["code"] == "context_length_exceeded"

    uvloop.run(scenario())


def test_messages_need_a_chat_template(other_gguf: Path) -> None:
    async def scenario() -> None:
        async with running(other_gguf) as engine:
            assert not engine.ready.chat_template
            with pytest.raises(MissingCapability, match="chat template"):
                await ask(engine, chat("Hello!"))
            assert (await ask(engine, Generation(prompt="Last summer", max_tokens=2, temperature=0)))[
                1
            ].completion_tokens == 2

    uvloop.run(scenario())


@pytest.mark.parametrize(
    "program", ["{{ 1 // 0 }}", "{{ messages[9].role }}", "{{ 'a' + 1 }}", "{{ raise_exception('C:/x') }}"]
)
def test_a_template_that_fails_refuses_the_messages_and_the_engine_lives_on(
    tiny_gguf: Path, tmp_path: Path, program: str
) -> None:
    data = tiny_gguf.read_bytes()
    key = data.index(b"tokenizer.chat_template") + len(b"tokenizer.chat_template")
    start = key + 4 + 8  # the value's type and length
    length = int.from_bytes(data[key + 4 : start], "little")
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(data[:start] + program.encode().ljust(length) + data[start + length :])

    async def scenario() -> None:
        async with running(changed) as engine:
            with pytest.raises(InvalidInput) as caught:
                await ask(engine, chat("Hello!"))
            assert caught.value.message == (
                "the model's chat template refuses these messages; check their roles and their order"
            )
            _, done = await ask(engine, Generation(prompt="Hello", max_tokens=1, temperature=0))
            assert done.completion_tokens == 1

    uvloop.run(scenario())


def test_bounds_hold_before_the_engine_sees_a_request() -> None:
    for wrong in (
        {},
        {"prompt": ""},
        {"prompt": "a", "messages": (Message("user", "b"),)},
        {"messages": ()},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "temperature": float("nan")},
        {"prompt": "a", "temperature": -1},
        {"prompt": "a", "top_p": 1.1},
        {"prompt": "a", "top_k": 0},
        {"prompt": "a", "stop": ("",)},
        {"prompt": "a", "seed": 1 << 64},
    ):
        with pytest.raises(InvalidInput):
            Generation(**wrong)


def test_the_protocol_answers_cancel_and_unload(endless_gguf: Path) -> None:
    """Line by line, without the client: cancelling before, while and after running; unload ends with code 0."""
    child = subprocess.Popen(
        [sys.executable, "-m", "inference.engine", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin
    assert child.stdout

    def send(**message: object) -> None:
        child.stdin.write(json.dumps(message) + "\n")
        child.stdin.flush()

    def receive() -> dict[str, object]:
        return json.loads(child.stdout.readline())

    request = {"prompt": "Last summer", "temperature": 2.0, "top_p": 1.0, "stop": [], "seed": 1}
    send(type="load", path=str(endless_gguf), sha256=digest(endless_gguf), context=512, threads=1, slots=1)
    assert receive()["type"] == "ready"
    send(type="generate", id="runs", **request)
    send(type="generate", id="waits", **request)
    assert receive()["id"] == "runs"
    send(type="cancel", id="waits")
    send(type="cancel", id="runs")
    send(type="cancel", id="unknown")
    ends = {}
    while len(ends) < 2:
        message = receive()
        if message["type"] == "done":
            ends[message["id"]] = message
    assert ends["waits"]["finish_reason"] == ends["runs"]["finish_reason"] == "cancelled"
    assert ends["waits"]["completion_tokens"] == 0
    send(type="generate", id="last", **request)
    assert receive()["id"] == "last"
    send(type="unload")
    assert child.wait(10) == 0
    child.stdin.close()
    child.stdout.close()


def test_leaving_an_answer_frees_its_slot(endless_gguf: Path) -> None:
    async def scenario() -> None:
        async with running(endless_gguf, slots=1) as engine:
            _, whole = await ask(engine, RAMBLING)
            asking = [asyncio.create_task(ask(engine, RAMBLING)) for _ in range(20)]
            await asyncio.sleep(0)  # each runs until it waits for its first piece
            assert len(engine._answers) == 20
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            # `seconds` counts from arrival: 20 whole answers before this one would show.
            _, done = await ask(engine, chat("Hello!", max_tokens=1))
            assert done.seconds < 5 * whole.seconds
            assert not engine._answers

    uvloop.run(scenario())


def test_a_killed_engine_fails_its_requests_with_the_reason(endless_gguf: Path) -> None:
    async def scenario() -> None:
        async with running(endless_gguf) as engine:
            async with aclosing(engine.generate(RAMBLING)) as items:
                await anext(items)
                os.kill(engine.pid, signal.SIGKILL)
                with pytest.raises(Unreachable, match="SIGKILL"):
                    async for _ in items:
                        pass
            assert not engine.alive
            with pytest.raises(Unreachable, match="SIGKILL"):
                await ask(engine, chat("Hello!"))

    uvloop.run(scenario())


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_engine_that_died_a_moment_ago_can_be_asked_and_closed(tiny_gguf: Path, asked: bool, steps: int) -> None:
    """Some steps of the event loop after it is known that nothing can be sent, before the end of its output is."""

    async def scenario() -> None:
        async with running(tiny_gguf) as engine:
            os.kill(engine.pid, signal.SIGKILL)
            while not engine._pipes.input.is_closing():
                await asyncio.sleep(0)
            for _ in range(steps):
                await asyncio.sleep(0)
            if asked:
                with pytest.raises(Unreachable, match="SIGKILL"):
                    await ask(engine, chat("Hello!"))

    uvloop.run(scenario())


def test_closing_fails_what_runs(endless_gguf: Path) -> None:
    async def scenario() -> None:
        async with running(endless_gguf) as engine:
            items = engine.generate(RAMBLING)
            await anext(items)
            await engine.close()
            with pytest.raises(Unreachable):
                async for _ in items:
                    pass

    uvloop.run(scenario())


def test_an_engine_dies_with_its_service(tiny_gguf: Path) -> None:
    service = """
import asyncio, sys
from pathlib import Path
from inference.engine_client import Engine
async def main():
    engine = await Engine.start(Path(sys.argv[1]), sys.argv[2], context=64, threads=1, slots=1)
    print(engine.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", service, str(tiny_gguf), digest(tiny_gguf)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    with parent.stdout:
        pid = int(parent.stdout.readline())
    os.kill(pid, 0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < deadline, "the engine outlived its service"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """A dead child without a parent may stay a zombie until someone reaps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_line_too_long_to_show_ends_nothing() -> None:
    """A chat template may put what it was asked into the words that it refuses it with."""

    async def words() -> list[str]:
        engine = Engine.__new__(Engine)
        errors = asyncio.StreamReader(limit=100)
        engine._pipes = SimpleNamespace(errors=errors)
        engine._process = SimpleNamespace(pid=1)
        engine._last_words = deque(maxlen=5)
        errors.feed_data(b"first\n" + b"x" * 500 + b"\nlast\n")
        errors.feed_eof()
        await engine._log_errors()
        return list(engine._last_words)

    assert asyncio.run(words()) == ["first", "(a line that is too long to show)", "last"]


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    assert "killed by signal 40" in Ended(-40, "").reason
    assert "killed by SIGKILL (out of memory?)" in Ended(-9, "").reason
