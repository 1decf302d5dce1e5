"""RegistryService: answers from the registry view, and the commands that change what is active.

Every answer holds everything that was in the log when the call came. A command decides on one snapshot of the
view and appends under the stream version that snapshot saw; when another command was faster it decides again.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import grpc.aio
from google.protobuf.message import Message
from modelledger.ledger.v1 import events_pb2, registry_pb2, registry_pb2_grpc

from ledger import registry_read, strict_json
from ledger.errors import EventIdReused, InvalidInput, NotFound, Refused, Violation, WrongStreamVersion
from ledger.kit.interceptors import caller
from ledger.local_actor import LocalActor
from ledger.paging import page
from ledger.reading import read_event
from ledger.registry_view import Document
from ledger.rendered_files import FILES
from ledger.resource_names import (
    ModelName,
    Number,
    parse_model,
    parse_number,
    parse_org,
    parse_served,
    parse_version,
    split_version,
)
from ledger.schema import from_data
from ledger.statement import Artifact, new_id
from ledger.store import Store
from ledger.view_reader import ViewReader
from ledger.view_store import ViewRows

ATTEMPTS = 5  # at a command, before it answers that others keep being faster
MAX_FILE_BYTES = 3 << 20  # gRPC clients take messages of up to 4 MiB
MAX_TEXT = 1_000  # characters of a reason or a request id
REQUESTS = uuid.UUID("8c0bb6c5-6a6c-5b0e-9d4a-6f2f1a0c7e55")  # namespace of event ids made from request ids

Context = grpc.aio.ServicerContext[Any, Any]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)  # RFC 3339


class Decision(NamedTuple):
    """What a command wants to append, given what the view shows."""

    data: Message
    subjects: list[Artifact]


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Over a store, its registry view, and the actor that signs what the registry records."""

    def __init__(self, store: Store, view: ViewReader, actor: LocalActor) -> None:
        self._store = store
        self._view = view
        self._actor = actor

    # Lists

    async def ListBaseModels(
        self, request: registry_pb2.ListBaseModelsRequest, context: Context
    ) -> registry_pb2.ListBaseModelsResponse:
        def read(rows: ViewRows) -> registry_pb2.ListBaseModelsResponse:
            items, token = page(
                rows,
                "base/",
                request.page_size,
                request.page_token,
                lambda key, document: registry_read.base_model(rows, document),
            )
            return registry_pb2.ListBaseModelsResponse(base_models=items, next_page_token=token)

        return await self._view.read(read)

    async def ListDatasets(
        self, request: registry_pb2.ListDatasetsRequest, context: Context
    ) -> registry_pb2.ListDatasetsResponse:
        prefix = f"dataset/{parse_org(request.parent, 'parent')}/"

        def read(rows: ViewRows) -> registry_pb2.ListDatasetsResponse:
            items, token = page(
                rows,
                prefix,
                request.page_size,
                request.page_token,
                lambda key, document: registry_read.dataset(document),
                descending=True,
            )
            return registry_pb2.ListDatasetsResponse(datasets=items, next_page_token=token)

        return await self._view.read(read)

    async def ListModels(
        self, request: registry_pb2.ListModelsRequest, context: Context
    ) -> registry_pb2.ListModelsResponse:
        prefix = "model/" if request.parent == "orgs/-" else f"model/{parse_org(request.parent, 'parent')}/"

        def read(rows: ViewRows) -> registry_pb2.ListModelsResponse:
            items, token = page(rows, prefix, request.page_size, request.page_token, registry_read.model_row)
            return registry_pb2.ListModelsResponse(models=items, next_page_token=token)

        return await self._view.read(read)

    async def ListVersions(
        self, request: registry_pb2.ListVersionsRequest, context: Context
    ) -> registry_pb2.ListVersionsResponse:
        name = parse_model(request.parent, "parent")

        def read(rows: ViewRows) -> registry_pb2.ListVersionsResponse:
            registry_read.model_document(rows, name)
            items, token = page(
                rows,
                f"version/{name}/",
                request.page_size,
                request.page_token,
                lambda key, document: registry_read.version(rows, name, strict_json.loads(document)),
                descending=True,
            )
            return registry_pb2.ListVersionsResponse(versions=items, next_page_token=token)

        return await self._view.read(read)

    async def ListActivations(
        self, request: registry_pb2.ListActivationsRequest, context: Context
    ) -> registry_pb2.ListActivationsResponse:
        name = parse_model(request.parent, "parent")
        at = _instant(request.at_time) if request.at_time else None

        def read(rows: ViewRows) -> registry_pb2.ListActivationsResponse:
            registry_read.model_document(rows, name)
            if at is not None:
                found = registry_read.in_force(rows, name, at, _instant)
                return registry_pb2.ListActivationsResponse(activations=found)
            items, token = page(
                rows,
                f"activation/{name}/",
                request.page_size,
                request.page_token,
                lambda key, document: registry_read.activation(strict_json.loads(document)),
                descending=True,
            )
            return registry_pb2.ListActivationsResponse(activations=items, next_page_token=token)

        return await self._view.read(read)

    # Single answers

    async def GetVersion(
        self, request: registry_pb2.GetVersionRequest, context: Context
    ) -> registry_pb2.GetVersionResponse:
        name, text = split_version(request.name, "name")
        if text not in registry_read.ALIASES:
            parse_number(text, "name")

        def read(rows: ViewRows) -> registry_pb2.GetVersionResponse:
            number = registry_read.resolve(rows, name, text)
            return registry_pb2.GetVersionResponse(version=registry_read.version_of(rows, name, number))

        return await self._view.read(read)

    async def ListServable(
        self, request: registry_pb2.ListServableRequest, context: Context
    ) -> registry_pb2.ListServableResponse:
        name = parse_served(request.name, "name")
        return await self._view.read(lambda rows: registry_read.list_servable(rows, name))

    async def GetLineage(
        self, request: registry_pb2.GetLineageRequest, context: Context
    ) -> registry_pb2.GetLineageResponse:
        version = None if _SHA256.fullmatch(request.name) else parse_version(request.name, "name")

        def read(rows: ViewRows) -> registry_pb2.GetLineageResponse:
            starts = [request.name]
            if version:
                document = registry_read.version_document(rows, *version)
                starts = [adapter.sha256 for adapter in registry_read.new_adapters(document)]
            return registry_read.lineage(rows, starts, request.descendants)

        return await self._view.read(read)

    async def RenderFile(
        self, request: registry_pb2.RenderFileRequest, context: Context
    ) -> registry_pb2.RenderFileResponse:
        if "/versions/" in request.name:
            name, number = parse_version(request.name, "name")
        else:
            name, number = parse_model(request.name, "name"), None
        if request.file not in FILES:
            raise _invalid("file", f"{request.file[:100]!r} is not one of {', '.join(FILES)}")
        content = await self._view.read(lambda rows: FILES[request.file](self._store, rows, name, number))
        if len(content) > MAX_FILE_BYTES:
            raise Refused(
                f"{request.file} of {name} has {len(content)} bytes; ask for a single version, or read the log"
            )
        return registry_pb2.RenderFileResponse(content=content)

    # Commands

    async def ActivateVersion(
        self, request: registry_pb2.ActivateVersionRequest, context: Context
    ) -> registry_pb2.ActivateVersionResponse:
        name, number = parse_version(request.name, "name")
        reason = _reason(request.reason)

        def decide(rows: ViewRows, model: Document) -> Decision | int:
            document = registry_read.version_document(rows, name, number)
            if why := registry_read.revocation(rows, document):
                raise Refused(f"version {number} of {name} cannot be made active: {why}")
            if model.get("activeVersion") == str(number):
                return int(model["active"])
            return _activation(name, model, document, reason, rollback=False)

        def same(earlier: events_pb2.VersionActivated) -> bool:
            return (earlier.version, earlier.reason) == (str(number), reason)

        index = await self._command("ActivateVersion", name, request.request_id, decide, same)
        return registry_pb2.ActivateVersionResponse(activation=await self._activation(name, index))

    async def RollbackVersion(
        self, request: registry_pb2.RollbackVersionRequest, context: Context
    ) -> registry_pb2.RollbackVersionResponse:
        name = parse_model(request.parent, "parent")
        reason = _reason(request.reason)

        def decide(rows: ViewRows, model: Document) -> Decision | int:
            return _activation(name, model, registry_read.rollback_target(rows, name), reason, rollback=True)

        def same(earlier: events_pb2.VersionActivated) -> bool:
            return earlier.reason == reason

        index = await self._command("RollbackVersion", name, request.request_id, decide, same)
        return registry_pb2.RollbackVersionResponse(activation=await self._activation(name, index))

    async def RevokeVersion(
        self, request: registry_pb2.RevokeVersionRequest, context: Context
    ) -> registry_pb2.RevokeVersionResponse:
        name, number = parse_version(request.name, "name")
        reason = _reason(request.reason)

        def decide(rows: ViewRows, model: Document) -> Decision | int:
            document = registry_read.version_document(rows, name, number)
            subjects = registry_read.not_revoked(rows, registry_read.new_adapters(document))
            if not subjects:
                return int(document["index"])  # nothing is left to revoke; the version is as asked
            record = events_pb2.VersionRevoked(
                org=name.org, model=name.model, version=str(number), reason=reason, caller=caller()
            )
            return Decision(record, subjects)

        def same(earlier: events_pb2.VersionRevoked) -> bool:
            return (earlier.version, earlier.reason) == (str(number), reason)

        await self._command("RevokeVersion", name, request.request_id, decide, same)
        version = await self._view.read(lambda rows: registry_read.version_of(rows, name, number))
        return registry_pb2.RevokeVersionResponse(version=version)

    async def _command(
        self,
        method: str,
        name: ModelName,
        request_id: str,
        decide: Callable[[ViewRows, Document], Decision | int],
        same: Callable[[Any], bool],
    ) -> int:
        """Index of the event that fulfils the command: a new one, or the one that did so before.

        A request id that was used before gets its first answer; for something else (not `same`) it is refused.
        """
        if len(request_id) > MAX_TEXT:
            raise _invalid("request_id", f"has {len(request_id)} characters, more than {MAX_TEXT}")
        # An absent request id asks for no idempotence.
        key = f"{method}\n{caller().id}\n{request_id}"
        event_id = str(uuid.uuid5(REQUESTS, key)) if request_id else new_id()
        for _ in range(ATTEMPTS):
            earlier = await asyncio.to_thread(self._recorded, event_id)
            if earlier is not None:
                index, stream, record = earlier
                if stream != name.stream or not same(record):
                    raise EventIdReused(f"request_id {request_id!r} was used for another {method} at index {index}")
                return index

            def attempt(rows: ViewRows) -> tuple[Decision | int, int]:
                model = registry_read.model_document(rows, name)
                return decide(rows, model), model["streamVersion"] + 1

            decision, version = await self._view.read(attempt)
            if isinstance(decision, int):
                return decision
            try:
                appended = await self._actor.record(
                    decision.data, name.stream, version, decision.subjects, event_id=event_id
                )
            except (WrongStreamVersion, EventIdReused):
                continue  # another command, or this one in another call, was faster
            return appended.indexes[0]
        raise WrongStreamVersion(f"other commands on {name} were faster {ATTEMPTS} times; retry")

    def _recorded(self, event_id: str) -> tuple[int, str, Message] | None:
        try:
            row = self._store.get_by_id(event_id)
        except NotFound:
            return None
        return row.position, row.stream, from_data(row.kind, read_event(row).data)

    async def _activation(self, name: ModelName, index: int) -> registry_pb2.Activation:
        return await self._view.read(
            lambda rows: registry_read.activation(registry_read.activation_at(rows, name, index))
        )


def _activation(name: ModelName, model: Document, version: Document, reason: str, *, rollback: bool) -> Decision:
    """The event that makes a version active, given the model as the view shows it."""
    record: Any = from_data("VersionCreated", version["record"])
    activated = events_pb2.VersionActivated(
        org=name.org,
        model=name.model,
        version=str(Number(record.major, record.minor)),
        previous_version=model.get("activeVersion", ""),
        reason=reason,
        rollback=rollback,
        caller=caller(),
    )
    return Decision(activated, registry_read.new_adapters(version))


def _reason(text: str) -> str:
    if not text.strip():
        raise _invalid("reason", "is empty; the log records why")
    if len(text) > MAX_TEXT:
        raise _invalid("reason", f"has {len(text)} characters, more than {MAX_TEXT}")
    return text


def _instant(text: str) -> int:
    """RFC 3339 as nanoseconds since 1970."""
    found = _TIME.fullmatch(text)
    try:
        moment = datetime.fromisoformat(found[1] + found[3]) if found else None
    except ValueError:
        moment = None
    if found is None or moment is None:
        raise _invalid("at_time", f"{text[:100]!r} is not a time of RFC 3339, for example 2026-01-31T12:00:00Z")
    return round(moment.timestamp()) * 10**9 + int((found[2] or "").ljust(9, "0"))


def _invalid(field: str, description: str) -> InvalidInput:
    return InvalidInput(f"{field}: {description}", violations=[Violation(field, "INVALID_INPUT", description)])
