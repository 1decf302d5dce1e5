"""Pages of ListEvents: whatever is asked for comes once, in order, however it is found."""

from __future__ import annotations

from typing import Any

import pytest
from modelledger.ledger.v1 import ledger_pb2

from ledger import event_pages, store
from ledger.errors import InvalidInput
from ledger.event_pages import list_page
from tests.logs import Log

ASKED = [
    {},
    {"start_index": 9},
    {"start_index": -5, "after_version": -5},
    {"stream": "datasets/acme/long", "kinds": ["DatasetRegistered"]},
    {"stream": "datasets/acme/long", "kinds": ["DatasetRegistered"], "after_version": -9},
    {"stream": "datasets/acme/long", "start_index": 45, "after_version": 3},
    {"stream": "datasets/acme/long", "kinds": ["TrainingStarted"]},
    {"stream": "training-runs/run1"},
    {"stream": "training-runs/run1", "after_version": 1},
    {"stream": "training-runs/run1", "start_index": 12, "kinds": ["EpochCompleted", "TrainingCompleted"]},
    {"stream": "models/acme/bot", "stream_prefix": "training-runs/"},
    {"stream": "models/acme/nothing"},
    {"stream_prefix": "training-runs/"},
    {"stream_prefix": "training-runs/", "start_index": 14},
    {"stream_prefix": "training-runs/", "kinds": ["TrainingStarted"]},
    {"stream_prefix": "training-runs/", "after_version": 3},
    {"after_version": 3},
    {"after_version": 3, "kinds": ["DatasetRegistered"], "start_index": 12},
    {"stream_prefix": "certificates/"},
    {"stream_prefix": "nothing/"},
    {"kinds": ["TrainingStarted", "DatasetRegistered"]},
]


@pytest.fixture
def full(log: Log) -> Log:
    log.append(log.base())
    log.append(*log.datasets(20), log.dataset())
    for number in range(1, 4):
        log.append(*log.training(f"run{number}", model=f"bot{number}"))
        log.append(*[log.dataset("long") for _ in range(10)])
    return log


def _expected(log: Log, asked: dict[str, Any]) -> list[int]:
    return [
        row.position
        for row in log.store.select(limit=None)
        if row.position >= asked.get("start_index", 0)
        and row.stream.startswith(asked.get("stream_prefix", ""))
        and asked.get("stream", row.stream) == row.stream
        and row.kind in asked.get("kinds", [row.kind])
        and row.version > asked.get("after_version", 0)
    ]


@pytest.mark.parametrize("rare", [1, 1_000], ids=["few are many", "few"])
@pytest.mark.parametrize("descending", [False, True], ids=["oldest first", "newest first"])
def test_pages_hold_every_event_once(full: Log, descending: bool, rare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_pages, "MAX_SCAN", 7)
    monkeypatch.setattr(store, "RARE", rare)
    for asked in ASKED:
        found, token, pages = [], "", 0
        while token or not pages:
            request = ledger_pb2.ListEventsRequest(descending=descending, page_token=token, **asked)
            page, token = list_page(full.store, request, 2)
            assert len(page) <= 2
            found += [row.position for row in page]
            pages += 1
            assert pages <= full.store.head.size, f"{asked} comes to no end"
        expected = _expected(full, asked)
        assert found == (expected[::-1] if descending else expected), asked


def test_a_token_of_another_kind_is_refused(full: Log) -> None:
    for token in ("x", "-1", "9" * 19):
        with pytest.raises(InvalidInput, match="page_token"):
            list_page(full.store, ledger_pb2.ListEventsRequest(page_token=token), 4)


def test_a_token_beyond_the_end_ends_the_list(full: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "RARE", 1)
    far = {"page_token": "9" * 18}
    for asked in ({}, {"stream": "training-runs/run1"}, {"stream_prefix": "training-runs/"}):
        assert list_page(full.store, ledger_pb2.ListEventsRequest(**far, **asked), 4) == ([], "")
        newest = ledger_pb2.ListEventsRequest(descending=True, **asked)
        assert list_page(full.store, ledger_pb2.ListEventsRequest(descending=True, **far, **asked), 4) == list_page(
            full.store, newest, 4
        )
