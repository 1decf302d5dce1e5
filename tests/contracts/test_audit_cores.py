"""Helper processes of an audit: the same verdict, whatever becomes of them, and none is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ledger import audit_cores
from ledger.audit import audit
from ledger.audit_entries import read_bundle
from ledger.kit.frames import frame
from ledger.kit.helper import MAX_UNANSWERED, Helper, answered
from ledger.merkle import TILE_WIDTH
from ledger.whole_log import DatabaseLog
from tests.databases import StoreFactory, log_signer
from tests.logs import Log, artifact
from tests.pipe_room import leave_room_for

VERIFIERS = [log_signer().verifier]


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> list[Helper[Any]]:
    """The helper processes of the audits of a test, of which all read from the beginning."""
    started: list[Helper[Any]] = []

    def start(module: str) -> Helper[Any]:
        started.append(Helper(module))
        assert answered(started[-1:], 30), "it starts"
        return started[-1]

    monkeypatch.setattr("ledger.audit.ALONE", 0)
    monkeypatch.setattr("ledger.audit_cores.Helper", start)
    return started


@pytest.fixture
def url(sqlite_stores: StoreFactory) -> str:
    """Of a log of 5,007 events."""
    log = Log(sqlite_stores())
    for start in range(0, 5_000, 500):
        log.append(*log.datasets(500, start=start))
    return sqlite_stores.url_of(log.store)


def _half_an_answer(helper: Helper[Any]) -> None:
    answered([helper], 30)
    begun = os.read(helper.fileno(), 1_000)
    helper.process.kill()
    while os.read(helper.fileno(), 1 << 20):
        pass  # the rest was never written
    assert not list(helper._answers._incoming.add(begun))


LOSSES: dict[str, Callable[[Helper[Any]], object]] = {
    "killed": lambda helper: helper.process.kill(),
    "killed within an answer": _half_an_answer,
    "stopped": lambda helper: helper.process.send_signal(signal.SIGSTOP),
    "with an answer that is none": lambda helper: setattr(helper, "answers", lambda: [(helper.asked.popleft(), None)]),
    "with an error": lambda helper: setattr(helper, "answers", lambda: [(helper.asked.popleft(), RuntimeError("x"))]),
}


@pytest.mark.parametrize("jobs", [2, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_helper_that_is_lost_loses_nothing(
    url: str, helpers: list[Helper[Any]], monkeypatch: pytest.MonkeyPatch, loss: str, jobs: int
) -> None:
    monkeypatch.setattr("ledger.audit_cores.PATIENCE", 0.5)
    lost: list[int] = []

    def lose(done: int, _: int) -> None:
        if done > 1_000 and not lost:
            lost.extend(helper.process.pid for helper in helpers if helper.asked)
            for helper in helpers:
                if helper.asked:
                    LOSSES[loss](helper)

    with DatabaseLog(url) as source:
        assert audit(source, VERIFIERS, jobs=jobs, progress=lose).size == 5_007
    assert lost
    assert len(helpers) == jobs - 1
    _are_gone(helpers)


def test_helpers_that_there_is_no_room_for_are_done_without(
    url: str, helpers: list[Helper[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_room_for(1, monkeypatch)
    with DatabaseLog(url) as source:
        assert audit(source, VERIFIERS, jobs=4).size == 5_007
    assert len(helpers) == 1


def test_no_more_helpers_are_started_than_their_pipes_have_room_for(
    url: str, helpers: list[Helper[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.audit_cores.MOST_HELPERS", 2)
    with DatabaseLog(url) as source:
        assert audit(source, VERIFIERS, jobs=8).size == 5_007
    assert len(helpers) == 2


def test_an_audit_that_is_given_up_while_helpers_start_leaves_none(
    url: str, helpers: list[Helper[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = audit_cores.Helper

    def interrupted(module: str) -> Helper[Any]:
        if len(helpers) == 2:
            raise KeyboardInterrupt
        return start(module)

    monkeypatch.setattr("ledger.audit_cores.Helper", interrupted)
    with DatabaseLog(url) as source, pytest.raises(KeyboardInterrupt):
        audit(source, VERIFIERS, jobs=4)
    _are_gone(helpers)


def test_helpers_do_a_part(url: str, helpers: list[Helper[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[int] = []

    def counted(entries: Sequence[bytes], *more: Any) -> Any:
        here.append(len(entries))
        return read_bundle(entries, *more)

    monkeypatch.setattr("ledger.audit_cores.read_bundle", counted)
    with DatabaseLog(url) as source:
        audit(source, VERIFIERS, jobs=3)
    assert 0 < sum(here) < 4_000


def test_bundles_that_no_pipe_holds_are_read_whatever_becomes_of_the_helpers(
    sqlite_stores: StoreFactory, helpers: list[Helper[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(sqlite_stores())
    log.append(*log.history())
    for start in range(0, 1_280, 128):
        made = [(f"d{start + i}", artifact(f"datasets/acme/d{start + i}")) for i in range(128)]
        data = {"org": "acme", "examples": 100, "band": "minimum", "form": "x" * (MAX_UNANSWERED // 256)}
        log.append(
            *(
                log.sign("trainer", "DatasetRegistered", found.name, [found], {**data, "name": name})
                for name, found in made
            )
        )
    sizes: list[int] = []
    monkeypatch.setattr(
        "ledger.kit.helper.frame", lambda question: sizes.append(len(frame(question))) or frame(question)
    )

    def stop(*_: int) -> None:  # writing to it would wait for ever
        for helper in helpers:
            helper.process.send_signal(signal.SIGSTOP)

    with DatabaseLog(sqlite_stores.url_of(log.store)) as source:
        assert audit(source, VERIFIERS, jobs=2, progress=stop).size == log.store.head.size
    assert max(sizes) > MAX_UNANSWERED


def test_a_bundle_that_ends_its_reader_ends_one_helper(
    url: str, helpers: list[Helper[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Helper[Any]] = []
    ask = Helper.ask

    def deadly(self: Helper[Any], about: Any, question: Any) -> bool:
        asked = ask(self, about, question)
        if about.bundle.start == TILE_WIDTH:  # helpers' first; later ones may all be read by this process
            assert asked
            self.process.kill()
            ended.append(self)
        return asked

    monkeypatch.setattr(Helper, "ask", deadly)
    with DatabaseLog(url) as source:
        assert audit(source, VERIFIERS, jobs=4).size == 5_007
    assert len(ended) == 1


def test_an_audit_that_ends_early_leaves_no_helper(url: str, helpers: list[Helper[Any]]) -> None:
    class Enough(Exception):
        pass

    def enough(done: int, _: int) -> None:
        if done > 1_000:
            raise Enough

    with DatabaseLog(url) as source, pytest.raises(Enough):
        audit(source, VERIFIERS, jobs=3, progress=enough)
    _are_gone(helpers)


def _are_gone(helpers: Sequence[Helper[Any]]) -> None:
    assert helpers
    for helper in helpers:
        with pytest.raises(ProcessLookupError):
            os.kill(helper.process.pid, 0)
