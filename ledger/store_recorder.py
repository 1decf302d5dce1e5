"""The store as the eventsourcing library sees it: an ApplicationRecorder.

originator_id is the stream, topic the kind, state the entry's bytes, notification id = position + 1. Events that
come in this way are recorded and proven, but no append rule looks at them; services append through the
sequencer (ledger/kit/recorder.py).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

from eventsourcing.persistence import (
    ApplicationRecorder,
    IntegrityError,
    Notification,
    StoredEvent,
    Subscription,
)
from sqlalchemy.exc import IntegrityError as ConstraintError

from ledger.store import Store
from ledger.writing import Row


class StoreRecorder(ApplicationRecorder):
    """Records straight into a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        try:
            with self.store.writing() as writing:
                first = writing.size
                writing.append([_row(stored) for stored in stored_events])
        except ConstraintError as error:
            raise IntegrityError(str(error.orig)) from error
        return [first + offset + 1 for offset in range(len(stored_events))]

    def select_events(
        self,
        originator_id: uuid.UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        rows = self.store.select(
            stream=str(originator_id), after_version=gt, up_to_version=lte, descending=desc, limit=limit
        )
        return [StoredEvent(row.stream, row.version, row.kind, row.entry) for row in rows]

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        first = max(start or 1, 1) if inclusive_of_start else (start or 0) + 1
        rows = self.store.select(start=first - 1, stop=stop, kinds=topics, limit=limit)
        return [Notification(row.stream, row.version, row.kind, row.entry, id=row.position + 1) for row in rows]

    def max_notification_id(self) -> int | None:
        return self.store.head.size or None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        return StoreSubscription(self, gt, topics)


class StoreSubscription(Subscription[StoreRecorder]):
    """Blocks after the last event until the next one is committed."""

    def __init__(self, recorder: StoreRecorder, gt: int | None, topics: Sequence[str]) -> None:
        super().__init__(recorder, gt, topics)
        self._store = recorder.store
        self._batch: list[Notification] = []

    def __next__(self) -> Notification:
        while not self._has_been_stopped:
            if not self._batch:
                size, after = self._store.head.size, self._last_notification_id or 0
                self._batch = list(
                    self._recorder.select_notifications(after, 500, topics=self._topics, inclusive_of_start=False)
                )[::-1]
                if not self._batch:
                    self._last_notification_id = max(after, size)
                    self._store.wait(size, timeout=0.5)  # so that stop() is noticed
                    continue
            notification = self._batch.pop()
            self._last_notification_id = notification.id
            return notification
        raise StopIteration


def _row(stored: StoredEvent) -> Row:
    return Row(
        id=str(uuid.uuid4()),
        stream=str(stored.originator_id),
        version=stored.originator_version,
        kind=stored.topic,
        payload_sha256=hashlib.sha256(stored.state).hexdigest(),
        entry=stored.state,
    )
