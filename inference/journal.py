"""Records what engines do, in order, without anybody waiting for it: answers go on while the ledger is away.

Nothing is dropped silently: while the ledger cannot be reached an entry is tried again, and an entry that the ledger
refuses, or that is left when the process ends, is written to the service's log whole.
"""

from __future__ import annotations

import logging
import queue
import threading

from google.protobuf.message import Message

from inference.application import Deployments
from ledger.errors import ModelLedgerError, Overloaded, Unreachable
from ledger.statement import Artifact

log = logging.getLogger("modelledger.inference")

RETRY = 1.0  # seconds
LAST_CHANCE = 5.0  # seconds that `close` gives to what is left

_Entry = tuple[str, Message, Artifact]


class Journal:
    """One thread that appends; `add` never blocks."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments
        # Not bounded: entries come no faster than engines load, and none may be dropped.
        self._waiting: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, name: str, event: Message, gguf: Artifact) -> None:
        self._waiting.put((name, event, gguf))

    def close(self) -> None:
        """Record what is left, for a few seconds."""
        self._waiting.put(None)
        self._thread.join(timeout=LAST_CHANCE)
        self._closing.set()
        self._thread.join(timeout=LAST_CHANCE)

    def _work(self) -> None:
        while (entry := self._waiting.get()) is not None:
            self._record(entry)

    def _record(self, entry: _Entry) -> None:
        name, event, gguf = entry
        reason = "the process ends"
        while not self._closing.is_set():
            try:
                return self._deployments.note(name, event, gguf)
            except (Unreachable, Overloaded) as error:
                reason = error.message
                log.warning("waiting to record %s of %s: %s", event.DESCRIPTOR.name, name, reason)
                self._closing.wait(RETRY)
            except ModelLedgerError as error:
                return _lost(entry, error.message)
        return _lost(entry, reason)


def _lost(entry: _Entry, reason: str) -> None:
    name, event, gguf = entry
    log.error("not recorded: %s of %s, %s (%s): %s", event.DESCRIPTOR.name, name, gguf, event, reason)
