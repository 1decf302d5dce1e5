"""Appending through one long call: many requests under way at once, answered in the order in which they came.

    read ──► wait for room ──► ledger/sequencer.py, with everybody else's ──► answers

What one call may have under way is bounded: MAX_UNANSWERED events. Beyond that, and while the ledger's queue is full,
nothing more is read, and gRPC slows the caller down. A caller that takes no answer for STALL_SECONDS is ended with
Overloaded; so is one too many at the start. Whatever ends a call, what it has submitted is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import grpc.aio
from modelledger.ledger.v1 import ledger_pb2

from ledger.committer import Appended
from ledger.errors import Overloaded
from ledger.kit.interceptors import told
from ledger.sequencer import MAX_REQUEST, Sequencer

METHOD = "/modelledger.ledger.v1.LedgerService/AppendStream"
MAX_UNANSWERED = 2 * MAX_REQUEST  # events of one call, as ledger.proto says: more than are under way in the writer
MAX_STREAMS = 256  # at the same time in this process
STALL_SECONDS = 60.0

Requests = AsyncIterable[ledger_pb2.AppendStreamRequest]


class Call(Protocol):
    """What is needed of a grpc.aio.ServicerContext."""

    def write(self, message: ledger_pb2.AppendStreamResponse) -> Awaitable[None]: ...
    def add_done_callback(self, callback: Callable[[Any], None]) -> None: ...


class AppendStreams:
    """Every call that appends through this process for as long as it likes."""

    def __init__(self, sequencer: Sequencer) -> None:
        self._sequencer = sequencer
        self._running = 0

    async def serve(self, requests: Requests, call: Call) -> None:
        """Answer until the caller has sent its last request. Raises Overloaded, and what ended the reading."""
        if self._running >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} streams append through this process, and more are not allowed")
        self._running += 1
        call.add_done_callback(self._left)
        with suppress(grpc.aio.InternalError):  # the caller went away while it was being sent something
            await _Stream(self._sequencer, call).serve(requests)

    def _left(self, call: object) -> None:
        self._running -= 1


class _Stream:
    """One call. `_unanswered`: number, events and answer to come of what was submitted; None at the end."""

    def __init__(self, sequencer: Sequencer, call: Call) -> None:
        self._sequencer = sequencer
        self._call = call
        self._unanswered: asyncio.Queue[tuple[int, int, asyncio.Future[Appended]] | None] = asyncio.Queue()
        self._events = 0  # that are not answered yet
        self._answered = asyncio.Event()

    async def serve(self, requests: Requests) -> None:
        reading = asyncio.create_task(self._read(requests))
        try:
            while (submitted := await self._unanswered.get()) is not None:
                number, events, answer = submitted
                await self._send(await _response(number, answer))
                self._events -= events
                self._answered.set()
            await reading  # raises what ended it
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, requests: Requests) -> None:
        try:
            async for request in requests:
                # A request that will be refused for its size is held as well.
                events = min(max(1, len(request.envelopes)), MAX_REQUEST)
                while self._events + events > MAX_UNANSWERED:
                    self._answered.clear()
                    await self._answered.wait()
                await self._sequencer.room(events)
                self._events += events
                self._unanswered.put_nowait((request.number, events, self._sequencer.submit(request.envelopes)))
        finally:
            self._unanswered.put_nowait(None)

    async def _send(self, response: ledger_pb2.AppendStreamResponse) -> None:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._call.write(response)
        except TimeoutError:
            raise Overloaded(
                f"no answer was read for {STALL_SECONDS:g} seconds; read the answers while you send, and send again "
                "what was not answered"
            ) from None


async def _response(number: int, answer: asyncio.Future[Appended]) -> ledger_pb2.AppendStreamResponse:
    try:
        return ledger_pb2.AppendStreamResponse(number=number, appended=proven(await answer))
    except Exception as error:  # this request's own; the next ones go on
        return ledger_pb2.AppendStreamResponse(number=number, refused=told(METHOD, error))


def proven(appended: Appended) -> ledger_pb2.AppendEventsResponse:
    """The events of one request, in the log."""
    return ledger_pb2.AppendEventsResponse(
        proofs=[
            ledger_pb2.InclusionProof(index=index, tree_size=appended.size, hashes=hashes)
            for index, hashes in zip(appended.indexes, appended.proofs, strict=True)
        ],
        checkpoint=appended.checkpoint,
    )
