"""A companion that says what it did so far: `python -m tests.services.beginning`, see test_companion.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ledger.errors import InvalidInput
from ledger.kit.companion import answer_questions


class Beginning:
    """Begins with its first question when the pipe that it was opened with is opened by somebody else, too."""

    def __init__(self, gate: str) -> None:
        self._gate = Path(gate)
        self._done: list[str] = []

    def __call__(self, question: str) -> Callable[[], list[str]]:
        if not self._done:
            self._gate.read_bytes()
        self._done.append(f"begin {question}")
        if question == "wrong at once":
            raise InvalidInput(question)
        return partial(self._finish, question)

    def _finish(self, question: str) -> list[str]:
        self._done.append(f"finish {question}")
        if question == "wrong at last":
            raise InvalidInput(question)
        return self._done


if __name__ == "__main__":
    answer_questions(Beginning)
