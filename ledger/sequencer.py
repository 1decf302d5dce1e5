"""Concurrent appends share one transaction.

    append(envelopes) ──► queue ──► one batch at a time to the writer process ──► answers

While one batch is being written, the next one gathers. An answer is given only after the commit, and a commit is
never given up because a caller went away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ledger.committer import Appended, Request
from ledger.errors import InvalidInput, Overloaded

MAX_REQUEST = 1_000  # events in one request
MAX_BATCH = 1_000  # events in one transaction, unless a single request has more
MAX_QUEUED = 10_000  # events waiting
IN_FLIGHT = 2  # batches that the writer has: one it works on, and one for when it is done


class Writes(Protocol):
    """What ledger/writer.py offers."""

    async def commit(self, requests: Sequence[Request]) -> Sequence[Appended | Exception]:
        """One answer or error for each request, after one durable commit; calls are served in their order."""
        ...

    async def close(self) -> None: ...


@dataclass
class _Request:
    envelopes: Sequence[bytes]
    answer: asyncio.Future[Appended]


class Sequencer:
    """Owns the order of events of one log. It belongs to the event loop it is first used on."""

    def __init__(self, writer: Writes) -> None:
        self._writer = writer
        self._queue: deque[_Request] = deque()
        self._queued_events = 0
        self._running: asyncio.Task[None] | None = None

    async def append(self, envelopes: Sequence[bytes]) -> Appended:
        """Append all or none. Raises the error of the first broken rule, with every violation on it."""
        if not 1 <= len(envelopes) <= MAX_REQUEST:
            raise InvalidInput(f"a request appends 1 to {MAX_REQUEST} events, not {len(envelopes)}")
        if self._queued_events + len(envelopes) > MAX_QUEUED:
            raise Overloaded("too many events are waiting to be written; retry in a second")
        request = _Request(envelopes, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._queued_events += len(envelopes)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._drain())
        # A caller that goes away cancels its answer, not the commit that may be under way.
        return await request.answer

    async def close(self) -> None:
        """Write what is queued, then stop the writer."""
        if self._running is not None:
            await self._running
        await self._writer.close()

    async def _drain(self) -> None:
        writing: set[asyncio.Task[None]] = set()
        while self._queue or writing:
            if self._queue and len(writing) < IN_FLIGHT:
                writing.add(asyncio.create_task(self._write(self._next_batch())))
            else:
                _, writing = await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)

    def _next_batch(self) -> list[_Request]:
        batch: list[_Request] = []
        events = 0
        while self._queue and (not batch or events + len(self._queue[0].envelopes) <= MAX_BATCH):
            batch.append(self._queue.popleft())
            events += len(batch[-1].envelopes)
        return batch

    async def _write(self, batch: Sequence[_Request]) -> None:
        results: Sequence[Appended | Exception]
        try:
            results = await self._writer.commit([list(request.envelopes) for request in batch])
        except Exception as error:  # every caller of the batch learns why nothing was acknowledged
            results = [error] * len(batch)
        for request, result in zip(batch, results, strict=True):
            self._queued_events -= len(request.envelopes)
            if request.answer.cancelled():
                continue
            if isinstance(result, Exception):
                request.answer.set_exception(result)
                request.answer.exception()  # marked as seen: the caller may be gone
            else:
                request.answer.set_result(result)
