"""A companion that says what it did so far: `python -m tests.services.beginning`, see test_companion.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ledger.errors import InvalidInput
from ledger.kit.answering import answer_questions

done: list[str] = []


class Beginning:
    """Begins with its first question when the pipe that it was opened with is opened by somebody else, too."""

    def __init__(self, gate: str) -> None:
        self._gate = Path(gate)

    def __call__(self, question: str) -> Callable[[], list[str]]:
        if not done:
            self._gate.read_bytes()
        done.append(f"begin {question}")
        if question == "wrong at once":
            raise InvalidInput(question)
        return partial(self._finish, question)

    def _finish(self, question: str) -> list[str]:
        done.append(f"finish {question}")
        if question == "wrong at last":
            raise InvalidInput(question)
        return done


def attentive(question: str) -> float:
    if done:  # the first question of all opens it
        done.append(f"attentive after {question}")
    return 60.0 if question == "and stay awake" else 0.0


if __name__ == "__main__":
    answer_questions(Beginning, attentive)
