"""Keeps a view up to date with the log: every event is folded exactly once, in order.

    view = ViewRunner(store, "registry", fold)
    view.start()                          # a thread; folds what is there, then what comes
    view.wait_for(position)               # until it has folded that many events
    view.rebuild()                        # forget everything and fold again, to identical bytes

A batch of events and the position behind it are one transaction, so a crash between two batches repeats
nothing and loses nothing. An event that cannot be folded stops the view: every read fails with its index.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.exc import DBAPIError

from ledger.errors import Damaged, Unreachable
from ledger.reading import read_event
from ledger.statement import Event
from ledger.store import Store, StoredRow
from ledger.view_store import ViewMoved, ViewRows

BATCH = 512  # events in one transaction
REST_SECONDS = 1.0  # after catching up, unless somebody waits; then it looks for what other processes wrote
RETRY_SECONDS = 1.0
WAIT_SECONDS = 30.0

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
        self._wanted = 0  # somebody waits for this position
        self.position = self._read_position()

    def start(self) -> None:
        """Begin to follow the log. After a failure this tries the same event again."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stopped, self._failure = False, None
        self._thread = threading.Thread(target=self._run, name=f"view-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the batch under way."""
        if self._thread is None:
            return
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        self._thread = None

    def rebuild(self, cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Forget every row and fold the whole log again. Readers wait meanwhile, or are told to retry.

        A running view folds in its own thread, and `stop` ends it; otherwise `cancelled` is asked before every batch.
        Either way it has folded the events up to `position`, each once, and goes on from there when it is started.
        False when it was cancelled. A process that follows the log with the same view may fold some of them meanwhile.
        """
        running = self._thread is not None
        self.stop()
        self._forget()
        if running:
            self.start()
        else:
            while self.position < self._store.head.size:
                if cancelled():
                    return False
                with self._following():
                    self._fold_batch()
        return True

    def wait_for(self, position: int, timeout: float = WAIT_SECONDS) -> None:
        """Block until the first `position` events are folded; `timeout` in seconds.

        Raises Damaged when the view stopped at an event it cannot fold, Unreachable when it takes too long.
        """
        with self._changed:
            self._wanted = max(self._wanted, position)
            self._changed.notify_all()
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

    def _forget(self) -> None:
        """Remove every row. A batch that another process folds at the same moment is removed too."""
        forgotten = False
        while not forgotten:
            with suppress(ViewMoved):
                with self._store.views.open(self.name, write=True) as rows:
                    rows.clear()
                forgotten = True
        self.position = 0

    @contextmanager
    def _following(self) -> Iterator[None]:
        """Go on where the view is when another process has moved it."""
        try:
            yield
        except ViewMoved:
            self.position = self._read_position()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self.position >= self._store.head.size:
                    self._changed.wait_for(lambda: self._stopped or self._wanted > self.position, REST_SECONDS)
                if self._stopped:
                    return
            try:
                if self.position >= self._store.head.size:
                    self.position = self._read_position()  # another process may have begun a rebuild
                if self.position < self._store.head.size:
                    with self._following():
                        self._fold_batch()
            except Unreachable as error:
                # Nothing was written; the same batch is tried again, and readers learn why they wait.
                self._hindrance = error.message
                _log.warning("view %s: the database did not take a batch: %s", self.name, error.message)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, RETRY_SECONDS)
            except Damaged as error:
                self._fail(error)
                return
            except Exception as error:  # a reader must learn of it, not wait for a thread that is gone
                self._fail(Damaged(f"the view {self.name!r} stopped at event {self.position}; see the ledger's log"))
                _log.error("view %s", self.name, exc_info=error)
                return

    def _fail(self, error: Damaged) -> None:
        _log.error("view %s stopped: %s", self.name, error.message, exc_info=error.__cause__)
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _fold_batch(self) -> None:
        stop = min(self.position + BATCH, self._store.head.size)
        if stop == self.position:
            return
        events = []
        for row in self._store.page(self.position, stop):
            try:
                events.append((row, read_event(row)))
            except Exception as error:
                raise self._not_taken_in(row) from error
        with self._store.views.open(self.name, write=True) as rows:
            if rows.next_position != self.position:
                raise ViewMoved(f"view {self.name!r} is at {rows.next_position}, not at {self.position}")
            rows.fetch(key for _, event in events for key in self._keys(event))
            for row, event in events:
                try:
                    self._fold(event, row.position, rows)
                except DBAPIError:
                    raise
                except Exception as error:
                    raise self._not_taken_in(row) from error
            rows.advance(stop, events[-1][0].id)
        with self._changed:
            self.position = stop
            self._hindrance = ""
            self._changed.notify_all()

    def _not_taken_in(self, row: StoredRow) -> Damaged:
        """Whatever goes wrong with one event names it, and says what to do."""
        return Damaged(
            f"the view {self.name!r} cannot take in event {row.position} ({row.kind} of {row.stream}) and answers "
            "nothing until it can: update this ledger if it is older than the event's writer; whether the event is "
            "damaged says modelledger log verify"
        )

    def _read_position(self) -> int:
        """Where the view is; it begins again when what it has folded are not the first events of this log."""
        with self._store.views.open(self.name) as rows:
            position, last_id = rows.place
        self._store.refresh()  # afterwards: what another process has folded is in the log by now
        if not position or (position <= self._store.head.size and self._store.get(position - 1).id == last_id):
            return position
        _log.warning("view %s: it holds another log, or more than this one has: it is folded again", self.name)
        self._forget()
        return 0
