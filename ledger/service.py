"""LedgerService: messages to the log and back; decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from ledger import merkle
from ledger.cosigned import Checkpoints, PlainCheckpoints
from ledger.errors import InvalidInput
from ledger.sequencer import Sequencer
from ledger.store import Store, StoredRow
from ledger.writing import Head

PAGE_SIZE, MAX_PAGE_SIZE = 100, 1_000
MAX_KINDS = 100
MAX_TEXT = 600
WATCH_BATCH = 500
# A response stays below the 4 MiB that gRPC clients accept by default.
MAX_PAGE_BYTES = 3 << 20

Context = Any  # grpc.aio.ServicerContext; the handlers use nothing of it


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """The log over gRPC."""

    def __init__(self, store: Store, sequencer: Sequencer, checkpoints: Checkpoints | None = None) -> None:
        self._store = store
        self._sequencer = sequencer
        self._checkpoints = checkpoints or PlainCheckpoints(store)

    async def AppendEvents(
        self, request: ledger_pb2.AppendEventsRequest, context: Context
    ) -> ledger_pb2.AppendEventsResponse:
        appended = await self._sequencer.append(request.envelopes)
        return ledger_pb2.AppendEventsResponse(
            proofs=[
                ledger_pb2.InclusionProof(index=index, tree_size=appended.size, hashes=hashes)
                for index, hashes in zip(appended.indexes, appended.proofs, strict=True)
            ],
            checkpoint=appended.checkpoint,
        )

    async def GetEvent(self, request: ledger_pb2.GetEventRequest, context: Context) -> ledger_pb2.GetEventResponse:
        if request.WhichOneof("key") == "id":
            _check_text("id", request.id)
            row = await asyncio.to_thread(self._store.get_by_id, request.id)
        else:
            row = await asyncio.to_thread(self._store.get, request.index)
        return ledger_pb2.GetEventResponse(event=_event(row))

    async def ListEvents(
        self, request: ledger_pb2.ListEventsRequest, context: Context
    ) -> ledger_pb2.ListEventsResponse:
        size = page_size(request.page_size)
        _check_text("stream", request.stream)
        _check_text("stream_prefix", request.stream_prefix)
        start, stop = request.start_index, None
        if request.page_token:
            position = _page_position(request.page_token)
            start, stop = (start, position) if request.descending else (max(start, position), None)
        rows = await asyncio.to_thread(
            self._store.select,
            start=start,
            stop=stop,
            stream=request.stream,
            stream_prefix=request.stream_prefix,
            kinds=_kinds(request.kinds),
            after_version=request.after_version or None,
            descending=request.descending,
            limit=size + 1,
        )
        page = _fitting(rows[:size])
        token = ""
        if len(rows) > len(page):
            token = str(page[-1].position + (0 if request.descending else 1))
        return ledger_pb2.ListEventsResponse(events=map(_event, page), next_page_token=token)

    async def WatchEvents(
        self, request: ledger_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[ledger_pb2.WatchEventsResponse]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def notify(head: Head) -> None:
            loop.call_soon_threadsafe(changed.set)

        _check_text("stream_prefix", request.stream_prefix)
        position, kinds = request.start_index, _kinds(request.kinds)
        self._store.listeners.add(notify)
        try:
            while True:
                changed.clear()
                size = self._store.head.size
                select = partial(self._store.select, stream_prefix=request.stream_prefix, kinds=kinds)
                rows = await asyncio.to_thread(select, start=position, stop=size, limit=WATCH_BATCH)
                rows = _fitting(rows)
                caught_up = not rows or rows[-1].position + 1 >= size
                if len(rows) < WATCH_BATCH and not caught_up:
                    # What lies behind the last match was looked at only when the page was not cut short.
                    caught_up = not await asyncio.to_thread(select, start=rows[-1].position + 1, stop=size, limit=1)
                position = max(position, size if caught_up else rows[-1].position + 1)
                yield ledger_pb2.WatchEventsResponse(events=map(_event, rows), caught_up=caught_up, next_index=position)
                while caught_up and self._store.head.size <= position:
                    await changed.wait()
                    changed.clear()
        finally:
            self._store.listeners.discard(notify)

    async def GetCheckpoint(
        self, request: ledger_pb2.GetCheckpointRequest, context: Context
    ) -> ledger_pb2.GetCheckpointResponse:
        choose = self._checkpoints.agreed if request.cosigned else self._checkpoints.newest
        published = await asyncio.to_thread(choose)
        return ledger_pb2.GetCheckpointResponse(checkpoint=published.note, vkey=self._store.signer.vkey())

    async def GetInclusionProof(
        self, request: ledger_pb2.GetInclusionProofRequest, context: Context
    ) -> ledger_pb2.GetInclusionProofResponse:
        head = self._store.head
        size = _tree_size(request.tree_size, head)
        if not 0 <= request.index < size:
            raise InvalidInput(f"index {request.index} is not in a tree of {size} events")
        hashes = await asyncio.to_thread(merkle.inclusion_proof, self._store.tiles(head), request.index, size)
        return ledger_pb2.GetInclusionProofResponse(
            proof=ledger_pb2.InclusionProof(index=request.index, tree_size=size, hashes=hashes),
            checkpoint=head.checkpoint,
        )

    async def GetConsistencyProof(
        self, request: ledger_pb2.GetConsistencyProofRequest, context: Context
    ) -> ledger_pb2.GetConsistencyProofResponse:
        head = self._store.head
        size = _tree_size(request.new_size, head)
        if not 1 <= request.old_size <= size:
            raise InvalidInput(f"there is no proof from size {request.old_size} to size {size}")
        hashes = await asyncio.to_thread(merkle.consistency_proof, self._store.tiles(head), request.old_size, size)
        return ledger_pb2.GetConsistencyProofResponse(new_size=size, hashes=hashes, checkpoint=head.checkpoint)


def page_size(asked: int) -> int:
    """How many items a List answers with."""
    if asked < 0:
        raise InvalidInput("page_size: is negative")
    return min(asked or PAGE_SIZE, MAX_PAGE_SIZE)


def _page_position(token: str) -> int:
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidInput("page_token: is not one that this method gave out")
    return int(token)


def _kinds(kinds: Any) -> list[str]:
    if len(kinds) > MAX_KINDS:
        raise InvalidInput(f"kinds: more than {MAX_KINDS}")
    for number, kind in enumerate(kinds):
        _check_text(f"kinds[{number}]", kind)
    return list(kinds)


def _check_text(field: str, text: str) -> None:
    """Nothing in the log has such an id, stream or kind (ledger/statement.py), and a database may not take it."""
    if len(text) > MAX_TEXT or not text.isprintable():
        raise InvalidInput(f"{field}: is not a text of at most {MAX_TEXT} characters without control characters")


def _tree_size(asked: int, head: Head) -> int:
    size = asked or head.size
    if not 1 <= size <= head.size:
        raise InvalidInput(f"tree size {asked} is not between 1 and {head.size}")
    return size


def _fitting(rows: list[StoredRow]) -> list[StoredRow]:
    """As many of the rows, at least one, as fit one message."""
    total = 0
    for number, row in enumerate(rows):
        total += len(row.entry) + 500
        if total > MAX_PAGE_BYTES and number:
            return rows[:number]
    return rows


def _event(row: StoredRow) -> ledger_pb2.Event:
    return ledger_pb2.Event(
        index=row.position, envelope=row.entry, id=row.id, stream=row.stream, version=row.version, kind=row.kind
    )
