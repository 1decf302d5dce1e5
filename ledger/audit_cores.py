"""An audit's reading on all cores: bundles in, what each holds out, in the same order.

    for bundle, read in read_on_cores(bundles, arguments, jobs): ...

Helper processes read, and this one reads with them: it need not wait for them while they start, nor when they are
behind. How far reading runs ahead is bounded. A helper that is killed, or does not answer, loses nothing: what it was
given is read here, and by no other helper, in case it was the bundle's fault. So are bundles that no pipe holds.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ledger.audit_entries import ReadBundle, read_bundle
from ledger.audit_source import Bundle
from ledger.errors import ModelLedgerError
from ledger.kit.answering import answer_questions
from ledger.kit.helper import Helper, Lost, answered

AHEAD = 4  # bundles that wait to be judged, for each process
GIVEN = 3  # bundles that a helper has at once: it never waits for this process, which may be reading
MOST_HELPERS = 32  # their pipes hold half of what all pipes of a user may, pipe(7): the ledger's are there, too
PATIENCE = 60.0  # seconds for one bundle, which takes a fiftieth of one, or one when everything in it is largest

Arguments = Callable[[Bundle], tuple[Any, ...]]
"""What `read_bundle` is called with for a bundle."""

log = logging.getLogger("modelledger.audit")


def read_on_cores(bundles: Iterator[Bundle], arguments: Arguments, jobs: int) -> Iterator[tuple[Bundle, ReadBundle]]:
    """Every bundle with what it holds, read by `jobs` processes, of which this is one.

    An error of `bundles` comes behind all that was read before it.
    """
    error: ModelLedgerError | None = None
    jobs = min(jobs, MOST_HELPERS + 1)
    cores = _Cores(arguments)
    try:
        cores.start(jobs - 1)
        try:
            for bundle in bundles:
                cores.add(bundle)
                if len(cores.waiting) >= AHEAD * jobs:
                    yield cores.oldest()
        except ModelLedgerError as found:
            error = found
        while cores.waiting:
            yield cores.oldest()
    finally:
        cores.close()
    if error:
        raise error


@dataclass(eq=False)
class _Waiting:
    """A bundle, whether somebody reads it, and what it holds when that is known."""

    bundle: Bundle
    begun: bool = False
    for_helpers: bool = True
    read: ReadBundle | None = None


class _Cores:
    """`waiting`: bundles in order, until each is the oldest and read."""

    def __init__(self, arguments: Arguments) -> None:
        self.waiting: deque[_Waiting] = deque()
        self._arguments = arguments
        self._helpers: list[Helper[_Waiting]] = []

    def start(self, helpers: int) -> None:
        """Start so many, or as many as there is room for."""
        try:
            for _ in range(helpers):
                self._helpers.append(Helper("ledger.audit_cores"))
        except OSError as wrong:  # this machine has no room for more
            log.warning("%d processes read, not %d: %s", len(self._helpers) + 1, helpers + 1, wrong)

    def add(self, bundle: Bundle) -> None:
        self.waiting.append(_Waiting(bundle))
        self._look(0)

    def oldest(self) -> tuple[Bundle, ReadBundle]:
        """Take the first; until it is there, read here what nobody has begun."""
        first = self.waiting[0]
        while first.read is None:
            mine = next((one for one in self.waiting if not one.begun), None)
            if mine is not None:
                mine.begun, mine.read = True, read_bundle(*self._arguments(mine.bundle))
            self._look(PATIENCE if mine is None else 0)
        self.waiting.popleft()
        return first.bundle, first.read

    def close(self) -> None:
        for helper in self._helpers:
            helper.close()

    def _look(self, timeout: float) -> None:
        """Take what helpers have read, and see that they have something to do."""
        asked = [helper for helper in self._helpers if helper.asked]
        there = answered(asked, timeout) if asked else []
        for helper in there if there or not timeout else asked:
            try:
                if helper not in there:
                    raise Lost
                for one, read in helper.answers():
                    _answer(one, read)
            except Lost:
                log.warning("a process that reads was killed or does not answer; its bundles are read here")
                self._end(helper)
        for helper in self._helpers:
            self._give(helper)

    def _give(self, helper: Helper[_Waiting]) -> None:
        if len(helper.asked) >= GIVEN or not helper.ready:
            return
        free = [one for one in self.waiting if one.for_helpers and not one.begun]
        for one in free[: GIVEN - len(helper.asked)]:
            if not helper.ask(one, self._arguments(one.bundle)):
                one.for_helpers = bool(helper.asked)  # it may fit when less is waiting to be answered
                return
            one.begun = True

    def _end(self, helper: Helper[_Waiting]) -> None:
        self._helpers.remove(helper)
        helper.close()
        for one in helper.asked:
            one.begun = one.for_helpers = False


def _answer(one: _Waiting, read: Any) -> None:
    if not isinstance(read, ReadBundle):  # an error of that process; here it will say what it is
        one.begun = one.for_helpers = False
        raise Lost
    one.read = read


if __name__ == "__main__":
    answer_questions(lambda settings: lambda question: partial(read_bundle, *question))
