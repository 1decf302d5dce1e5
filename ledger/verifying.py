"""Signatures of many events, verified on all cores.

    verify = AllCores()          # in the process that needs the verdicts, used by one thread
    verdicts = verify(checks)    # begins with them
    verdicts()                   # one for each, as verify_here(checks)

The cryptography package holds the interpreter's lock while it verifies, so threads gain nothing: the other cores are
helper processes. They get their share at once, so that this process may do something else meanwhile, and more whenever
they have done some; this process does the rest while it waits. A helper that dies or does not answer is done without
and loses nothing: its pieces are verified here.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ledger import envelope
from ledger.kit.answering import answer_questions
from ledger.kit.helper import Helper, Lost, answered

Check = tuple[bytes, bytes, bytes]
"""A public key (DER SubjectPublicKeyInfo) that the log holds, a signature, and the message it should be of."""
Verdicts = Callable[[], list[bool]]
"""Waits for the verdicts; to be called once."""
Verify = Callable[[Sequence[Check]], Verdicts]

WORTH_SHARING = 64  # checks, with one helper, whose core has the rest of the ledger to do as well
WORTH_SHARING_AMONG_MORE = 16  # checks; fewer are done before a helper has woken up
PIECE = 8  # checks; of the largest entries they have half of what a helper's pipe takes
BUSY = 2  # pieces that a helper has when it never waits for the next one
PATIENCE = 5.0  # seconds for one piece, which takes a thousandth of that
MOST_HELPERS = 8  # they verify ten times what one process can write
REST = 60.0  # seconds until another helper is started in the place of a lost one

log = logging.getLogger("modelledger.verifying")


def verify_here(checks: Sequence[Check]) -> list[bool]:
    """Whether each signature was made by its key over its message."""
    return [envelope.is_signed(envelope.load_public_key(der), signature, message) for der, signature, message in checks]


def verify_alone(checks: Sequence[Check]) -> Verdicts:
    """Without helpers."""
    return partial(verify_here, checks)


@dataclass(eq=False)
class _Piece:
    """Some of a batch's checks, the batch's pieces that nobody has begun with, and the verdicts when they are there."""

    checks: Sequence[Check]
    left: list[_Piece]
    verdicts: list[bool] | None = None

    def answer(self, verdicts: Any) -> None:
        """Raises Lost for what is no answer: a verdict too few would make every later one somebody else's."""
        if not isinstance(verdicts, list) or len(verdicts) != len(self.checks):
            self.left.append(self)
            raise Lost
        self.verdicts = verdicts


class AllCores:
    """Verifies with `helpers` other processes, which are started when they are first worth it."""

    def __init__(self, helpers: int | None = None) -> None:
        self._wanted = min(len(os.sched_getaffinity(0)) - 1, MOST_HELPERS) if helpers is None else helpers
        self._worth_sharing = WORTH_SHARING if self._wanted == 1 else WORTH_SHARING_AMONG_MORE
        self.helpers: list[Helper[_Piece]] = []
        self._started_at = -REST  # on the monotonic clock

    def __call__(self, checks: Sequence[Check]) -> Verdicts:
        if len(checks) < self._worth_sharing or not self._wanted:
            return verify_alone(checks)
        self.start()
        left: list[_Piece] = []
        pieces = [_Piece(checks[start : start + PIECE], left) for start in range(0, len(checks), PIECE)]
        left.extend(reversed(pieces))
        # This process has a share of its own, unless another batch is to be finished first.
        ahead = any(helper.asked for helper in self.helpers)
        share = -(-len(pieces) // max(1, len(self.helpers) + (not ahead)))
        for helper in self.helpers:
            self._give(helper, left, share)
        return partial(self._finish, pieces, left)

    def start(self) -> None:
        """Start the helpers that there are not, unless some were started a moment ago."""
        missing = self._wanted - len(self.helpers)
        if missing and time.monotonic() >= self._started_at + REST:
            self._started_at = time.monotonic()
            try:
                for _ in range(missing):
                    self.helpers.append(Helper("ledger.verifying"))
            except OSError as error:  # this machine has no room for them
                log.error("no process that verifies signatures can be started: %s", error)

    def close(self) -> None:
        for helper in list(self.helpers):
            self._end(helper)

    def _give(self, helper: Helper[_Piece], left: list[_Piece], pieces: int) -> None:
        while left and pieces > 0 and helper.ready and helper.ask(left[-1], left[-1].checks):
            left.pop()
            pieces -= 1

    def _finish(self, pieces: Sequence[_Piece], left: list[_Piece]) -> list[bool]:
        while left or any(piece.verdicts is None for piece in pieces):
            if left:
                piece = left.pop()
                piece.verdicts = verify_here(piece.checks)
            self._take(0 if left else PATIENCE)
            for helper in self.helpers:
                self._give(helper, left, BUSY - len(helper.asked))
        return [verdict for piece in pieces for verdict in piece.verdicts or ()]

    def _take(self, timeout: float) -> None:
        """What helpers have answered, or what they were given back."""
        asked = [helper for helper in self.helpers if helper.asked]
        if not asked:
            return
        there = answered(asked, timeout)
        for helper in there if there or not timeout else asked:
            try:
                if helper not in there:
                    raise Lost
                for piece, verdicts in helper.answers():
                    piece.answer(verdicts)
            except Lost:
                log.error("a process that verifies signatures is lost; its pieces are verified here")
                self._end(helper)

    def _end(self, helper: Helper[_Piece]) -> None:
        self.helpers.remove(helper)
        helper.close()
        for piece in helper.asked:
            piece.left.append(piece)


if __name__ == "__main__":
    answer_questions(lambda settings: verify_alone)
