"""What the database's driver says, and what a caller is told of it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import psycopg
import pytest
from modelledger.ledger.v1 import ledger_pb2
from sqlalchemy import BigInteger, text
from sqlalchemy.exc import DBAPIError

from ledger import tables
from ledger.errors import InvalidInput, NotFound, Unreachable
from ledger.service import LedgerServicer
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.databases import StoreFactory, log_signer
from tests.logs import Log


def test_an_unusable_database_is_told_without_its_address(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = f"sqlite:///{tmp_path}/secret/log.db", f"postgresql+psycopg://somebody@/log?host={tmp_path}/secret"
    for url in urls:
        caplog.clear()
        with caplog.at_level(logging.ERROR), pytest.raises(Unreachable) as caught:
            Store(url, log_signer())
        for word in ("secret", "somebody", "unable", "refused"):
            assert word not in caught.value.message
        assert caplog.messages  # the details


def test_a_value_that_no_database_holds_is_the_callers_mistake(postgresql_stores: StoreFactory) -> None:
    store = postgresql_stores()
    for ask in (lambda: store.get_by_id("\0"), lambda: store.select(start=1 << 70)):
        with pytest.raises(InvalidInput, match="cannot be stored"):
            ask()


@pytest.mark.parametrize("said", ["\0", "a\0b", "x" * 601, "\n"])
def test_texts_that_no_event_has_are_refused_with_their_field(store_factory: StoreFactory, said: str) -> None:
    log = Log(store_factory())
    service = LedgerServicer(log.store, log.sequencer)
    listing = ledger_pb2.ListEventsRequest
    watching = ledger_pb2.WatchEventsRequest

    for field, question in (
        ("id", lambda: service.GetEvent(ledger_pb2.GetEventRequest(id=said), None)),
        ("stream", lambda: service.ListEvents(listing(stream=said), None)),
        ("stream_prefix", lambda: service.ListEvents(listing(stream_prefix=said), None)),
        ("kinds", lambda: service.ListEvents(listing(kinds=["LogCreated", said]), None)),
        ("stream_prefix", lambda: service.WatchEvents(watching(stream_prefix=said), None)),
    ):
        with pytest.raises(InvalidInput, match=f"^{field}"):
            asyncio.run(question())
    with pytest.raises(NotFound):
        asyncio.run(service.GetEvent(ledger_pb2.GetEventRequest(id="nobody's"), None))


def test_a_database_from_before_keys_were_row_numbers_is_used_as_it_is(
    sqlite_stores: StoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def indexes(store: Store) -> int:
        query = text("SELECT count(*) FROM sqlite_master WHERE name LIKE 'sqlite_autoindex_events%'")
        with store._reader.connect() as connection:
            return int(connection.execute(query).scalar_one())

    with monkeypatch.context() as before:
        for table in (tables.events, tables.checkpoints):
            before.setattr(table.c[0], "type", BigInteger())
        log = Log(sqlite_stores())
    log.append(*log.history(), *log.datasets(256))
    again = Log(sqlite_stores.reopen(log.store))
    again.append(*again.datasets(10, start=256))
    assert verify_whole_log(again.store) == again.store.head.size
    assert (indexes(again.store), indexes(sqlite_stores())) == (3, 2)


def test_tiles_from_before_their_nodes_were_kept_get_them(store_factory: StoreFactory) -> None:
    log = Log(store_factory())
    log.append(*log.datasets(600))
    kept = text("SELECT level, tile, hashes, nodes FROM tiles ORDER BY level, tile")
    with log.store._writer.begin() as connection:
        expected = connection.execute(kept).all()
        connection.execute(text("ALTER TABLE tiles DROP COLUMN nodes"))
        connection.execute(text("DELETE FROM migrations WHERE name = 'm005_nodes'"))
    again = Log(store_factory.reopen(log.store))
    with again.store._reader.begin() as connection:
        assert connection.execute(kept).all() == expected
    assert len(expected) == 2
    for statement in ("UPDATE tiles SET nodes = hashes", "DELETE FROM tiles"):
        with pytest.raises(DBAPIError, match="tiles are never changed"), again.store._writer.begin() as connection:
            connection.execute(text(statement))
    again.append(*again.datasets(256, start=600))
    assert verify_whole_log(again.store) == again.store.head.size


def test_what_was_being_written_when_its_store_was_closed_is_written(store_factory: StoreFactory) -> None:
    log = Log(store_factory())
    log.store._at = lambda point: log.store.close() if point == "before_commit" else None
    appended = log.append(*log.datasets(3))
    again = store_factory.reopen(log.store)
    assert again.head.size == appended.size
    assert verify_whole_log(again) == appended.size


def test_a_database_of_a_newer_release_is_not_touched(store_factory: StoreFactory) -> None:
    log = Log(store_factory())
    with log.store._writer.begin() as connection:
        connection.execute(text("INSERT INTO migrations VALUES ('m999_tomorrow')"))
    with pytest.raises(InvalidInput, match=r"newer release \(m999_tomorrow\); update this one"):
        store_factory.reopen(log.store)


def test_postgresql_answers_every_message_of_a_batch(
    postgresql_stores: StoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that is stopped while it waits for no answer would hold the log's lock for ever."""

    def pipeline(*_: object) -> None:
        raise AssertionError("psycopg's executemany sends rows without waiting for answers")

    monkeypatch.setattr(psycopg.Cursor, "executemany", pipeline)
    log = Log(postgresql_stores())
    log.append(*log.datasets(300))
    with log.store.views.open("counting", write=True) as rows:
        for number in range(300):
            rows.put(f"row/{number}", b"x")
        rows.advance(log.store.head.size, "last")
    assert verify_whole_log(log.store) == log.store.head.size
