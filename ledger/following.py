"""What other ledger processes commit to the same database is seen here too, within a second.

    twice a second: the newest checkpoint in the database ──► store.head ──► readers, watchers, witnesses

It costs one row by its primary key as long as nothing is new, so it is done on every database: whether somebody else
writes, a ledger cannot know. What this process writes itself it has heard of before (ledger/writer.py).
"""

from __future__ import annotations

import logging
import threading

from ledger.errors import Unreachable
from ledger.store import Store

log = logging.getLogger("modelledger.following")

INTERVAL = 0.5
STOP_SECONDS = 2.0


class Follower(threading.Thread):
    """Keeps a store's head fresh. Whatever goes wrong is tried again, and readers keep what they have meanwhile."""

    def __init__(self, store: Store, interval: float = INTERVAL) -> None:
        super().__init__(name="following", daemon=True)
        self._store = store
        self._interval = interval
        self._stopped = threading.Event()

    def run(self) -> None:
        failed = ""
        while not self._stopped.wait(self._interval):
            try:
                self._store.refresh()
            except Exception as error:
                if failed != repr(error):
                    log.error("cannot follow the database: %s", error, exc_info=not isinstance(error, Unreachable))
                failed = repr(error)
            else:
                if failed:
                    log.info("following the database again")
                failed = ""

    def stop(self) -> None:
        """A look under way is given a moment, then left behind."""
        self._stopped.set()
        if self.is_alive():
            self.join(STOP_SECONDS)
