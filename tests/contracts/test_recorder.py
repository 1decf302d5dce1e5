"""The eventsourcing library's own recorder tests, run against our store on every database.

Its AggregateRecorder case demands that insert_events answers None, while an ApplicationRecorder answers the
notification ids; that one case runs through `WithoutIds`, which forgets them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from eventsourcing.persistence import AggregateRecorder, StoredEvent
from eventsourcing.tests import persistence as library

from ledger.errors import EventTooLarge
from ledger.store_recorder import StoreRecorder
from tests.databases import StoreFactory


class WithoutIds(AggregateRecorder):
    def __init__(self, recorder: StoreRecorder) -> None:
        self._recorder = recorder

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        self._recorder.insert_events(stored_events, **kwargs)

    def select_events(self, *args: Any, **kwargs: Any) -> Sequence[StoredEvent]:
        return self._recorder.select_events(*args, **kwargs)


class Applications(library.ApplicationRecorderTestCase[StoreRecorder]):
    # The library's cases are unittest classes: pytest gives those fixtures, but no parameters.
    __test__ = False
    stores: StoreFactory

    def create_recorder(self) -> StoreRecorder:
        return StoreRecorder(self.stores())

    def new_originator_id(self) -> str:
        return str(uuid.uuid4())

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class Aggregates(library.AggregateRecorderTestCase):
    __test__ = False
    stores: StoreFactory

    def create_recorder(self) -> WithoutIds:
        return WithoutIds(StoreRecorder(self.stores()))

    def new_originator_id(self) -> str:
        return str(uuid.uuid4())


class NotInterleaving(library.NonInterleavingNotificationIDsBaseCase):
    __test__ = False
    stores: StoreFactory

    def create_recorder(self) -> StoreRecorder:
        return StoreRecorder(self.stores())

    def new_originator_id(self) -> str:
        return str(uuid.uuid4())


class OnSQLite:
    __test__ = True

    @pytest.fixture(autouse=True)
    def _database(self, sqlite_stores: StoreFactory) -> None:
        self.stores = sqlite_stores


class OnPostgreSQL:
    __test__ = True

    @pytest.fixture(autouse=True)
    def _database(self, postgresql_stores: StoreFactory) -> None:
        self.stores = postgresql_stores


class TestApplicationsOnSQLite(OnSQLite, Applications): ...


class TestApplicationsOnPostgreSQL(OnPostgreSQL, Applications): ...


class TestAggregatesOnSQLite(OnSQLite, Aggregates): ...


class TestAggregatesOnPostgreSQL(OnPostgreSQL, Aggregates): ...


class TestNotInterleavingOnSQLite(OnSQLite, NotInterleaving): ...


class TestNotInterleavingOnPostgreSQL(OnPostgreSQL, NotInterleaving): ...


def test_an_entry_that_no_bundle_could_hold_is_refused(store_factory: StoreFactory) -> None:
    recorder = StoreRecorder(store_factory())
    recorder.insert_events([StoredEvent("a", 1, "kind", b"x" * 65_535)])
    with pytest.raises(EventTooLarge, match="65536"):
        recorder.insert_events([StoredEvent("a", 2, "kind", b"x" * 65_536)])
    assert recorder.max_notification_id() == 1
