"""Concurrent appends share one transaction.

    append(envelopes) ──► queue ──► batches, in order, to the writer process ──► answers

While one batch is being written, the next one gathers, and the writer begins with it when it is worth it. An answer
is given only after the commit, and a commit is never given up because a caller went away. When too much is queued, a
caller is told when to come again, or waits for room (ledger/append_streams.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ledger.committer import Appended, Request
from ledger.envelope import check_size
from ledger.errors import EventTooLarge, InvalidInput, Overloaded

MAX_REQUEST = 1_000  # events in one request
MAX_BATCH = 256  # events in one transaction, unless a single request has more; more would make none cheaper
UNDER_WAY = 3  # batches: one that is written, one that the writer has begun with, and one that is on its way there
WORTH_BEGINNING = 32  # events; fewer wait until the writer has nothing to do, and more of them come together
MAX_QUEUED = 10_000  # events waiting
FIRST_RATE = 1_000.0  # events a second that are expected of the writer before it has written any
KEPT = 0.8  # of what was measured before, with each batch: about the last ten count
RETRY_AFTER = 0.1, 30.0  # seconds, the least and the most that a caller is asked to wait


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

    def refuse(self, error: Exception) -> asyncio.Future[Appended]:
        self.answer.set_exception(error)
        self.answer.exception()  # marked as seen: the caller may be gone
        return self.answer


class Sequencer:
    """Owns the order of events of one log. It belongs to the event loop it is first used on."""

    def __init__(self, writer: Writes) -> None:
        self._writer = writer
        self._queue: deque[_Request] = deque()
        self._queued_events = 0  # in the queue, or in a batch that is not written yet
        self._gathered = 0  # of them, in no batch yet
        self._written = asyncio.Event()  # that a batch was, since somebody began to wait for it
        self._written_at = 0.0  # time.monotonic()
        self._measured = FIRST_RATE, 1.0  # events, and the seconds in which they were written
        self._writing: set[asyncio.Task[None]] = set()

    async def append(self, envelopes: Sequence[bytes]) -> Appended:
        """Append all or none. Raises the error of the first broken rule, with every violation on it."""
        return await self.submit(envelopes)

    async def room(self, events: int) -> None:
        """Wait until so many events would be taken, at most MAX_REQUEST."""
        while self._queued_events + events > MAX_QUEUED:
            self._written.clear()
            await self._written.wait()

    def submit(self, envelopes: Sequence[bytes]) -> asyncio.Future[Appended]:
        """What `append` waits for, its errors too. Events are appended in the order of the calls."""
        request = _Request(envelopes, asyncio.get_running_loop().create_future())
        if not 1 <= len(envelopes) <= MAX_REQUEST:
            return request.refuse(InvalidInput(f"a request appends 1 to {MAX_REQUEST} events, not {len(envelopes)}"))
        try:
            for position, entry in enumerate(envelopes):  # so that MAX_QUEUED bounds bytes, too
                check_size(entry, f"envelopes[{position}]: ")
        except EventTooLarge as error:
            return request.refuse(error)
        if self._queued_events + len(envelopes) > MAX_QUEUED:
            return request.refuse(self._overloaded())
        self._queue.append(request)
        self._queued_events += len(envelopes)
        self._gathered += len(envelopes)
        self._go_on()
        # A caller that goes away cancels its answer, not the commit that may be under way.
        return request.answer

    async def close(self) -> None:
        """Write what is queued, then stop the writer."""
        while self._writing:
            await asyncio.wait(self._writing)
        await self._writer.close()

    def _go_on(self) -> None:
        """Give the writer what has gathered when it has nothing to do, or something it may begin with meanwhile."""
        while self._queue and len(self._writing) < (UNDER_WAY if self._gathered >= WORTH_BEGINNING else 1):
            task = asyncio.create_task(self._write(self._next_batch()))
            self._writing.add(task)
            task.add_done_callback(self._written_one)

    def _next_batch(self) -> list[_Request]:
        batch: list[_Request] = []
        events = 0
        while self._queue and (not batch or events + len(self._queue[0].envelopes) <= MAX_BATCH):
            batch.append(self._queue.popleft())
            events += len(batch[-1].envelopes)
        self._gathered -= events
        return batch

    async def _write(self, batch: Sequence[_Request]) -> None:
        results: Sequence[Appended | Exception]
        begun = time.monotonic()
        try:
            results = await self._writer.commit([list(request.envelopes) for request in batch])
            self._measure(sum(len(request.envelopes) for request in batch), begun)
        except Exception as error:  # every caller of the batch learns why nothing was acknowledged
            results = [error] * len(batch)
        for request, result in zip(batch, results, strict=True):
            self._queued_events -= len(request.envelopes)
            if request.answer.cancelled():
                continue
            if isinstance(result, Exception):
                request.refuse(result)
            else:
                request.answer.set_result(result)

    def _written_one(self, task: asyncio.Task[None]) -> None:
        self._writing.remove(task)
        self._written.set()
        self._go_on()

    def _overloaded(self) -> Overloaded:
        events, seconds = self._measured
        least, most = RETRY_AFTER
        wait = min(max(self._queued_events * seconds / events, least), most)
        message = f"{self._queued_events} events are waiting to be written; retry in {wait:.1f} seconds"
        return Overloaded(message, retry_after=wait)

    def _measure(self, events: int, begun: float) -> None:
        """Learn from a batch how fast the writer is; it began with it when it was done with the one before."""
        now = time.monotonic()
        before, seconds = self._measured
        self._measured = KEPT * before + events, KEPT * seconds + now - max(begun, self._written_at)
        self._written_at = now
