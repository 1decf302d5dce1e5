"""What a caller is told when the ledger has too much to do, and what ends a stream of appends that asks too much."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from modelledger.ledger.v1 import ledger_pb2 as pb
from modelledger.ledger.v1 import ledger_pb2_grpc

from ledger import append_streams, sequencer
from ledger.errors import InvalidInput, Overloaded
from ledger.kit.client import call, connect, from_rpc_error, from_status, patiently
from ledger.sequencer import MAX_REQUEST, UNDER_WAY, WORTH_BEGINNING
from tests.audit import verify_whole_log
from tests.gated import Served, answers, answers_in_thread, asked, reasons, run
from tests.logs import Log


def test_a_caller_that_is_too_fast_is_slowed_down_and_not_refused(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_streams, "MAX_UNANSWERED", 10)
    entries = log.datasets(200)
    requests = [[b""], *([entry] for entry in entries[:100]), *(entries[n : n + 4] for n in range(100, 200, 4))]

    async def use(served: Served, stub: Any) -> None:
        stream = stub.AppendStream(iter(asked(requests)))
        await served.until(lambda: served.queued == 10)
        for _ in range(20):  # time enough to read everything, if it were read
            await stub.GetCheckpoint(pb.GetCheckpointRequest())
        served.gate.open.set()
        found, ended = await answers(stream)
        assert ended is None
        assert reasons(found) == ["MALFORMED_EVENT", *[""] * (len(requests) - 1)]
        assert served.most == 10

    run(log, use)


def test_streams_wait_for_room_where_a_single_call_is_refused(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "MAX_QUEUED", 10)
    entries = log.datasets(120)

    async def use(served: Served, stub: Any) -> None:
        streams = [stub.AppendStream(iter(asked([[entry] for entry in entries[n : n + 40]]))) for n in (0, 40, 80)]
        await served.until(lambda: served.queued == 10)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.AppendEvents(pb.AppendEventsRequest(envelopes=entries[:1]))
        served.gate.open.set()
        for found, ended in await asyncio.gather(*map(answers, streams)):
            assert (reasons(found), ended) == ([""] * 40, None)
        assert served.most == 10

    run(log, use)


def test_what_is_too_large_for_the_log_takes_no_room(log: Log) -> None:
    """A queue of MAX_QUEUED events is bounded in bytes as well: each has at most 65,535."""

    async def use(served: Served, stub: Any) -> None:
        requests = asked([[bytes(3 << 20)]] * 30 + [[b"{}", bytes(65_536)]])
        stream = stub.AppendStream(iter(requests))
        found = [await stream.read() for _ in requests]  # though the writer takes nothing yet
        assert set(reasons(found)) == {"EVENT_TOO_LARGE"}
        assert from_status(found[-1].refused).message.startswith("envelopes[1]: the envelope has 65536 bytes")
        assert served.most == 0

    run(log, use)


def test_many_events_go_to_the_writer_before_it_has_nothing_to_do(log: Log) -> None:
    entries = log.datasets(1 + UNDER_WAY * WORTH_BEGINNING + 7)
    size = log.store.head.size

    async def use(served: Served, stub: Any) -> None:
        answers = [served.sequencer.submit([entry]) for entry in entries]
        await served.until(lambda: len(served.sequencer._writing) == UNDER_WAY)
        served.gate.open.set()
        indexes = [(await answer).indexes for answer in answers]
        assert indexes == [(size + number,) for number in range(len(entries))]
        assert served.gate.batches == [1, *[WORTH_BEGINNING] * (UNDER_WAY - 1), WORTH_BEGINNING + 7]

    run(log, use)
    verify_whole_log(log.store)


def test_no_batch_is_larger_than_a_transaction_may_be(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "MAX_BATCH", 10)
    entries = log.datasets(40)

    async def use(served: Served, stub: Any) -> None:
        answers = [served.sequencer.submit(entries[start : start + 4]) for start in range(0, 40, 4)]
        served.gate.open.set()
        await asyncio.gather(*answers)
        assert served.gate.batches == [1, 2, 2, 2, 2, 1]

    run(log, use)


def test_a_full_queue_says_when_to_come_again_and_who_does_succeeds(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "MAX_QUEUED", 5)
    entries = log.datasets(6)
    tried: list[float] = []

    async def use(served: Served, stub: Any) -> None:
        served.sequencer._measured = 10.0, 1.0  # as if the writer wrote ten events a second: five take half of one
        waiting = [stub.AppendEvents(pb.AppendEventsRequest(envelopes=[entry])) for entry in entries[:5]]
        await served.until(lambda: served.queued == 5)
        late = pb.AppendEventsRequest(envelopes=entries[5:])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.AppendEvents(late)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = error_details_pb2.RetryInfo()
        assert rpc_status.from_call(caught.value).details[1].Unpack(retry)
        assert retry.retry_delay.ToTimedelta().total_seconds() == 0.5
        error = from_rpc_error(caught.value)
        assert isinstance(error, Overloaded)
        assert error.retry_after == 0.5
        assert "0.5 seconds" in error.message

        def ask() -> pb.AppendEventsResponse:
            tried.append(time.monotonic())
            with connect(served.address) as channel:
                return call(ledger_pb2_grpc.LedgerServiceStub(channel).AppendEvents, late)

        patient = asyncio.create_task(asyncio.to_thread(patiently, ask))
        await served.until(lambda: len(tried) == 2)
        served.gate.open.set()
        assert len((await patient).proofs) == 1
        assert tried[1] - tried[0] >= 0.5
        await asyncio.gather(*waiting)

    run(log, use)


def test_the_time_to_wait_follows_what_the_writer_does(log: Log) -> None:
    async def use(served: Served, stub: Any) -> None:
        served.gate.open.set()
        served.sequencer._measured = 1.0, 1_000.0
        served.sequencer._queued_events = 1_000
        assert served.sequencer._overloaded().retry_after == sequencer.RETRY_AFTER[1]
        served.sequencer._queued_events = 0
        for entry in log.datasets(60):
            await stub.AppendEvents(pb.AppendEventsRequest(envelopes=[entry]))
        served.sequencer._queued_events = 10
        assert served.sequencer._overloaded().retry_after < 10
        served.sequencer._queued_events = 0

    run(log, use)


def test_a_message_that_is_too_large_ends_the_stream(log: Log) -> None:
    [entry] = log.datasets(1)

    async def use(served: Served, stub: Any) -> None:
        served.gate.open.set()
        with connect(served.address) as channel:
            call = ledger_pb2_grpc.LedgerServiceStub(channel).AppendStream(iter(asked([[b"x" * (5 << 20)], [entry]])))
            found, ended = await asyncio.to_thread(answers_in_thread, call)
        assert found == []
        assert isinstance(ended, InvalidInput), "so that nobody tries it again"
        assert "larger than max" in ended.message
        await served.until(lambda: served.servicer._streams._running == 0)

    run(log, use)


def test_a_caller_that_reads_no_answers_is_ended(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_streams, "STALL_SECONDS", 0.5)
    entries = log.datasets(MAX_REQUEST)

    async def use(served: Served, stub: Any) -> None:
        served.gate.open.set()
        over, serve = asyncio.Event(), served.servicer._streams.serve

        async def serve_and_tell(requests: Any, call: Any) -> None:
            try:
                await serve(requests, call)
            finally:
                over.set()

        served.servicer._streams.serve = serve_and_tell  # type: ignore[method-assign]
        # The same events again have proofs again; a few hundred kilobytes each, more than gRPC keeps for a caller.
        with connect(served.address) as channel:
            call = ledger_pb2_grpc.LedgerServiceStub(channel).AppendStream(iter(asked([entries] * 30)))
            await over.wait()
            found, ended = await asyncio.to_thread(answers_in_thread, call)
        assert len(found) < 30
        assert isinstance(ended, Overloaded)
        assert "read the answers" in ended.message
        assert sum(served.gate.batches) < 30

    run(log, use)


def test_one_stream_too_many_is_refused_until_another_ends(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_streams, "MAX_STREAMS", 2)
    [entry] = log.datasets(1)

    async def use(served: Served, stub: Any) -> None:
        served.gate.open.set()
        streams = [stub.AppendStream() for _ in range(2)]
        for stream in streams:
            await stream.write(asked([[entry]])[0])
            await stream.read()
        _, ended = await answers(stub.AppendStream(iter(asked([[entry]]))))
        assert isinstance(ended, Overloaded)
        assert "2 streams" in ended.message
        await streams[0].done_writing()
        assert await answers(streams[0]) == ([], None)
        await served.until(lambda: served.servicer._streams._running == 1)
        found, ended = await answers(stub.AppendStream(iter(asked([[entry]]))))
        assert (reasons(found), ended) == ([""], None)

    run(log, use)
