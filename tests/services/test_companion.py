"""A companion begins with the next question before it answers the one in front; each answer is its own question's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop  # services run on it

from ledger.errors import InvalidInput, Unreachable
from ledger.kit.companion import Companion
from ledger.kit.frames import PIPE

FIRST = "first"  # what keeps a companion busy while everything else is written


def _ask(folder: Path, *questions: str) -> list[Any]:
    """The answers to questions that are all there before the companion is done with another one."""
    gate = folder / "gate"
    os.mkfifo(gate)

    async def ask() -> list[Any]:
        companion = Companion("tests.services.beginning", str(gate))
        await companion.start()
        asked = [asyncio.create_task(companion.ask(question)) for question in (FIRST, *questions)]
        await asyncio.sleep(0)  # they are written
        await asyncio.to_thread(gate.write_bytes, b"")
        _, *answers = await asyncio.gather(*asked, return_exceptions=True)
        await companion.close()
        return [_without_first(answer) if isinstance(answer, list) else answer for answer in answers]

    return asyncio.run(ask())


def _without_first(done: list[str]) -> list[str]:
    return [each for each in done if not each.endswith(FIRST)]


def test_the_next_question_is_begun_and_no_further_one(tmp_path: Path) -> None:
    answers = _ask(tmp_path, "a", "b", "c", "d")
    order = ["begin a", "begin b", "finish a", "begin c", "finish b", "begin d", "finish c", "finish d"]
    assert answers == [order[:3], order[:5], order[:7], order]


def test_it_is_attentive_when_nobody_else_has_asked() -> None:
    async def ask() -> list[list[str]]:
        companion = Companion("tests.services.beginning", os.devnull)
        answers = [await companion.ask(question) for question in "ab"]
        await companion.close()
        return answers

    first, second = asyncio.run(ask())
    assert second == [*first, "attentive after a", "begin b", "finish b"]


def test_it_stays_awake_as_long_as_it_is_attentive() -> None:
    async def states() -> list[str]:
        companion = Companion("tests.services.beginning", os.devnull)
        await companion.ask("and stay awake")
        (child,) = _children()
        seen = []
        for _ in range(100):
            await asyncio.sleep(0.01)
            seen.append(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0])
        await companion.ask("and sleep")
        await companion.close()
        return seen

    assert asyncio.run(states()).count("R") > 50, "it runs, or would if it could"


def test_an_error_is_the_answer_to_its_own_question(tmp_path: Path) -> None:
    first, at_once, second, at_last, third = _ask(tmp_path, "a", "wrong at once", "b", "wrong at last", "c")
    assert isinstance(at_once, InvalidInput)
    assert isinstance(at_last, InvalidInput)
    assert (first[-1], second[-1], third[-1]) == ("finish a", "finish b", "finish c")
    assert "finish wrong at once" not in third


def test_questions_larger_than_its_pipe_go_through(tmp_path: Path) -> None:
    large = [letter * (2 * PIPE) for letter in "abc"]
    answers = _ask(tmp_path, *large)
    assert [answer[-1] for answer in answers] == [f"finish {question}" for question in large]


def test_who_asks_as_it_has_started_does_not_overtake() -> None:
    async def ask() -> list[str]:
        companion = Companion("tests.services.beginning", os.devnull)
        waiting = [asyncio.create_task(companion.ask(question)) for question in "abc"]
        while companion._process is None:
            await asyncio.sleep(0)
        done: list[str] = await companion.ask("d")
        await asyncio.gather(*waiting)
        await companion.close()
        return [each for each in done if each.startswith("begin")]

    assert asyncio.run(ask()) == ["begin a", "begin b", "begin c", "begin d"]


@pytest.mark.parametrize("again", ["while it starts", "when it has started", "never"])
def test_who_goes_away_while_it_starts_leaves_no_process_behind(again: str) -> None:
    async def ask() -> tuple[list[int], list[int]]:
        companion = Companion("tests.services.beginning", os.devnull)
        for steps in range(8):  # of the event loop, before it is given up
            asked = asyncio.create_task(companion.ask("a"))
            for _ in range(steps):
                await asyncio.sleep(0)
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asked
        if again == "when it has started" and companion._start is not None:
            await companion._start
        if again != "never":
            await companion.ask("b")
        started = _children()
        await companion.close()
        return started, _children()

    started, left = uvloop.run(ask())
    assert len(started) == 1
    assert left == []


def _children() -> list[int]:
    command = ["pgrep", "--parent", str(os.getpid()), "--full", "tests.services.beginning"]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_is_no_answer_ends_it_and_the_next_question_starts_another(run: Callable[..., Any]) -> None:
    async def ask() -> object:
        companion = Companion("tests.services.odd_answers", "")
        with pytest.raises(Unreachable, match="odd_answers ended"):
            await asyncio.wait_for(companion.ask("unreadable"), 30)
        answer = await companion.ask("one")
        await companion.close()
        return answer

    assert run(ask()) == "one"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_nobody_asked_is_not_the_next_answer(run: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> list[object]:
        companion = Companion("tests.services.odd_answers", "")
        answers = [await companion.ask(question) for question in ("unasked at length", "one")]
        await companion.close()
        return answers

    assert run(ask()) == ["unasked at length", "one"]
    assert caplog.text.count("answers what cannot be read") == 1


def test_what_a_companion_that_cannot_start_was_asked_is_said(tmp_path: Path) -> None:
    async def start() -> None:
        await Companion("tests.services.no_such_module", "").start()

    with pytest.raises(Unreachable, match=r"tests\.services\.no_such_module"):
        asyncio.run(start())
