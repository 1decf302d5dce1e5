"""The command that a worker has in hand, and the child process that does it.

Two threads look after it. One extends the lease, and learns when the command is in other hands; one follows the events
that end it from outside. Either lets go of it, and so does a worker that stops: then the child is killed, and what it
did has no outcome.
"""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eventsourcing.persistence import ApplicationRecorder, Subscription

from ledger.errors import ModelLedgerError
from ledger.kit.consumer import Delivery

log = logging.getLogger("modelledger.work")

CANCELLED, LOST, STOPPED = "cancelled", "lost", "stopped"


class Hold:
    """`let_go`: why it was let go of, empty while it was not. `cancelled`: kinds of events that end the command."""

    def __init__(self, delivery: Delivery, recorder: ApplicationRecorder, cancelled: Sequence[str]) -> None:
        self.delivery = delivery
        self.stream = delivery.event.stream
        self.let_go = ""
        self._recorder = recorder
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Meanwhile the lease does not end."""
        threading.Thread(target=self._keep, name=f"keep-{self.stream}", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()

    @contextmanager
    def doing(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """Meanwhile the child works; it is killed when the command is let go of, and never outlives this."""
        # From the command itself on: that it was cancelled just now is seen as well.
        since = self.delivery.event.index + 1
        following = self._recorder.subscribe(gt=since, topics=self._cancelled) if self._cancelled else None
        try:
            with self._lock:
                self._child = child
                if self.let_go:
                    child.kill()
            if following:
                name = f"follow-{self.stream}"
                threading.Thread(target=self._follow, args=[following], name=name, daemon=True).start()
            yield
        finally:
            with self._lock:
                self._child = None
            child.kill()
            if following:
                following.stop()

    def drop(self, why: str) -> None:
        """Let go of the command. The first reason stays."""
        with self._lock:
            self.let_go = self.let_go or why
            if self._child:
                self._child.kill()
        self._over.set()

    def wait(self, seconds: float) -> None:
        """Pause, no longer than the command is in hand."""
        self._over.wait(seconds)

    def _keep(self) -> None:
        while not self._over.wait(self.delivery.lease_seconds / 3):
            try:
                if not self.delivery.extend():
                    self.drop(LOST)
            except ModelLedgerError as error:  # while the ledger is away nobody else gets the command either
                log.warning("%s: its lease could not be extended: %s", self.stream, error)

    def _follow(self, following: Subscription[ApplicationRecorder]) -> None:
        for notification in following:
            if str(notification.originator_id) == self.stream:
                self.drop(CANCELLED)
