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

from ledger.kit.consumer import Delivery, consume
from ledger.kit.groups import GroupCalls
from ledger.resource_names import below
from modelledger.connection import Connection
from modelledger.ledger.v1 import ledger_pb2
from modelledger.ledger.v1 import subscription_pb2 as pb


class Subscriptions(Connection, GroupCalls):
    """Groups are written by their name, `mail`, or as `groups/mail`."""

    def watch(
        self, *, start_index: int = 0, stream_prefix: str = "", kinds: Sequence[str] = ()
    ) -> Iterator[ledger_pb2.WatchEventsResponse]:
        """Events from a position on, page by page, for ever. A reader that is too slow gets Overloaded."""
        request = ledger_pb2.WatchEventsRequest(start_index=start_index, stream_prefix=stream_prefix, kinds=kinds)
        return self._stream(self._ledger.WatchEvents, request)

    # Groups

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
        """The group's events, one after another; waits for more and never ends by itself: ledger/kit/consumer.py."""
        return consume(self, group, consumer, max_events=max_events, lease_seconds=lease_seconds)

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
