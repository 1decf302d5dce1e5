"""A child that answers oddly: `python -m tests.services.odd_answers`, see test_helper.py and test_companion.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ledger.kit.answering import answer_questions
from ledger.kit.frames import frame


class Unreadable:
    """What only this process knows: pickled as a class of `__main__`."""


def answer(question: str) -> Any:
    print("this is no answer")
    if question == "unreadable":
        return Unreadable()
    if question == "unasked":
        os.write(int(sys.argv[2]), frame("what nobody asked"))
    if question == "unasked at length":
        os.write(int(sys.argv[2]), frame(question) + frame("what nobody asked") + bytes(1 << 20))
    return question


def open_it(settings: object) -> Callable[[str], Callable[[], Any]]:
    print("this neither")
    return lambda question: partial(answer, question)


if __name__ == "__main__":
    os.write(1, b"nor this\n")
    if "UNREADABLE" in os.environ:
        os.write(int(sys.argv[2]), frame(Unreadable()))
    answer_questions(open_it)
