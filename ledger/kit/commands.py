"""The commands of one kind for one worker, through a consumer group that all workers of that kind share.

    for delivery in commands:
        ...                     # and settle it: ack, retry or give_back

Ends only when it is stopped: while the ledger is away it asks again. The group is made by whoever comes first, and
begins with the log, so a command that was asked for before there was any worker is found.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import grpc
from modelledger.ledger.v1 import subscription_pb2_grpc

from ledger.errors import ModelLedgerError
from ledger.kit.consumer import Delivery, claim
from ledger.kit.groups import GroupCalls

log = logging.getLogger("modelledger.work")

LEASE = 30.0  # seconds; a worker that says nothing for so long has its command taken over
# Deliveries of one command; what ends a command that never comes to an end is counted per command and lower. These
# numbers are a part of the group: a ledger that has it refuses others under its name.
MAX_DELIVERIES = 100
AGAIN, MAX_AGAIN = 0.2, 2.0  # seconds


class Commands(GroupCalls):
    """`worker`: a name that no other process has while this one lives, and that lasts over its restarts."""

    def __init__(self, channel: grpc.Channel, group: str, kind: str, worker: str) -> None:
        self._subscriptions = subscription_pb2_grpc.SubscriptionServiceStub(channel)
        self._user = ""
        self._group = group
        self._kind = kind
        self._worker = worker
        self._pause = AGAIN
        self._stopped = threading.Event()
        self._cancel: Callable[[], object] = lambda: None

    def stop(self) -> None:
        """End the iteration, also while it waits."""
        self._stopped.set()
        self._cancel()

    def __iter__(self) -> Iterator[Delivery]:
        ready = False
        while not self._stopped.is_set():
            try:
                if not ready:
                    self.create_group(self._group, kinds=[self._kind], max_attempts=MAX_DELIVERIES)
                # At first, and after an answer that may have been lost: what this worker holds is nobody's.
                delivered = claim(
                    self,
                    self._group,
                    self._worker,
                    max_events=1,
                    lease_seconds=LEASE,
                    resume=not ready,
                    begun=self._begun,
                )
            except Exception as error:
                ready = False
                self._again(error)
                continue
            ready, self._pause = True, AGAIN
            for delivery in delivered:
                if self._stopped.is_set():
                    delivery.give_back("the worker stopped")
                else:
                    yield delivery

    def _begun(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        if self._stopped.is_set():  # meanwhile, so that `stop` did not see this one
            cancel()

    def _again(self, error: Exception) -> None:
        if self._stopped.is_set():
            return
        if self._pause == AGAIN:  # once for each time
            unforeseen = None if isinstance(error, ModelLedgerError) else error
            log.warning("%s: no commands are taken at the moment: %s", self._group, error, exc_info=unforeseen)
        self._stopped.wait(self._pause)
        self._pause = min(2 * self._pause, MAX_AGAIN)
