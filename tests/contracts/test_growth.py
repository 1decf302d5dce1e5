"""What the ledger does costs the same however long a log and its streams are.

Nothing is timed: on SQLite the steps of its virtual machine are counted, on PostgreSQL the pages that are looked at.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import pytest
from modelledger.ledger.v1 import ledger_pb2
from sqlalchemy import Engine, event, text

from ledger import event_pages, evidence
from ledger.edge import LogTiles
from ledger.event_pages import list_page
from ledger.local_actor import Author
from ledger.merkle import inclusion_proof
from ledger.store import RARE, FullTiles, Store
from ledger.writing import Row
from tests.databases import StoreFactory
from tests.logs import ACTORS, ORG, Log, artifact

SHORT, LONG = 4_000, 40_000  # events, about half of them in one stream
SCANNED = 500  # positions; as many are looked at in either of them
MORE_STEPS = 1.1  # times on SQLite
MORE_PAGES = 20  # on PostgreSQL: a level more of each index that is asked, and what is not visible to all yet
STREAM, NAME = f"deployments/{ORG}/bot", f"{ORG}/bot"
_SERVED = artifact(STREAM)
_PAGES = (
    "SELECT sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0)) FROM pg_statio_user_tables"
)


@pytest.fixture
def grow(store_factory: StoreFactory) -> Callable[[int], Log]:
    """Makes a log of so many events."""

    def grow(size: int) -> Log:
        log = Log(store_factory())
        log.append(log.sign("inference", "DeploymentChanged", STREAM, [_SERVED], {"name": NAME, "enabled": True}))
        with log.store.writing() as writing:
            writing.append([_row(log, number) for number in range(size)])
        _analyse(log.store)
        return log

    return grow


def _row(log: Log, number: int) -> Row:
    """First some quantisations, then alternately of the long stream and a run of its own: nobody signed it."""
    digest = sha256(b"%d" % number).hexdigest()
    stream, version, kind, introduced = f"training-runs/{digest[:12]}", 1, "TrainingRequested", ((digest, digest),)
    if number < RARE:
        stream = f"quantizations/{digest[:12]}"
    elif number % 2:
        log._versions[STREAM] = version = log._versions[STREAM] + 1
        stream, kind, introduced = STREAM, "UsageRecorded", ()
    return Row(str(uuid.UUID(digest[:32])), stream, version, kind, digest, b"x" * 200, introduced)


def _analyse(store: Store) -> None:
    """What PostgreSQL's autovacuum does in its own time, so that it does not come in between."""
    with store._writer._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("VACUUM (ANALYZE)"))


@dataclass
class _Meter:
    """Counts what the databases' own counters say of each call."""

    store: Store
    steps: int = 0
    engines: list[Engine] = field(init=False)

    def __post_init__(self) -> None:
        self.engines = [self.store._writer._engine, self.store._reader]
        self.sqlite = self.engines[0].dialect.name == "sqlite"
        if self.sqlite:
            for engine in self.engines:
                event.listen(engine, "checkout", self._count)
            self.store._writer.close()  # it has one already

    def _count(self, connection: Any, *_: Any) -> None:
        connection.set_progress_handler(self._step, 1)

    def _step(self) -> None:
        self.steps += 1

    def cost(self, call: Callable[[], Any]) -> int:
        call()  # what is read and compiled once
        before = self._now()
        call()
        return self._now() - before

    def most(self, short: int) -> float:
        """What may be counted in a long log for what counted `short` in a short one."""
        return short * MORE_STEPS if self.sqlite else short + MORE_PAGES

    def _now(self) -> int:
        if self.sqlite:
            return self.steps
        for engine in self.engines:
            with engine.connect() as connection:  # the only one of its pool: it reports what it has done
                connection.execute(text("SELECT pg_stat_force_next_flush()"))
        with self.engines[1].connect() as connection:
            return int(connection.execute(text(_PAGES)).scalar() or 0)


def _calls(log: Log) -> Iterator[tuple[str, Callable[[], Any]]]:
    store, size, version = log.store, log.store.head.size, log._versions[STREAM]
    fresh = iter(log.datasets(4))
    usage = ("inference", "UsageRecorded", STREAM, [_SERVED], {"name": NAME, "answers": 1, "receiptsRoot": "00"})

    def listed(**asked: Any) -> Callable[[], Any]:
        return partial(list_page, store, ledger_pb2.ListEventsRequest(**asked), 10)

    def proof() -> None:
        with closing(FullTiles(store._reader)) as full:
            inclusion_proof(LogTiles(full, store.head.edge), size // 2, size)

    yield "append", lambda: log.append(next(fresh))
    yield (
        "append to a long stream",
        lambda: log.append(log.sign(*usage)),
    )
    yield "next version", lambda: Author("inference", ACTORS["inference"], store).next_version(STREAM)
    yield "event by index", lambda: store.get(size // 2)
    yield "event by id", lambda: store.get_by_id(store.get(size // 2).id)
    yield "entries", lambda: store.entries(size // 2, size // 2 + 10)
    yield "proof", proof
    yield "refresh", store.refresh
    yield "stream, first page", listed(stream=STREAM)
    yield "stream, last page", listed(stream=STREAM, after_version=version - 5)
    yield "stream, next page", listed(stream=STREAM, page_token=str(version // 2))
    yield "stream, newest", listed(stream=STREAM, descending=True)
    yield "stream and kind", listed(stream=STREAM, kinds=["UsageRecorded"], after_version=version - 5)
    yield "stream and rare kind", listed(stream=STREAM, kinds=["DeploymentChanged"], descending=True)
    yield "stream from an index on", listed(stream=STREAM, start_index=size - 5)
    yield "kind", listed(kinds=["UsageRecorded"], start_index=size // 2)
    yield "kinds", listed(kinds=["UsageRecorded", "TrainingRequested"], start_index=size // 2)
    yield "rare kind", listed(kinds=["ActorEnrolled"])
    yield "prefix", listed(stream_prefix="training-runs/", start_index=size // 2)
    yield "prefix, newest", listed(stream_prefix="training-runs/", descending=True)
    yield "prefix, long ago", listed(stream_prefix="quantizations/", descending=True)
    yield "later versions of any stream", listed(after_version=10**9)
    yield "later versions of a kind", listed(kinds=["UsageRecorded"], after_version=10**9)
    yield "rare prefix", listed(stream_prefix="actors/")


def test_no_call_costs_more_in_a_long_log_and_its_long_stream(
    grow: Callable[[int], Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_pages, "MAX_SCAN", SCANNED)
    costs: dict[str, list[int]] = {}
    for size in (SHORT, LONG):
        log = grow(size)
        meter = _Meter(log.store)
        for name, call in _calls(log):
            costs.setdefault(name, []).append(meter.cost(call))
    assert all(short > 0 for short, _ in costs.values()), "nothing was counted"
    grown = {name: (short, long) for name, (short, long) in costs.items() if long > meter.most(short)}
    assert not grown, "cost in a short log, and in a long one"


def test_the_evidence_of_a_version_is_sought_from_its_creation_on(store_factory: StoreFactory) -> None:
    log = Log(store_factory())
    log.append(log.base(), log.dataset())
    with log.store.writing() as writing:
        writing.append([Row("0", "quantizations/0", 1, "QuantizationCompleted", "0" * 64, b"that nobody can read")])
    log.append(*log.training())
    found = evidence.of_version(log.store, ORG, "bot", "v1.0")
    assert "VersionCreated" in {statement.event.kind for statement in found}
