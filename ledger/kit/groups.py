"""The calls of a group's consumers: a service's worker makes them, and the client that people use.

Groups are written by their name, `mail`, or as `groups/mail`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from modelledger.ledger.v1 import subscription_pb2 as pb
from modelledger.ledger.v1 import subscription_pb2_grpc

from ledger.kit.client import DEADLINE, begin, call
from ledger.resource_names import below

MAX_REASON = 1_000  # characters


class GroupCalls:
    """For a class that has the stub and knows who calls."""

    _subscriptions: subscription_pb2_grpc.SubscriptionServiceStub
    _user: str

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
        request = pb.CreateGroupRequest(group=wanted, request_id=request_id or uuid.uuid4().hex)
        return call(self._subscriptions.CreateGroup, request, user=self._user).group

    def claim(
        self,
        group: str,
        consumer: str,
        *,
        max_events: int = 0,
        lease_seconds: float = 0.0,
        wait_seconds: float = 0.0,
        resume: bool = False,
        begun: Callable[[Callable[[], object]], object] = lambda cancel: None,
    ) -> pb.ClaimResponse:
        """`begun` is given what ends the call, for another thread. See subscription.proto about `resume`."""
        request = pb.ClaimRequest(
            group=below("groups", group),
            consumer=consumer,
            max_events=max_events,
            lease_seconds=lease_seconds,
            wait_seconds=wait_seconds,
            resume=resume,
        )
        cancel, answer = begin(self._subscriptions.Claim, request, timeout=DEADLINE + wait_seconds, user=self._user)
        begun(cancel)
        return answer()

    def extend_lease(self, group: str, lease: str, lease_seconds: float = 0.0) -> pb.ExtendLeaseResponse:
        request = pb.ExtendLeaseRequest(group=below("groups", group), lease=lease, lease_seconds=lease_seconds)
        return call(self._subscriptions.ExtendLease, request, user=self._user)

    def ack(self, group: str, lease: str, indexes: Sequence[int]) -> pb.AckResponse:
        request = pb.AckRequest(group=below("groups", group), lease=lease, indexes=indexes)
        return call(self._subscriptions.Ack, request, user=self._user)

    def retry(
        self,
        group: str,
        lease: str,
        indexes: Sequence[int],
        reason: str,
        *,
        delay: float = 0.0,
        uncounted: bool = False,
    ) -> pb.RetryResponse:
        """`delay` in seconds. What the answer calls released must not be worked on either."""
        request = pb.RetryRequest(
            group=below("groups", group),
            lease=lease,
            indexes=indexes,
            delay_seconds=delay,
            reason=_line(reason),
            uncounted=uncounted,
        )
        return call(self._subscriptions.Retry, request, user=self._user)

    def park(self, group: str, lease: str, indexes: Sequence[int], reason: str) -> pb.ParkResponse:
        request = pb.ParkRequest(group=below("groups", group), lease=lease, indexes=indexes, reason=_line(reason))
        return call(self._subscriptions.Park, request, user=self._user)


def _line(reason: str) -> str:
    """An exception's text, for example, as the one line that a reason is."""
    return "".join(c for c in " ".join(reason.split()) if c.isprintable())[:MAX_REASON]
