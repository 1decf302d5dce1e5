"""Keeps a view up to date with the log: every event is folded exactly once, in order.

    view = ViewRunner(store, "registry", fold)
    view.start()                          # a thread; folds what is there, then every commit
    await view.read(query)                # after every event that is in the log now: you read your own writes
    view.rebuild()                        # forget everything and fold again, to identical bytes

A batch of events and the position behind it are one transaction, so a crash between two batches repeats
nothing and loses nothing. An event that cannot be folded stops the view: every read fails with its index.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from ledger.errors import Damaged, Unreachable
from ledger.sequencer import read_event
from ledger.statement import Event
from ledger.store import Head, Store
from ledger.view_store import ViewMoved, ViewRows

BATCH = 512  # events in one transaction
RETRY_SECONDS = 1.0
WAIT_SECONDS = 30.0

Answer = TypeVar("Answer")
Fold = Callable[[Event, int, ViewRows], None]
"""(event, its index, the view's rows) -> changed rows. Deterministic, and it reads nothing else."""
Keys = Callable[[Event], Iterable[str]]
"""Rows that folding an event will probably read, so that a batch's are read at once."""

_log = logging.getLogger(__name__)


class ViewRunner:
    """One view of one store. `position` is the number of events folded."""

    def __init__(self, store: Store, name: str, fold: Fold, keys: Keys = lambda event: ()) -> None:
        self.name = name
        self._store = store
        self._fold = fold
        self._keys = keys
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = True
        self._failure: Damaged | None = None
        self._hindrance = ""
        self.position = self._read_position()

    def start(self) -> None:
        """Begin to follow the log. After a failure this tries the same event again."""
        if self._thread is not None:
            return
        self._stopped, self._failure = False, None
        self._store.listeners.add(self._wake)
        self._thread = threading.Thread(target=self._run, name=f"view-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the batch under way."""
        if self._thread is None:
            return
        self._store.listeners.discard(self._wake)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        self._thread = None

    def rebuild(self) -> None:
        """Forget every row and fold the whole log again. Readers wait meanwhile, or are told to retry."""
        running = self._thread is not None
        self.stop()
        with self._store.view(self.name, write=True) as rows:
            rows.clear()
        self.position = 0
        if running:
            self.start()
        else:
            while self.position < self._store.head.size:
                self._fold_batch()

    def wait_for(self, position: int, timeout: float = WAIT_SECONDS) -> None:
        """Block until the first `position` events are folded; `timeout` in seconds.

        Raises Damaged when the view stopped at an event it cannot fold, Unreachable when it takes too long.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self.position >= position or self._failure is not None or self._stopped, timeout
            )
            if self._failure is not None:
                raise self._failure
            if self.position < position:
                why = f" ({self._hindrance})" if self._hindrance else ""
                raise Unreachable(
                    f"the view {self.name!r} has folded {self.position} of {position} events{why}; retry in a moment"
                )

    async def reached(self, position: int, timeout: float = WAIT_SECONDS) -> None:
        """`wait_for` without blocking the event loop."""
        if self._failure is None and self.position >= position:
            return
        await asyncio.to_thread(self.wait_for, position, timeout)

    async def read(self, query: Callable[[ViewRows], Answer]) -> Answer:
        """The query's answer from one snapshot that holds every event that is in the log now."""
        position = self._store.head.size
        await self.reached(position)
        return await asyncio.to_thread(self._query, query, position)

    def _query(self, query: Callable[[ViewRows], Answer], position: int) -> Answer:
        with self._store.view(self.name) as rows:
            if rows.next_position < position:
                raise Unreachable(f"the view {self.name!r} is being rebuilt; retry in a moment")
            return query(rows)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._store.head.size > self.position)
                if self._stopped:
                    return
            try:
                self._fold_batch()
            except Unreachable as error:
                # Nothing was written; the same batch is tried again, and readers learn why they wait.
                self._hindrance = error.message
                _log.warning("view %s: the database did not take a batch: %s", self.name, error.message)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, RETRY_SECONDS)
            except ViewMoved:
                self.position = self._read_position()
            except Damaged as error:
                _log.exception("view %s stopped", self.name)
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return

    def _fold_batch(self) -> None:
        stop = min(self.position + BATCH, self._store.head.size)
        events = [(row, read_event(row)) for row in self._store.select(start=self.position, stop=stop, limit=None)]
        with self._store.view(self.name, write=True) as rows:
            rows.fetch(key for _, event in events for key in self._keys(event))
            for row, event in events:
                try:
                    self._fold(event, row.position, rows)
                except DBAPIError:
                    raise
                except Exception as error:
                    raise Damaged(
                        f"the view {self.name!r} cannot take in event {row.position} ({row.kind} of {row.stream}): "
                        f"{error!r}; this ledger is older than the event's writer, or the event is damaged"
                    ) from error
            rows.advance(stop)
        with self._changed:
            self.position = stop
            self._hindrance = ""
            self._changed.notify_all()

    def _wake(self, head: Head) -> None:
        with self._changed:
            self._changed.notify_all()

    def _read_position(self) -> int:
        with self._store.view(self.name) as rows:
            position = rows.next_position
        if position > self._store.head.size:
            raise Damaged(
                f"the view {self.name!r} has folded {position} events, but the log has {self._store.head.size}; "
                "the log was replaced by an older one: restore it, or delete the view's rows to rebuild them"
            )
        return position
