"""The connection to a ledger is cut: whoever repeats the request under the same ids gets the answer it missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

import grpc
import pytest
from eventsourcing.persistence import StoredEvent
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from ledger.errors import Unreachable
from ledger.kit.client import call, connect, patiently
from ledger.kit.recorder import LedgerRecorder
from tests.faults.ledger_process import Ledger, ledger_process
from tests.faults.wire import Wire, wire_to
from tests.house import eventually
from tests.logs import dataset, event_of

Append = Callable[[Sequence[bytes]], list[int]]
STEP = {"requests": 60, "answers": 30}  # bytes


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """One for all of these faults."""
    with ledger_process(tmp_path_factory.mktemp("ledger")) as running:
        yield running


@pytest.fixture
def wire(ledger: Ledger) -> Iterator[Wire]:
    with wire_to(ledger.address) as between:
        yield between


def _entries(ledger: Ledger, size: int) -> list[bytes]:
    first = ledger.size()
    return [dataset(f"d{number}", ledger.trainer)[1] for number in range(first, first + size)]


@contextmanager
def _connected(wire: Wire) -> Iterator[grpc.Channel]:
    """A channel that has shaken hands: without that a request would not be sent on its way."""
    with closing(connect(wire.address)) as channel:
        grpc.channel_ready_future(channel).result(20)
        yield channel


def _appending(channel: grpc.Channel) -> Append:
    """A request as it is sent once."""
    log = ledger_pb2_grpc.LedgerServiceStub(channel)

    def append(entries: Sequence[bytes]) -> list[int]:
        request = ledger_pb2.AppendEventsRequest(envelopes=entries)
        return [proof.index for proof in call(log.AppendEvents, request, timeout=20).proofs]

    return append


def _recording(channel: grpc.Channel) -> Append:
    """A service's, which repeats it by itself."""
    recorder = LedgerRecorder(channel)

    def append(entries: Sequence[bytes]) -> list[int]:
        events = [(event_of(entry), entry) for entry in entries]
        stored = [StoredEvent(event.stream, event.version, event.kind, entry) for event, entry in events]
        return [number - 1 for number in recorder.insert_events(stored) or ()]

    return append


def _cut_before_the_answer(ledger: Ledger, wire: Wire, append: Append, entries: list[bytes]) -> Future[list[int]]:
    """What becomes of a request whose events are in the log, and whose answer does not arrive."""
    committed = ledger.size() + len(entries)
    wire.hold()
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(append, entries)
        eventually(lambda: ledger.size() == committed, 20)
        assert not answer.done()
        wire.cut()
    return answer


@pytest.mark.parametrize("events", [1, 5])
def test_cut_between_commit_and_answer(ledger: Ledger, wire: Wire, events: int) -> None:
    size, entries = ledger.size(), _entries(ledger, events)
    with _connected(wire) as channel:
        append = _appending(channel)
        with pytest.raises(Unreachable, match="no answer from the service"):
            _cut_before_the_answer(ledger, wire, append, entries).result()
        first = list(range(size, size + events))
        assert patiently(lambda: append(entries)) == first
        assert append(entries[-1:]) == first[-1:], "also alone"
        assert append([*entries, *_entries(ledger, 1)]) == [*first, size + events], "also with another"
    assert ledger.verify() == size + events + 1


@pytest.mark.parametrize("events", [1, 5])
def test_a_service_s_recorder_gets_the_answer_that_was_cut_off(ledger: Ledger, wire: Wire, events: int) -> None:
    size, entries = ledger.size(), _entries(ledger, events)
    with _connected(wire) as channel:
        answer = _cut_before_the_answer(ledger, wire, _recording(channel), entries)
        assert answer.result() == list(range(size, size + events))
    assert ledger.verify() == size + events


@pytest.mark.parametrize("lane", ["requests", "answers"])
def test_cut_at_any_byte(ledger: Ledger, wire: Wire, lane: str) -> None:
    """An event is in the log or not; which of them, its caller learns from the next answer."""
    size, entries, missed = ledger.size(), _entries(ledger, 40), 0
    for number, entry in enumerate(entries):
        wire.cut_after(**{lane: 1 + number * STEP[lane]})
        with closing(connect(wire.address)) as channel:
            try:
                assert _appending(channel)([entry]) == [size + number]
            except Unreachable:
                missed += 1
                assert ledger.size() in (size + number, size + number + 1)
                assert ledger.append(entry) == [size + number]
    assert 10 < missed < len(entries), "some requests passed unhurt, and most did not"
    assert ledger.verify() == size + len(entries)
