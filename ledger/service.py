"""LedgerService: messages to the log and back; decides nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from ledger import merkle
from ledger.append_streams import AppendStreams, Requests, proven
from ledger.cosigned import Checkpoints, PlainCheckpoints
from ledger.errors import InvalidInput
from ledger.event_messages import event
from ledger.event_pages import list_page
from ledger.sequencer import Sequencer
from ledger.store import Store
from ledger.watching import Wanted, Watchers, WatchLimits
from ledger.writing import Head

PAGE_SIZE, MAX_PAGE_SIZE = 100, 1_000
MAX_KINDS = 100
MAX_TEXT = 600

Context = Any  # grpc.aio.ServicerContext; only AppendStream and WatchEvents use it


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """The log over gRPC."""

    def __init__(
        self,
        store: Store,
        sequencer: Sequencer,
        checkpoints: Checkpoints | None = None,
        limits: WatchLimits | None = None,
    ) -> None:
        self._store = store
        self._sequencer = sequencer
        self._checkpoints = checkpoints or PlainCheckpoints(store)
        self._streams = AppendStreams(sequencer)
        self._watchers = Watchers(store, limits)

    async def AppendEvents(
        self, request: ledger_pb2.AppendEventsRequest, context: Context
    ) -> ledger_pb2.AppendEventsResponse:
        return proven(await self._sequencer.append(request.envelopes))

    async def AppendStream(  # type: ignore[override]  # it writes to the context, as grpc.aio allows
        self, request_iterator: Requests, context: Context
    ) -> None:
        await self._streams.serve(request_iterator, context)

    async def GetEvent(self, request: ledger_pb2.GetEventRequest, context: Context) -> ledger_pb2.GetEventResponse:
        if request.WhichOneof("key") == "id":
            _check_text("id", request.id)
            row = await asyncio.to_thread(self._store.get_by_id, request.id)
        else:
            row = await asyncio.to_thread(self._store.get, request.index)
        return ledger_pb2.GetEventResponse(event=event(row))

    async def ListEvents(
        self, request: ledger_pb2.ListEventsRequest, context: Context
    ) -> ledger_pb2.ListEventsResponse:
        size = page_size(request.page_size)
        _check_text("stream", request.stream)
        _check_text("stream_prefix", request.stream_prefix)
        _kinds(request.kinds)
        page, token = await asyncio.to_thread(list_page, self._store, request, size)
        return ledger_pb2.ListEventsResponse(events=map(event, page), next_page_token=token)

    async def WatchEvents(  # type: ignore[override]  # it writes to the context, as grpc.aio allows
        self, request: ledger_pb2.WatchEventsRequest, context: Context
    ) -> None:
        if request.start_index < 0:
            raise InvalidInput("start_index: is negative")
        _check_text("stream_prefix", request.stream_prefix)
        wanted = Wanted(request.start_index, request.stream_prefix, _kinds(request.kinds))
        await self._watchers.follow(wanted, context)

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
