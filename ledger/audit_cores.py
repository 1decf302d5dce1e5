"""An audit's reading on all cores: bundles in, what each holds out, in the same order.

Other processes are started once, and this one reads with them: it need not wait for the others while they start,
nor when they are behind. How far reading runs ahead is bounded.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from ledger.audit_entries import ReadBundle, begin_reading, read_bundle
from ledger.audit_source import Bundle
from ledger.errors import ModelLedgerError

AHEAD = 4  # bundles under way for each process

Arguments = Callable[[Bundle], tuple[Any, ...]]
"""What `read_bundle` is called with for a bundle."""


def read_on_cores(bundles: Iterator[Bundle], arguments: Arguments, jobs: int) -> Iterator[tuple[Bundle, ReadBundle]]:
    """Every bundle with what it holds, read by `jobs` processes, of which this is one.

    An error of `bundles` comes behind all that was read before it.
    """
    waiting: deque[tuple[Bundle, Future[ReadBundle]]] = deque()
    error: ModelLedgerError | None = None
    context = multiprocessing.get_context("spawn")  # never fork: grpc may be running
    with ProcessPoolExecutor(jobs - 1, context, begin_reading) as pool:
        try:
            try:
                for bundle in bundles:
                    waiting.append((bundle, pool.submit(read_bundle, *arguments(bundle))))
                    if len(waiting) >= AHEAD * jobs:
                        yield _oldest(waiting, arguments)
            except ModelLedgerError as found:
                error = found
            while waiting:
                yield _oldest(waiting, arguments)
        finally:
            pool.shutdown(cancel_futures=True)
    if error:
        raise error


def _oldest(waiting: deque[tuple[Bundle, Future[ReadBundle]]], arguments: Arguments) -> tuple[Bundle, ReadBundle]:
    """Take the first that waits; until it is there, read here what nobody has begun."""
    while not waiting[0][1].done():
        begun = next((i for i, (_, future) in enumerate(waiting) if future.cancel()), None)
        if begun is None:
            break
        bundle, future = waiting[begun][0], Future[ReadBundle]()
        future.set_result(read_bundle(*arguments(bundle)))
        waiting[begun] = bundle, future
    bundle, future = waiting.popleft()
    return bundle, future.result()
