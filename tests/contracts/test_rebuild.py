"""A rebuild of a view that is given up: nothing is folded twice or left out, whoever goes on with it."""

from __future__ import annotations

import pytest

from ledger import views
from ledger.errors import Damaged
from ledger.statement import Event
from ledger.store import Store
from ledger.view_store import ViewRows
from ledger.views import ViewRunner
from tests.databases import StoreFactory
from tests.logs import Log


@pytest.fixture
def store(store_factory: StoreFactory) -> Store:
    log = Log(store_factory())
    log.append(*log.datasets(60))
    return log.store


def _count(event: Event, index: int, rows: ViewRows) -> None:
    """How often each event was folded."""
    key = f"{index:06}"
    rows.put(key, str(int(rows.get(key) or b"0") + 1).encode())


def _folded(store: Store) -> list[tuple[str, bytes]]:
    with store.views.open("counting") as rows:
        return rows.scan("")


def test_a_cancelled_rebuild_goes_on_where_it_stopped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "BATCH", 20)
    whole = [(f"{index:06}", b"1") for index in range(store.head.size)]
    view = ViewRunner(store, "counting", _count)
    assert view.rebuild()
    assert _folded(store) == whole

    asked = iter([False, False, True])
    assert not view.rebuild(lambda: next(asked))
    assert view.position == 40
    assert _folded(store) == whole[:40]

    after_restart = ViewRunner(store, "counting", _count)
    after_restart.start()
    after_restart.wait_for(store.head.size)
    after_restart.stop()
    assert _folded(store) == whole


def test_a_view_that_stopped_is_started_again_at_the_same_event(store: Store) -> None:
    broken = True

    def fold(event: Event, index: int, rows: ViewRows) -> None:
        if broken and index == 30:
            raise ValueError(index)
        _count(event, index, rows)

    view = ViewRunner(store, "counting", fold)
    view.start()
    with pytest.raises(Damaged, match="event 30"):
        view.wait_for(store.head.size)
    view._thread.join()
    broken = False
    view.start()
    view.wait_for(store.head.size)
    view.stop()
    assert _folded(store) == [(f"{index:06}", b"1") for index in range(store.head.size)]


def test_a_rebuild_that_has_come_to_its_end_was_not_cancelled(store: Store) -> None:
    view = ViewRunner(store, "counting", _count)
    asked = iter([False])
    assert view.rebuild(lambda: next(asked, True))
    assert view.position == store.head.size


def test_a_process_that_follows_the_log_meanwhile_folds_nothing_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "BATCH", 20)
    other = ViewRunner(store, "counting", _count)
    view = ViewRunner(store, "counting", _count)

    def helped() -> bool:
        if view.position == 20 and other.position < store.head.size:
            other.start()
            other.wait_for(store.head.size)
            other.stop()
        return False

    assert view.rebuild(helped)
    assert other.position == view.position == store.head.size
    assert _folded(store) == [(f"{index:06}", b"1") for index in range(store.head.size)]
