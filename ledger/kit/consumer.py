"""One consumer of a group: events one after another, each settled before the next.

    for delivery in client.consume("mail", "worker-1"):
        if try_to_send(delivery.event):
            continue                                       # done when the next one is asked for
        delivery.retry("the mail server is away", delay=60)

Leaving the loop, by `break` or an exception, gives back the event in hand unless it was settled, and those claimed with
it. A process that dies gives them back when its lease ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from modelledger.ledger.v1 import subscription_pb2

from ledger.errors import ModelLedgerError
from ledger.kit.client import patiently
from ledger.kit.groups import GroupCalls

WAIT = 20.0  # seconds that one call waits for an event

log = logging.getLogger("modelledger.consumer")


class Delivery:
    """One event to work on. attempt: how often it has been delivered; more than 1 means that it may have been worked
    on before. last_reason: what went wrong then."""

    def __init__(self, batch: _Batch, delivery: subscription_pb2.Delivery) -> None:
        self.event = delivery.event
        self.attempt = delivery.attempt
        self.last_reason = delivery.last_reason
        self.lease_seconds = batch.seconds
        self._batch = batch

    def ack(self) -> None:
        """It is done."""
        self._batch.ack(self.event.index)

    def retry(self, reason: str, *, delay: float = 0.0) -> None:
        """Deliver it again, after `delay` seconds; it is parked instead when this was its last attempt."""
        self._batch.retry([self.event.index], reason, delay)

    def park(self, reason: str) -> None:
        """Set it aside until somebody replays it."""
        self._batch.park(self.event.index, reason)

    def extend(self) -> bool:
        """The whole time of a lease once more, from now on. False when the event is in other hands already."""
        return self._batch.extend(self.event.index)

    def give_back(self, reason: str) -> None:
        """Deliver it again at once; this attempt does not count. For a consumer that stops: asked for only once."""
        self._batch.give_back([self.event.index], reason, uncounted=True)


class _Batch:
    """What one claim brought. `held` are the events that are not settled."""

    def __init__(self, calls: GroupCalls, group: str, claimed: subscription_pb2.ClaimResponse, seconds: float) -> None:
        self.held = {delivery.event.index for delivery in claimed.deliveries}
        self._calls = calls
        self._group = group
        self._lease = claimed.lease
        self.seconds = seconds
        self._extend_at = time.monotonic() + seconds / 2

    def ack(self, index: int) -> None:
        response = patiently(lambda: self._calls.ack(self._group, self._lease, [index]))
        self._leave([index], response.lost)

    def retry(self, indexes: Sequence[int], reason: str, delay: float) -> None:
        response = patiently(lambda: self._calls.retry(self._group, self._lease, indexes, reason, delay=delay))
        self._leave([*indexes, *response.released], response.lost)

    def park(self, index: int, reason: str) -> None:
        response = patiently(lambda: self._calls.park(self._group, self._lease, [index], reason))
        self._leave([index], response.lost)

    def extend(self, index: int) -> bool:
        response = patiently(lambda: self._calls.extend_lease(self._group, self._lease, self.seconds))
        self._extend_at = time.monotonic() + self.seconds / 2
        self.held &= set(response.held)
        return index in self.held

    def ready(self, index: int) -> bool:
        """Whether the event is still this consumer's, with at least half of the lease's time."""
        if index in self.held and time.monotonic() > self._extend_at:
            return self.extend(index)
        return index in self.held

    def give_back(self, indexes: Sequence[int], reason: str, *, uncounted: bool = False) -> None:
        with suppress(ModelLedgerError):  # otherwise they come back when the lease ends
            if indexes:
                self._calls.retry(self._group, self._lease, indexes, reason, uncounted=uncounted)

    def _leave(self, settled: Sequence[int], lost: Sequence[int]) -> None:
        self.held -= set(settled)
        for index in lost:
            log.warning("event %d was settled after its lease had ended; it may be worked on twice", index)


def claim(
    calls: GroupCalls,
    group: str,
    consumer: str,
    *,
    max_events: int,
    lease_seconds: float,
    resume: bool = False,
    begun: Callable[[Callable[[], object]], object] = lambda cancel: None,
) -> list[Delivery]:
    """What comes next for one consumer, after a while; perhaps nothing. For the rest see GroupCalls.claim."""
    claimed = calls.claim(
        group,
        consumer,
        max_events=max_events,
        lease_seconds=lease_seconds,
        wait_seconds=WAIT,
        resume=resume,
        begun=begun,
    )
    batch = _Batch(calls, group, claimed, lease_seconds)
    return [Delivery(batch, delivery) for delivery in claimed.deliveries]


def consume(
    calls: GroupCalls, group: str, consumer: str, *, max_events: int, lease_seconds: float
) -> Iterator[Delivery]:
    """The group's events for one consumer; waits for more and never ends by itself."""
    while True:
        for delivery in patiently(
            lambda: claim(calls, group, consumer, max_events=max_events, lease_seconds=lease_seconds)
        ):
            batch, index = delivery._batch, delivery.event.index
            if not batch.ready(index):
                continue
            try:
                yield delivery
            except GeneratorExit:
                batch.give_back(sorted(batch.held), "the consumer stopped")
                raise
            if index in batch.held:
                batch.ack(index)
