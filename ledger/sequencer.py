"""The single writer: concurrent appends share one transaction.

    append(envelopes) ──► queue ──► one batch at a time, off the event loop:
        read the envelopes, verify signatures, look up what the rules ask, check every event,
        write events + tiles + checkpoint in one transaction, prove every event ──► answers

A request is all or nothing: an event that breaks a rule fails its own request and no other. An answer is
given only after the commit, and a commit is never given up because a caller went away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ledger import envelope as dsse
from ledger import rules, statement
from ledger.database import driver_errors
from ledger.errors import BY_REASON, EventIdReused, InvalidInput, Overloaded
from ledger.merkle import inclusion_proof
from ledger.reading import Read, read_requests
from ledger.rules import Known
from ledger.store import Store, StoredRow
from ledger.writing import row_of

MAX_REQUEST = 1_000  # events in one request
MAX_BATCH = 1_000  # events in one transaction, unless a single request has more
MAX_QUEUED = 10_000  # events waiting

KEY_KINDS = ("LogCreated", "ActorEnrolled", "ActorKeyRotated", "ActorRevoked")


@dataclass(frozen=True)
class Appended:
    """Positions of a request's events, their inclusion proofs in the tree of `size`, and its checkpoint."""

    indexes: tuple[int, ...]
    proofs: tuple[tuple[bytes, ...], ...]
    size: int
    checkpoint: bytes


@dataclass
class _Request:
    envelopes: Sequence[bytes]
    answer: asyncio.Future[Appended]


class Sequencer:
    """Owns the order of events of one store. `append` belongs to the event loop it is first called on."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.known_keys: dict[str, rules.ActorKey] = {}
        self._keys_size = 0  # known_keys are those after this many events
        self._catch_up(store.head.size)
        self._queue: deque[_Request] = deque()
        self._queued_events = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sequencer")
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

    def append_now(self, envelopes: Sequence[bytes]) -> Appended:
        """The same without an event loop, for start-up. Not to be mixed with a running `append`."""
        result = self._commit([envelopes])[0]
        if isinstance(result, Exception):
            raise result
        return result

    async def close(self) -> None:
        """Write what is queued, then stop."""
        if self._running is not None:
            await self._running
        self._thread.shutdown()

    async def _drain(self) -> None:
        while self._queue:
            await self._write(self._next_batch())

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
            results = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._commit, [request.envelopes for request in batch]
            )
        except Exception as error:  # every caller of the batch learns why nothing was written
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

    def _commit(self, requests: Sequence[Sequence[bytes]]) -> list[Appended | Exception]:
        """One transaction for many requests; one answer or error for each."""
        read = read_requests(requests, self.known_keys)
        accepted: list[Read] = []
        indexes: list[tuple[int, ...] | Exception] = []
        with driver_errors(), self.store.writing() as writing:
            if writing.size != self._keys_size:
                # Another process wrote, or a commit of ours went through unacknowledged.
                self._catch_up(writing.size)
                read = read_requests(requests, self.known_keys)
            events = [item.candidate.event for items in read if isinstance(items, list) for item in items]
            known = writing.known(
                digests=(a.sha256 for event in events for a in (*event.materials, *event.subjects)),
                ids=(event.id for event in events),
                streams=(event.stream for event in events),
            )
            known.keys = self.known_keys
            for items in read:
                if isinstance(items, Exception):
                    indexes.append(items)
                    continue
                attempt = known.fork()
                try:
                    positions, fresh = _check_request(attempt, items)
                except Exception as error:  # whatever is wrong with one request is that request's own
                    indexes.append(error)
                    continue
                known = attempt
                indexes.append(positions)
                accepted += fresh
            writing.append([row_of(i.candidate.event, i.candidate.payload_sha256, i.entry) for i in accepted])
        self.known_keys, self._keys_size = known.keys, known.size
        return [result if isinstance(result, Exception) else self._prove(result) for result in indexes]

    def _prove(self, indexes: tuple[int, ...]) -> Appended:
        head = self.store.head
        tiles = self.store.tiles(head)
        proofs = tuple(tuple(inclusion_proof(tiles, index, head.size)) for index in indexes)
        return Appended(indexes, proofs, head.size, head.checkpoint)

    def _catch_up(self, size: int) -> None:
        """Learn the actors' keys from the committed events up to `size`."""
        known, start = Known(keys=dict(self.known_keys)), self._keys_size
        while rows := self.store.select(start=start, stop=size, kinds=KEY_KINDS, limit=1_000):
            for row in rows:
                rules.learn_keys(known, read_event(row), row.position)
            start = rows[-1].position + 1
        self.known_keys, self._keys_size = known.keys, size


def _check_request(known: Known, items: Sequence[Read]) -> tuple[tuple[int, ...], list[Read]]:
    """Positions of a request's events, and those of them that are new. Raises when any may not be appended."""
    positions, fresh, violations = [], [], []
    for number, item in enumerate(items):
        event = item.candidate.event
        if event.id in known.ids:
            index, payload_sha256 = known.ids[event.id]
            if payload_sha256 != item.candidate.payload_sha256:
                raise EventIdReused(
                    f"envelopes[{number}]: event id {event.id} is taken by another event at index {index}"
                )
            positions.append(index)
            continue
        found = rules.check(known, item.candidate)
        violations += [replace(v, field=f"envelopes[{number}].{v.field}") for v in found]
        if not found:
            positions.append(known.size)
            fresh.append(item)
            rules.learn(known, item.candidate)
    if violations:
        # A lost race is reported as such only when nothing else is wrong.
        first = next((v for v in violations if v.reason != "WRONG_STREAM_VERSION"), violations[0])
        raise BY_REASON[first.reason]("; ".join(map(str, violations)), violations=violations)
    return tuple(positions), fresh


def read_event(row: StoredRow) -> statement.Event:
    """The event inside a stored row, whose signature was verified when it was appended."""
    return statement.decode(dsse.parse(row.entry).payload)
