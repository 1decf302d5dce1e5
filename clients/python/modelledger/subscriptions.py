"""Following the log, alone or as one of a group's consumers. A part of client.py's Client.

    for page in client.watch(start_index=position, kinds=["VersionActivated"]):
        use(page.events); position = page.next_index

    client.create_group("mail", kinds=["TrainingFailed"])
    for delivery in client.consume("mail", "worker-1"):
        send_mail(delivery.event)

Every event that a group wants is delivered at least once: work on it so that doing it twice does no harm.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

from ledger.kit.client import DEADLINE
from modelledger.connection import Connection
from modelledger.consumer import Delivery, consume
from modelledger.ledger.v1 import ledger_pb2
from modelledger.ledger.v1 import subscription_pb2 as pb
from modelledger.names import below

MAX_REASON = 1_000  # characters


class Subscriptions(Connection):
    """Groups are written by their name, `mail`, or as `groups/mail`."""

    def watch(
        self, *, start_index: int = 0, stream_prefix: str = "", kinds: Sequence[str] = ()
    ) -> Iterator[ledger_pb2.WatchEventsResponse]:
        """Events from a position on, page by page, for ever. A reader that is too slow gets Overloaded."""
        request = ledger_pb2.WatchEventsRequest(start_index=start_index, stream_prefix=stream_prefix, kinds=kinds)
        return self._stream(self._ledger.WatchEvents, request)

    # Groups

    def create_group(
        self,
        group: str,
        *,
        stream_prefix: str = "",
        kinds: Sequence[str] = (),
        start_index: int = 0,
        max_attempts: int = 0,
        max_in_flight: int = 0,
        request_id: str = "",
    ) -> pb.Group:
        """The group, made now or before. Raises AlreadyExists when one of this name wants something else."""
        wanted = pb.Group(
            name=below("groups", group),
            stream_prefix=stream_prefix,
            kinds=kinds,
            start_index=start_index,
            max_attempts=max_attempts,
            max_in_flight=max_in_flight,
        )
        request = pb.CreateGroupRequest(group=wanted, request_id=_id(request_id))
        return self._call(self._subscriptions.CreateGroup, request).group

    def group(self, group: str) -> pb.Group:
        return self._call(self._subscriptions.GetGroup, pb.GetGroupRequest(name=below("groups", group))).group

    def groups(self) -> Iterator[pb.Group]:
        """By name."""
        return self._pages(self._subscriptions.ListGroups, pb.ListGroupsRequest(), "groups")

    def close_group(self, group: str, reason: str, *, request_id: str = "") -> pb.Group:
        request = pb.CloseGroupRequest(name=below("groups", group), reason=reason, request_id=_id(request_id))
        return self._call(self._subscriptions.CloseGroup, request).group

    # Consuming

    def consume(
        self, group: str, consumer: str, *, max_events: int = 10, lease_seconds: float = 60.0
    ) -> Iterator[Delivery]:
        """The group's events, one after another; waits for more and never ends by itself. See consumer.py."""
        return consume(self, group, consumer, max_events=max_events, lease_seconds=lease_seconds)

    def claim(
        self,
        group: str,
        consumer: str,
        *,
        max_events: int = 0,
        lease_seconds: float = 0.0,
        wait_seconds: float = 0.0,
    ) -> pb.ClaimResponse:
        request = pb.ClaimRequest(
            group=below("groups", group),
            consumer=consumer,
            max_events=max_events,
            lease_seconds=lease_seconds,
            wait_seconds=wait_seconds,
        )
        return self._call(self._subscriptions.Claim, request, timeout=DEADLINE + wait_seconds)

    def extend_lease(self, group: str, lease: str, lease_seconds: float = 0.0) -> pb.ExtendLeaseResponse:
        request = pb.ExtendLeaseRequest(group=below("groups", group), lease=lease, lease_seconds=lease_seconds)
        return self._call(self._subscriptions.ExtendLease, request)

    def ack(self, group: str, lease: str, indexes: Sequence[int]) -> pb.AckResponse:
        request = pb.AckRequest(group=below("groups", group), lease=lease, indexes=indexes)
        return self._call(self._subscriptions.Ack, request)

    def retry(
        self, group: str, lease: str, indexes: Sequence[int], reason: str, *, delay: float = 0.0
    ) -> pb.RetryResponse:
        """`delay` in seconds. What the answer calls released must not be worked on either."""
        request = pb.RetryRequest(
            group=below("groups", group), lease=lease, indexes=indexes, delay_seconds=delay, reason=_line(reason)
        )
        return self._call(self._subscriptions.Retry, request)

    def park(self, group: str, lease: str, indexes: Sequence[int], reason: str) -> pb.ParkResponse:
        request = pb.ParkRequest(group=below("groups", group), lease=lease, indexes=indexes, reason=_line(reason))
        return self._call(self._subscriptions.Park, request)

    # Parked events

    def parked(self, group: str) -> Iterator[pb.ParkedEvent]:
        """By index."""
        request = pb.ListParkedRequest(parent=below("groups", group))
        return self._pages(self._subscriptions.ListParked, request, "events")

    def replay_parked(
        self, group: str, indexes: Sequence[int] = (), *, request_id: str = ""
    ) -> pb.ReplayParkedResponse:
        """Deliver these parked events again; all of them without `indexes`, as many as the group takes at once."""
        request = pb.ReplayParkedRequest(group=below("groups", group), indexes=indexes, request_id=_id(request_id))
        return self._call(self._subscriptions.ReplayParked, request)


def _id(request_id: str) -> str:
    return request_id or uuid.uuid4().hex


def _line(reason: str) -> str:
    """An exception's text, for example, as the one line that a reason is."""
    return "".join(c for c in " ".join(reason.split()) if c.isprintable())[:MAX_REASON]
