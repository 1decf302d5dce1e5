"""An audit's reading on all cores: bundles in, what each holds out, in the same order.

Other processes are started once, and this one reads with them: it need not wait for the others while they start,
nor when they are behind. How far reading runs ahead is bounded.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import Any

from ledger.audit_entries import ReadBundle, begin_reading, read_bundle
from ledger.audit_source import Bundle
from ledger.errors import ModelLedgerError, Unreachable

AHEAD = 4  # bundles that wait to be judged, for each process
GIVEN = 3  # bundles that another process has at once: it never waits for this one, which may be reading

LOOKED_AFTER = 1.0  # seconds that an answer is waited for before it is asked whether all processes live
PATIENCE = 2.0  # seconds in which a broken pool ends by itself

Arguments = Callable[[Bundle], tuple[Any, ...]]
"""What `read_bundle` is called with for a bundle."""


def read_on_cores(bundles: Iterator[Bundle], arguments: Arguments, jobs: int) -> Iterator[tuple[Bundle, ReadBundle]]:
    """Every bundle with what it holds, read by `jobs` processes, of which this is one.

    An error of `bundles` comes behind all that was read before it. Raises Unreachable when a process was killed.
    """
    error: ModelLedgerError | None = None
    context = multiprocessing.get_context("spawn")  # never fork: grpc may be running
    with ProcessPoolExecutor(jobs - 1, context, begin_reading) as pool:
        reading = _Reading(pool, arguments, GIVEN * (jobs - 1))
        try:
            try:
                for bundle in bundles:
                    reading.add(bundle)
                    if len(reading.waiting) >= AHEAD * jobs:
                        yield reading.oldest()
            except ModelLedgerError as found:
                error = found
            while reading.waiting:
                yield reading.oldest()
        except BrokenExecutor:
            _abandon(pool)
            what = "a process that verifies was killed, perhaps for want of memory; --jobs 1 needs the least"
            raise Unreachable(what) from None
        finally:
            pool.shutdown(cancel_futures=True)
    if error:
        raise error


class _Reading:
    """`waiting`: bundles in order, each with what it holds, or will; None where nobody has begun."""

    def __init__(self, pool: ProcessPoolExecutor, arguments: Arguments, given: int) -> None:
        self.waiting: deque[tuple[Bundle, Future[ReadBundle] | None]] = deque()
        self._pool = pool
        self._arguments = arguments
        self._given = given

    def add(self, bundle: Bundle) -> None:
        self.waiting.append((bundle, None))
        self._give()

    def oldest(self) -> tuple[Bundle, ReadBundle]:
        """Take the first; until it is there, read here what nobody has begun."""
        while (future := self.waiting[0][1]) is None or not future.done():
            mine = next((i for i, (_, one) in enumerate(self.waiting) if one is None), None)
            if mine is None:
                break
            bundle, read = self.waiting[mine][0], Future[ReadBundle]()
            read.set_result(read_bundle(*self._arguments(bundle)))
            self.waiting[mine] = bundle, read
            self._give()
        bundle, future = self.waiting.popleft()
        assert future is not None  # noqa: S101 - for the type checker
        while True:
            with contextlib.suppress(TimeoutError):
                return bundle, future.result(LOOKED_AFTER)
            if not all(process.is_alive() for process in _processes(self._pool)):
                raise BrokenExecutor

    def _give(self) -> None:
        """See that the others have something to do."""
        free = self._given - sum(future is not None and not future.done() for _, future in self.waiting)
        for place, (bundle, future) in enumerate(self.waiting):
            if free > 0 and future is None:
                self.waiting[place] = bundle, self._pool.submit(read_bundle, *self._arguments(bundle))
                free -= 1


def _processes(pool: ProcessPoolExecutor) -> list[Any]:
    return list((pool._processes or {}).values())


def _abandon(pool: ProcessPoolExecutor) -> None:
    """See that a pool ends of which a process was killed.

    One that died within an answer, or was owed a question, leaves the pool's threads at pipes whose other ends this
    process holds open too: neither they nor `shutdown` would ever come back, and nothing public ends them.
    """
    for process in _processes(pool):
        process.kill()
    manager: Any = pool._executor_manager_thread  # a Thread, or None before the first question
    if manager is None:
        return
    manager.join(PATIENCE)
    if manager.is_alive():  # and waits, so that nobody else closes these; the last one wakes it
        for queue, end in (("_call_queue", "_reader"), ("_result_queue", "_writer")):
            getattr(getattr(pool, queue), end).close()
