"""ActorService: who may sign events, and the commands that change it.

Each command is an event that the ledger's own actor signs, with the caller's identity inside. A new key proves that
the caller holds it (possession.py). A service signs with its new key from its next start on; what it signs with the
old one is refused from the rotation on.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import uuid
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from google.protobuf.message import Message
from modelledger.ledger.v1 import actors_pb2, actors_pb2_grpc, events_pb2

from ledger.actor_list import current, read_actors
from ledger.envelope import load_public_key
from ledger.errors import (
    AlreadyExists,
    EventIdReused,
    InvalidInput,
    InvalidSignature,
    ModelLedgerError,
    NotFound,
    PermissionDenied,
    Refused,
    Violation,
    WrongStreamVersion,
)
from ledger.events import CERTIFICATION, LEDGER, ROLES
from ledger.kit.interceptors import caller
from ledger.kit.listing import last_name, page_size
from ledger.local_actor import LocalActor
from ledger.model_signature import public_key_pem
from ledger.possession import is_proven
from ledger.reading import read_event
from ledger.resource_names import parse_actor
from ledger.schema import from_data
from ledger.statement import Artifact, new_id
from ledger.store import Store

ATTEMPTS = 5  # at a command, before it answers that others keep being faster
MAX_TEXT = 1_000  # characters of a reason or a request id
REQUESTS = uuid.UUID("b1d3c7c2-4a55-5d1e-9c0f-2f6f0a7d9e31")  # namespace of event ids made from request ids

Context = Any  # grpc.aio.ServicerContext; the handlers use nothing of it
Actors = dict[str, actors_pb2.Actor]


class Decision(NamedTuple):
    """What a command wants to append to the actor's stream."""

    data: Message
    key_id: str


class ActorServicer(actors_pb2_grpc.ActorServiceServicer):
    """Over a store and the ledger's own actor. `administrators`: who may change actors, see LedgerConfig."""

    def __init__(self, store: Store, ledger: LocalActor, administrators: Collection[str] = ()) -> None:
        self._store = store
        self._ledger = ledger
        self._administrators = administrators

    async def ListActors(
        self, request: actors_pb2.ListActorsRequest, context: Context
    ) -> actors_pb2.ListActorsResponse:
        size, after = page_size(request.page_size), last_name(request.page_token, parse_actor)
        actors = await asyncio.to_thread(read_actors, self._store)
        following = [actor for name, actor in actors.items() if name > after]
        token = following[size - 1].name if len(following) > size else ""
        return actors_pb2.ListActorsResponse(actors=following[:size], next_page_token=token)

    async def EnrolActor(
        self, request: actors_pb2.EnrolActorRequest, context: Context
    ) -> actors_pb2.EnrolActorResponse:
        name, asked_by = parse_actor(request.name, "name"), self._administrator()
        if request.role not in ROLES:
            raise _invalid("role", f"{request.role[:100]!r} is not one of {', '.join(ROLES)}")
        key_id = _key_id(request.public_key, request.role)

        def decide(actors: Actors) -> Decision:
            if name in actors and not actors[name].revoked:
                raise AlreadyExists(f"{request.name} has a key; give it another: modelledger actors rotate {name}")
            _proven(name, "", request.public_key, request.possession)
            record = events_pb2.ActorEnrolled(
                actor=name,
                public_key=_text(request.public_key),
                role=request.role,
                possession=_text(request.possession),
                caller=asked_by,
            )
            return Decision(record, key_id)

        def same(earlier: events_pb2.ActorEnrolled) -> bool:
            return (earlier.public_key, earlier.role) == (_text(request.public_key), request.role)

        await self._command("EnrolActor", asked_by, name, request.request_id, decide, same)
        return actors_pb2.EnrolActorResponse(actor=await self._actor(name))

    async def RotateActorKey(
        self, request: actors_pb2.RotateActorKeyRequest, context: Context
    ) -> actors_pb2.RotateActorKeyResponse:
        name, asked_by = parse_actor(request.name, "name"), self._administrator()
        reason, compromised_from = _reason(request.reason), _index(request.compromised_from)

        def decide(actors: Actors) -> Decision:
            actor = _active(actors, name)
            key_id = _key_id(request.public_key, actor.role)
            _proven(name, actor.keys[-1].key_id, request.public_key, request.possession)
            record = events_pb2.ActorKeyRotated(
                actor=name,
                public_key=_text(request.public_key),
                possession=_text(request.possession),
                reason=reason,
                compromised_from=compromised_from,
                caller=asked_by,
            )
            return Decision(record, key_id)

        def same(earlier: events_pb2.ActorKeyRotated) -> bool:
            asked = (_text(request.public_key), reason, compromised_from)
            return (earlier.public_key, earlier.reason, earlier.compromised_from) == asked

        await self._command("RotateActorKey", asked_by, name, request.request_id, decide, same)
        return actors_pb2.RotateActorKeyResponse(actor=await self._actor(name))

    async def RevokeActor(
        self, request: actors_pb2.RevokeActorRequest, context: Context
    ) -> actors_pb2.RevokeActorResponse:
        name, asked_by = parse_actor(request.name, "name"), self._administrator()
        reason, compromised_from = _reason(request.reason), _index(request.compromised_from)

        def decide(actors: Actors) -> Decision:
            actor = _active(actors, name)
            if actor.role == LEDGER and not any(
                other.role == LEDGER and not other.revoked and other.name != actor.name for other in actors.values()
            ):
                raise Refused(f"{request.name} alone may enrol and revoke actors, so it is rotated and never revoked")
            record = events_pb2.ActorRevoked(
                actor=name, reason=reason, compromised_from=compromised_from, caller=asked_by
            )
            return Decision(record, actor.keys[-1].key_id)

        def same(earlier: events_pb2.ActorRevoked) -> bool:
            return (earlier.reason, earlier.compromised_from) == (reason, compromised_from)

        await self._command("RevokeActor", asked_by, name, request.request_id, decide, same)
        return actors_pb2.RevokeActorResponse(actor=await self._actor(name))

    def _administrator(self) -> events_pb2.Caller:
        """The caller, who may change actors: whoever does can write any event."""
        asked_by = caller()
        if asked_by.id in self._administrators or (not self._administrators and asked_by.method == "loopback"):
            return asked_by
        raise PermissionDenied(
            f"{asked_by.id!r} may not change actors; the ledger's setting `administrators` names who may"
        )

    async def _command(
        self,
        method: str,
        asked_by: events_pb2.Caller,
        name: str,
        request_id: str,
        decide: Callable[[Actors], Decision],
        same: Callable[[Any], bool],
    ) -> None:
        """Append what `decide` says of the actors as they are; nothing when this request id did so before.

        Refused when it was used for something else (not `same`).
        """
        if len(request_id) > MAX_TEXT:
            raise _invalid("request_id", f"has {len(request_id)} characters, more than {MAX_TEXT}")
        stream = f"actors/{name}"
        # An absent request id asks for no idempotence.
        key = f"{method}\n{asked_by.id}\n{request_id}"
        event_id = str(uuid.uuid5(REQUESTS, key)) if request_id else new_id()

        def attempt() -> tuple[Decision, int] | None:
            earlier = self._recorded(event_id)
            if earlier is not None:
                index, found, record = earlier
                if found != stream or not same(record):
                    raise EventIdReused(f"request_id {request_id!r} was used for another {method} at index {index}")
                return None
            # The version first: what others append meanwhile makes it a wrong one.
            version = self._ledger.next_version(stream)
            return decide(read_actors(self._store)), version

        for _ in range(ATTEMPTS):
            decided = await asyncio.to_thread(attempt)
            if decided is None:
                return
            decision, version = decided
            subjects = [Artifact(stream, decision.key_id)]
            try:
                await self._ledger.record(decision.data, stream, version, subjects, event_id=event_id)
            except (WrongStreamVersion, EventIdReused):
                continue  # another command, or this one in another call, was faster
            return
        raise WrongStreamVersion(f"other commands on {stream} were faster {ATTEMPTS} times; retry")

    def _recorded(self, event_id: str) -> tuple[int, str, Message] | None:
        try:
            row = self._store.get_by_id(event_id)
        except NotFound:
            return None
        return row.position, row.stream, from_data(row.kind, read_event(row).data)

    async def _actor(self, name: str) -> actors_pb2.Actor:
        return (await asyncio.to_thread(read_actors, self._store))[name]


def _active(actors: Actors, name: str) -> actors_pb2.Actor:
    if name not in actors:
        raise NotFound(f"there is no actors/{name[:100]}; there are {', '.join(actors)}")
    if current(actors[name]) is None:
        index = actors[name].keys[-1].retired_index
        raise Refused(f"actors/{name} was revoked at index {index}; enrol it again with a new key")
    return actors[name]


def _key_id(public_key: bytes, role: str) -> str:
    """The id of a key that fits the role. Raises InvalidInput."""
    try:
        load_public_key(public_key)
        if role == CERTIFICATION:
            public_key_pem(public_key)  # signs model.sig too
    except ModelLedgerError as error:
        raise _invalid("public_key", error.message) from None
    return hashlib.sha256(public_key).hexdigest()


def _proven(name: str, replaced: str, public_key: bytes, possession: bytes) -> None:
    if not is_proven(name, replaced, public_key, possession):
        after = f"in place of key {replaced}" if replaced else "as a new actor"
        raise InvalidSignature(f"possession: is not the key's own signature for actors/{name} {after}")


def _reason(text: str) -> str:
    if not text.strip():
        raise _invalid("reason", "is empty; the log records why")
    if len(text) > MAX_TEXT:
        raise _invalid("reason", f"has {len(text)} characters, more than {MAX_TEXT}")
    return text


def _index(value: int) -> int:
    if value < 0:
        raise _invalid("compromised_from", "is negative; it is the index of an event, or 0 for none")
    return value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _invalid(field: str, description: str) -> InvalidInput:
    return InvalidInput(f"{field}: {description}", violations=[Violation(field, "INVALID_INPUT", description)])
