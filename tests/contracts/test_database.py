"""What the database's driver says, and what a caller is told of it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from modelledger.ledger.v1 import ledger_pb2

from ledger.errors import InvalidInput, NotFound, Unreachable
from ledger.service import LedgerServicer
from ledger.store import Store
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


@pytest.mark.parametrize("text", ["\0", "a\0b", "x" * 601, "\n"])
def test_texts_that_no_event_has_are_refused_with_their_field(store_factory: StoreFactory, text: str) -> None:
    log = Log(store_factory())
    service = LedgerServicer(log.store, log.sequencer)
    listing = ledger_pb2.ListEventsRequest
    watching = ledger_pb2.WatchEventsRequest

    for field, question in (
        ("id", lambda: service.GetEvent(ledger_pb2.GetEventRequest(id=text), None)),
        ("stream", lambda: service.ListEvents(listing(stream=text), None)),
        ("stream_prefix", lambda: service.ListEvents(listing(stream_prefix=text), None)),
        ("kinds", lambda: service.ListEvents(listing(kinds=["LogCreated", text]), None)),
        ("stream_prefix", lambda: service.WatchEvents(watching(stream_prefix=text), None)),
    ):
        with pytest.raises(InvalidInput, match=f"^{field}"):
            asyncio.run(question())
    with pytest.raises(NotFound):
        asyncio.run(service.GetEvent(ledger_pb2.GetEventRequest(id="nobody's"), None))
