"""SubscriptionService: messages to consumer groups and back, and waiting for events; decides nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from modelledger.ledger.v1 import subscription_pb2 as pb
from modelledger.ledger.v1 import subscription_pb2_grpc

from ledger.errors import InvalidInput, UnknownKind
from ledger.event_messages import event
from ledger.events import KINDS
from ledger.group_store import Group, Held
from ledger.group_waiting import Waiting
from ledger.groups import Groups, State
from ledger.kit.listing import last_name, page_size
from ledger.paging import within
from ledger.resource_names import parse_group
from ledger.store import Store

MAX_EVENTS, EVENTS = 1_000, 100  # of one call
MAX_LEASE, LEASE = 86_400.0, 60.0  # seconds
MAX_DELAY = 30 * 86_400.0  # seconds
MAX_WAIT = 60.0  # seconds
MAX_ATTEMPTS, ATTEMPTS = 100, 5
MAX_IN_FLIGHT, IN_FLIGHT = 10_000, 1_000
MAX_REASON, MAX_NAME, MAX_STREAM = 1_000, 128, 600  # characters

Context = Any  # grpc.aio.ServicerContext; the handlers use nothing of it
Answer = TypeVar("Answer")


class Subscriptions(subscription_pb2_grpc.SubscriptionServiceServicer):
    """Consumer groups over gRPC."""

    def __init__(self, store: Store, groups: Groups) -> None:
        self._groups = groups
        self._waiting = Waiting(store, groups)

    async def CreateGroup(self, request: pb.CreateGroupRequest, context: Context) -> pb.CreateGroupResponse:
        asked = request.group
        if asked.start_index < 0:
            raise InvalidInput("group.start_index: is negative")
        if len(asked.kinds) > len(KINDS):
            raise InvalidInput(f"group.kinds: more than there are; at most {len(KINDS)}")
        for number, kind in enumerate(asked.kinds):
            if kind not in KINDS:
                raise UnknownKind(f"group.kinds[{number}]: no event has this kind; known are {', '.join(KINDS)}")
        group = Group(
            name=parse_group(asked.name, "group.name"),
            stream_prefix=_text("group.stream_prefix", asked.stream_prefix, MAX_STREAM, empty=True),
            kinds=tuple(sorted(set(asked.kinds))),
            start_index=asked.start_index,
            max_attempts=_count("group.max_attempts", asked.max_attempts, ATTEMPTS, MAX_ATTEMPTS),
            max_in_flight=_count("group.max_in_flight", asked.max_in_flight, IN_FLIGHT, MAX_IN_FLIGHT),
            position=asked.start_index,
        )
        return pb.CreateGroupResponse(group=_group(await asyncio.to_thread(self._groups.create, group)))

    async def GetGroup(self, request: pb.GetGroupRequest, context: Context) -> pb.GetGroupResponse:
        name = parse_group(request.name, "name")
        return pb.GetGroupResponse(group=_group(await asyncio.to_thread(self._groups.get, name)))

    async def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:
        size = page_size(request.page_size)
        after = last_name(request.page_token, parse_group)
        found = await asyncio.to_thread(self._groups.page, after, size + 1)
        page = within(map(_group, found), size)
        return pb.ListGroupsResponse(groups=page, next_page_token=page[-1].name if len(page) < len(found) else "")

    async def CloseGroup(self, request: pb.CloseGroupRequest, context: Context) -> pb.CloseGroupResponse:
        name, reason = parse_group(request.name, "name"), _text("reason", request.reason, MAX_REASON)
        return pb.CloseGroupResponse(group=_group(await self._settle(name, self._groups.close, reason)))

    async def Claim(self, request: pb.ClaimRequest, context: Context) -> pb.ClaimResponse:
        name, consumer = parse_group(request.group, "group"), _text("consumer", request.consumer, MAX_NAME)
        limit = _count("max_events", request.max_events, EVENTS, MAX_EVENTS)
        lease = _seconds("lease_seconds", request.lease_seconds, MAX_LEASE) or LEASE
        wait = _seconds("wait_seconds", request.wait_seconds, MAX_WAIT)
        claimed = await self._waiting.claim(name, consumer, limit, lease, wait, resume=request.resume)
        if not claimed.deliveries:
            return pb.ClaimResponse()
        return pb.ClaimResponse(
            lease=claimed.lease,
            lease_end_time=_time(claimed.end),
            deliveries=[
                pb.Delivery(event=event(one.event), attempt=one.attempt, last_reason=one.last_reason)
                for one in claimed.deliveries
            ],
        )

    async def ExtendLease(self, request: pb.ExtendLeaseRequest, context: Context) -> pb.ExtendLeaseResponse:
        name, lease = parse_group(request.group, "group"), _lease(request.lease)
        seconds = _seconds("lease_seconds", request.lease_seconds, MAX_LEASE) or LEASE
        end, held = await asyncio.to_thread(self._groups.extend, name, lease, seconds)
        return pb.ExtendLeaseResponse(held=held, lease_end_time=_time(end))

    async def Ack(self, request: pb.AckRequest, context: Context) -> pb.AckResponse:
        name, lease = parse_group(request.group, "group"), _lease(request.lease)
        settled = await self._settle(name, self._groups.ack, lease, _indexes(request.indexes))
        return pb.AckResponse(acked=settled.done, lost=settled.lost)

    async def Retry(self, request: pb.RetryRequest, context: Context) -> pb.RetryResponse:
        name, lease = parse_group(request.group, "group"), _lease(request.lease)
        delay = _seconds("delay_seconds", request.delay_seconds, MAX_DELAY)
        reason = _text("reason", request.reason, MAX_REASON)
        retry = partial(self._groups.retry, counted=not request.uncounted)
        settled = await self._settle(name, retry, lease, _indexes(request.indexes), delay, reason)
        return pb.RetryResponse(
            waiting=settled.waiting, parked=settled.parked, released=settled.released, lost=settled.lost
        )

    async def Park(self, request: pb.ParkRequest, context: Context) -> pb.ParkResponse:
        name, lease = parse_group(request.group, "group"), _lease(request.lease)
        reason = _text("reason", request.reason, MAX_REASON)
        settled = await self._settle(name, self._groups.park, lease, _indexes(request.indexes), reason)
        return pb.ParkResponse(parked=settled.parked, lost=settled.lost)

    async def ListParked(self, request: pb.ListParkedRequest, context: Context) -> pb.ListParkedResponse:
        name, size = parse_group(request.parent, "parent"), page_size(request.page_size)
        token = request.page_token
        if token and not (token.isascii() and token.isdigit() and len(token) < 19):
            raise InvalidInput("page_token: is not one that this method gave out")
        found = await asyncio.to_thread(self._groups.parked, name, int(token or 0), size + 1)
        page = within(map(_parked, found), size)
        token = str(found[len(page)].position) if len(page) < len(found) else ""
        return pb.ListParkedResponse(events=page, next_page_token=token)

    async def ReplayParked(self, request: pb.ReplayParkedRequest, context: Context) -> pb.ReplayParkedResponse:
        name = parse_group(request.group, "group")
        indexes = _indexes(request.indexes, empty=True)
        replayed, left = await self._settle(name, self._groups.replay, indexes)
        return pb.ReplayParkedResponse(replayed=replayed, left=left)

    async def _settle(self, name: str, change: Callable[..., Answer], *arguments: Any) -> Answer:
        """Make a change that may let the group's consumers go on, and tell those that wait."""
        answer = await asyncio.to_thread(change, name, *arguments)
        self._waiting.settled(name)
        return answer


def _group(state: State) -> pb.Group:
    group = state.group
    return pb.Group(
        name=f"groups/{group.name}",
        stream_prefix=group.stream_prefix,
        kinds=group.kinds,
        start_index=group.start_index,
        max_attempts=group.max_attempts,
        max_in_flight=group.max_in_flight,
        next_index=group.position,
        behind=state.behind,
        leased=state.counts.leased,
        waiting=state.counts.waiting,
        parked=state.counts.parked,
        acked=group.acked,
        closed_reason=group.closed_reason,
    )


def _parked(row: Held) -> pb.ParkedEvent:
    return pb.ParkedEvent(
        index=row.position,
        stream=row.stream,
        attempts=row.attempts,
        consumer=row.consumer,
        reason=row.reason,
        park_time=_time(row.due),
    )


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(field: str, value: str, most: int, *, empty: bool = False) -> str:
    if not (empty or value) or len(value) > most or not value.isprintable():
        least = 0 if empty else 1
        raise InvalidInput(f"{field}: is not a text of {least} to {most} characters without control characters")
    return value


def _count(field: str, value: int, default: int, most: int) -> int:
    if not 0 <= value <= most:
        raise InvalidInput(f"{field}: {value} is not between 0 and {most}")
    return value or default


def _seconds(field: str, value: float, most: float) -> float:
    if not 0 <= value <= most:  # NaN is not either
        raise InvalidInput(f"{field}: {value:g} is not between 0 and {most:g}")
    return value


def _lease(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", value):
        raise InvalidInput("lease: is not one that Claim gave out")
    return value


def _indexes(indexes: Sequence[int], *, empty: bool = False) -> list[int]:
    if not (empty or indexes) or len(indexes) > MAX_EVENTS:
        raise InvalidInput(f"indexes: {len(indexes)} of them; a call takes {0 if empty else 1} to {MAX_EVENTS}")
    return list(indexes)
