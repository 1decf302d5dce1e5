"""Where views lie, and that what lies there belongs to the log: otherwise it is folded again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from ledger import views
from ledger.errors import Damaged, DamagedLog, InvalidInput
from ledger.statement import Event
from ledger.view_store import NOWHERE, ViewRows
from ledger.view_tables import views_url
from ledger.views import ViewRunner
from tests.databases import StoreFactory
from tests.house import eventually
from tests.logs import Log


def _note(event: Event, index: int, rows: ViewRows) -> None:
    rows.put(f"{index:06}", event.id.encode())


def _folded(log: Log, name: str = "notes") -> list[bytes]:
    """What a view of the log holds once it has caught up."""
    view = ViewRunner(log.store, name, _note)
    view.start()
    view.wait_for(log.store.head.size)
    view.stop()
    return _rows(log, name)


def _rows(log: Log, name: str = "notes") -> list[bytes]:
    with log.store.views.open(name) as rows:
        return [document for _, document in rows.scan("")]


def _ids(log: Log) -> list[bytes]:
    return [row.id.encode() for row in log.store.page(0, log.store.head.size)]


@pytest.mark.parametrize(("position", "last_id"), [(5, "another log's"), (5, ""), (1_000, "what was taken back")])
def test_a_view_of_another_log_is_folded_again(store_factory: StoreFactory, position: int, last_id: str) -> None:
    log = Log(store_factory())
    log.append(*log.datasets(30))
    with log.store.views.open("notes", write=True) as rows:
        rows.put("000003", b"of another log")
        rows.put("zzzzzz", b"of another log")
        rows.advance(position, last_id)
    assert _folded(log) == _ids(log)


def test_a_view_that_runs_notices_that_it_was_exchanged(
    store_factory: StoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "REST_SECONDS", 0.05)
    log = Log(store_factory())
    log.append(*log.datasets(30))
    view = ViewRunner(log.store, "notes", _note)
    view.start()
    try:
        view.wait_for(log.store.head.size)
        with log.store.views.open("notes", write=True) as rows:
            rows.clear()
            rows.put("000003", b"of another log")
            rows.advance(7, "another log's")
        assert eventually(lambda: _rows(log) == _ids(log))
    finally:
        view.stop()


def test_a_view_of_this_log_is_gone_on_with(store_factory: StoreFactory) -> None:
    log = Log(store_factory())
    log.append(*log.datasets(30))
    with log.store.views.open("notes", write=True) as rows:
        rows.put("folded", b"before")
        rows.advance(30, log.store.get(29).id)
    assert _folded(log) == [*_ids(log)[30:], b"before"]


def test_views_of_sqlite_have_a_file_of_their_own(sqlite_stores: StoreFactory) -> None:
    log = Log(sqlite_stores())
    log.append(*log.datasets(30))
    before = _folded(log)
    file = sqlite_stores.file_of(log.store)
    beside = file.with_name("log1-views.db")
    assert views_url(sqlite_stores.url_of(log.store)) == f"sqlite:///{beside}"
    with sqlite3.connect(file) as connection:
        assert not connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'view%'").fetchall()

    log.store.close()
    for path in file.parent.glob("log1-views.db*"):
        path.unlink()
    again = Log(sqlite_stores.reopen(log.store))
    with again.store.views.open("notes") as rows:
        assert rows.place == NOWHERE
    assert _folded(again) == before == _ids(again)


def test_a_damaged_file_of_views_says_that_it_can_be_deleted(sqlite_stores: StoreFactory) -> None:
    log = Log(sqlite_stores())
    log.append(*log.datasets(3))
    _folded(log)
    log.store.close()
    beside = Path(views_url(sqlite_stores.url_of(log.store)).removeprefix("sqlite:///"))
    beside.write_bytes(b"no database" * 1_000)
    again = Log(sqlite_stores.reopen(log.store))
    with pytest.raises(Damaged, match=r"file of the ledger's views.*delete the file"), again.store.views.open("notes"):
        pass
    again.append(*again.datasets(3, start=3))  # the log is as it was


def test_what_is_wrong_with_the_log_is_not_said_of_its_views(store_factory: StoreFactory) -> None:
    store = store_factory()
    with pytest.raises(DamagedLog, match=r"^event 3"), store.views.open("notes"):
        raise DamagedLog("event 3 was changed")


@pytest.mark.parametrize(
    ("url", "views"),
    [
        ("sqlite:///log.db", "sqlite:///log-views.db"),
        ("sqlite:////data/a.b/ledger", "sqlite:////data/a.b/ledger-views"),
        ("sqlite+pysqlite:///../x/log.tar.db?timeout=9", "sqlite+pysqlite:///../x/log.tar-views.db?timeout=9"),
        ("sqlite:///file:log.db?uri=true", "sqlite:///file:log-views.db?uri=true"),
        ("sqlite:///file://localhost/a/log.db?uri=true", "sqlite:///file://localhost/a/log-views.db?uri=true"),
        ("postgresql+psycopg://me:secret@host/log", "postgresql+psycopg://me:secret@host/log"),
    ],
)
def test_where_views_are(url: str, views: str) -> None:
    assert views_url(url) == views


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///.", "sqlite:////", "sqlite:///file::memory:"]
)
def test_a_log_that_is_in_no_file_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="is a file"):
        views_url(url)


def test_a_database_from_before_views_knew_their_log_is_brought_up_to_date(store_factory: StoreFactory) -> None:
    log = Log(store_factory())
    log.append(*log.datasets(30))
    with log.store._writer.begin() as connection:
        connection.execute(text("DELETE FROM migrations WHERE name = 'm006_views'"))
        for statement in ("DROP TABLE IF EXISTS view_rows", "DROP TABLE IF EXISTS view_positions"):
            connection.execute(text(statement))
        document = "BYTEA" if store_factory.kind == "postgresql" else "BLOB"
        rows = f"view VARCHAR(64), key VARCHAR(1000), document {document} NOT NULL, PRIMARY KEY (view, key)"
        connection.execute(text(f"CREATE TABLE view_rows ({rows})"))
        positions = "view VARCHAR(64) PRIMARY KEY, next_position BIGINT NOT NULL"
        connection.execute(text(f"CREATE TABLE view_positions ({positions})"))
        connection.execute(text("INSERT INTO view_positions VALUES ('notes', 30), ('empty', 0), ('ahead', 99)"))
    again = Log(store_factory.reopen(log.store))
    with again.store.views.open("notes") as notes, again.store.views.open("empty") as empty:
        kept = (30, again.store.get(29).id) if store_factory.kind == "postgresql" else NOWHERE
        assert (notes.place, empty.place) == (kept, NOWHERE)
    if store_factory.kind == "sqlite":
        with again.store._reader.begin() as connection:
            assert not connection.execute(text("SELECT name FROM sqlite_master WHERE name LIKE 'view%'")).all()
    else:  # a release from before, which still runs, is refused rather than believed
        moved = "INSERT INTO view_positions (view, next_position) VALUES ('notes', 31) ON CONFLICT (view) DO UPDATE"
        with pytest.raises(IntegrityError), again.store._writer.begin() as connection:
            connection.execute(text(f"{moved} SET next_position = excluded.next_position"))
    for name in ("empty", "ahead"):
        assert _folded(again, name) == _ids(again)
