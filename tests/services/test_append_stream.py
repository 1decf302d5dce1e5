"""Appending over one long call, and what a caller is told when the ledger has too much to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from modelledger.cli.bench_load import WARM_UP, measure_append
from modelledger.ledger.v1 import ledger_pb2 as pb
from modelledger.ledger.v1 import ledger_pb2_grpc

from ledger import append_streams, merkle, sequencer
from ledger.checkpoint import open_checkpoint
from ledger.committer import Appended, Request
from ledger.errors import InvalidInput, ModelLedgerError, Overloaded, WrongStreamVersion
from ledger.kit.client import call, connect, from_rpc_error, from_status, patiently
from ledger.kit.serve import Address, GrpcServer, Servicer
from ledger.sequencer import MAX_REQUEST, Sequencer
from ledger.service import LedgerServicer
from tests.audit import verify_whole_log
from tests.databases import StoreFactory, sqlite_stores  # noqa: F401 - a fixture
from tests.logs import InProcess, Log
from tests.served import grpc_client

METHOD = "/modelledger.ledger.v1.LedgerService/AppendStream"


class Gate(InProcess):
    """A writer that begins nothing before `open` is set, and says what it is given."""

    def __init__(self, log: Log) -> None:
        super().__init__(log.committer)
        self.open = asyncio.Event()
        self.batches: list[int] = []  # requests in each
        self.broken: Exception | None = None  # raised, once, instead of committing

    async def commit(self, requests: Sequence[Request]) -> list[Appended | Exception]:
        await self.open.wait()
        self.batches.append(len(requests))
        if self.broken is not None:
            broken, self.broken = self.broken, None
            raise broken
        return await super().commit(requests)


class Served:
    """A log behind gRPC. `most`: the most events that were queued at once."""

    def __init__(self, log: Log) -> None:
        self.gate = Gate(log)
        self.sequencer = Sequencer(self.gate)
        self.servicer = LedgerServicer(log.store, self.sequencer)
        self.most = 0
        submit = self.sequencer.submit

        def counting(envelopes: Sequence[bytes]) -> asyncio.Future[Appended]:
            answer = submit(envelopes)
            self.most = max(self.most, self.queued)
            return answer

        self.sequencer.submit = counting  # type: ignore[method-assign]

    @property
    def queued(self) -> int:
        return self.sequencer._queued_events

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            await asyncio.sleep(0.005)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[grpc.aio.Channel]:
        def add(server: grpc.aio.Server) -> None:
            ledger_pb2_grpc.add_LedgerServiceServicer_to_server(self.servicer, server)

        server = GrpcServer([Servicer("modelledger.ledger.v1.LedgerService", add)], Address())
        await server.start()
        self.address = f"127.0.0.1:{server.port}"
        try:
            async with grpc.aio.insecure_channel(self.address) as channel:
                yield channel
        finally:
            self.gate.open.set()
            await server.stop()
            await self.sequencer.close()


@pytest.fixture
def log(sqlite_stores: StoreFactory) -> Iterator[Log]:  # noqa: F811
    log = Log(sqlite_stores())
    yield log
    verify_whole_log(log.store)


def run(log: Log, use: Callable[[Served, Any], Awaitable[None]]) -> None:
    """`use` is given the server, and a stub for it."""

    async def whole() -> None:
        served = Served(log)
        async with served.serving() as channel:
            await asyncio.wait_for(use(served, ledger_pb2_grpc.LedgerServiceStub(channel)), 60)

    asyncio.run(whole())


def asked(requests: Sequence[Sequence[bytes]], first: int = 0) -> list[pb.AppendStreamRequest]:
    return [pb.AppendStreamRequest(number=number, envelopes=entries) for number, entries in enumerate(requests, first)]


async def answers(call: Any) -> tuple[list[pb.AppendStreamResponse], ModelLedgerError | None]:
    """All that are still to come, and the error that ended the stream."""
    found: list[pb.AppendStreamResponse] = []
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            found.append(answer)
    except grpc.aio.AioRpcError as error:
        return found, from_rpc_error(error)
    return found, None


def answers_in_thread(call: Any) -> tuple[list[pb.AppendStreamResponse], ModelLedgerError | None]:
    """The same of a call that a thread makes: one of grpc.aio may lose the status when it is sending as it ends."""
    found: list[pb.AppendStreamResponse] = []
    try:
        for answer in call:
            found.append(answer)
    except grpc.RpcError as error:
        return found, from_rpc_error(error)
    return found, None


def reasons(found: Sequence[pb.AppendStreamResponse]) -> list[str]:
    """Why each was refused; "" for what was appended."""
    return [from_status(a.refused).reason if a.WhichOneof("result") == "refused" else "" for a in found]


def check_proofs(log: Log, entries: Sequence[bytes], found: Sequence[pb.AppendStreamResponse]) -> None:
    for entry, answer in zip(entries, found, strict=True):
        [proof] = answer.appended.proofs
        checkpoint = open_checkpoint(answer.appended.checkpoint, [log.store.signer.verifier], log.store.signer.name)
        assert checkpoint.size == proof.tree_size
        leaf = merkle.leaf_hash(entry)
        merkle.verify_inclusion(leaf, proof.index, checkpoint.size, proof.hashes, checkpoint.root)


def test_what_is_under_way_together_shares_transactions_with_everybody(log: Log) -> None:
    entries = log.datasets(40)

    async def use(served: Served, stub: Any) -> None:
        streams = [stub.AppendStream(iter(asked([[e] for e in part], 5))) for part in (entries[:20], entries[20:39])]
        lone = stub.AppendEvents(pb.AppendEventsRequest(envelopes=entries[39:]))
        await served.until(lambda: served.queued == 40)
        served.gate.open.set()
        (first, ended), (second, also) = await asyncio.gather(*map(answers, streams))
        assert (ended, also) == (None, None)
        assert [answer.number for answer in first] == list(range(5, 25))
        assert [answer.number for answer in second] == list(range(5, 24))
        check_proofs(log, entries[:39], first + second)
        assert len((await lone).proofs) == 1
        assert sum(served.gate.batches) == 40
        assert len(served.gate.batches) <= 3

    run(log, use)


def test_a_request_builds_on_an_earlier_one_that_is_not_answered_yet(log: Log) -> None:
    entries = [log.base(), log.dataset(), *log.training()]

    async def use(served: Served, stub: Any) -> None:
        stream = stub.AppendStream(iter(asked([[entry] for entry in entries])))
        await served.until(lambda: served.queued == len(entries))
        served.gate.open.set()
        found, ended = await answers(stream)
        assert (reasons(found), ended) == ([""] * len(entries), None)
        check_proofs(log, entries, found)

    run(log, use)


def test_a_bad_request_fails_alone(log: Log) -> None:
    good = log.datasets(4)
    bad: list[tuple[list[bytes], str]] = [
        ([b"no envelope"], "MALFORMED_EVENT"),
        ([], "INVALID_INPUT"),
        ([good[0]] * (MAX_REQUEST + 1), "INVALID_INPUT"),
        ([b""] * (MAX_REQUEST + 1), "INVALID_INPUT"),
        ([log.dataset("left-out"), log.sign("trainer", "DatasetRegistered", "datasets/x", [], {})], "MALFORMED_EVENT"),
    ]
    requests = [[good[0]], *(entries for entries, _ in bad[:3]), [good[1]], *(entries for entries, _ in bad[3:]), good]

    async def use(served: Served, stub: Any) -> None:
        served.gate.open.set()
        found, ended = await answers(stub.AppendStream(iter(asked(requests))))
        assert ended is None
        assert [answer.number for answer in found] == list(range(len(requests)))
        expected = [reason for _, reason in bad]
        assert reasons(found) == ["", *expected[:3], "", *expected[3:], ""]
        # The same events again have the same positions.
        assert [proof.index for proof in found[-1].appended.proofs][:2] == [
            found[0].appended.proofs[0].index,
            found[4].appended.proofs[0].index,
        ]
        assert log.store.head.size == 7 + len(good)

    run(log, use)


def test_a_fault_of_ours_is_told_without_its_text_and_the_stream_goes_on(log: Log) -> None:
    entries = log.datasets(2)

    async def use(served: Served, stub: Any) -> None:
        served.gate.open.set()
        served.gate.broken = ValueError("secret /etc/passwd")
        stream = stub.AppendStream()
        await stream.write(asked([[entries[0]]])[0])
        error = from_status((await stream.read()).refused)
        assert error.reason == "INTERNAL"
        assert "error id" in error.message
        assert "secret" not in error.message
        await stream.write(asked([[entries[0]]])[0])
        await stream.write(asked([[entries[1]]])[0])
        await stream.done_writing()
        found, ended = await answers(stream)
        assert (reasons(found), ended) == (["", ""], None)

    run(log, use)


@pytest.mark.parametrize("leave", ["cancelled", "connection lost"])
def test_what_a_caller_sent_before_it_went_away_is_written(log: Log, leave: str) -> None:
    entries = log.datasets(30)

    async def use(served: Served, stub: Any) -> None:
        async with grpc.aio.insecure_channel(served.address) as channel:
            stream = ledger_pb2_grpc.LedgerServiceStub(channel).AppendStream()
            for request in asked([[entry] for entry in entries]):
                await stream.write(request)
            await served.until(lambda: served.queued == 30)
            if leave == "cancelled":
                stream.cancel()
            else:
                await channel.close()
        await served.until(lambda: served.servicer._streams._running == 0)
        served.gate.open.set()
        await served.until(lambda: log.store.head.size == 37)
        # Sent again, they have the answers that they would have had.
        found, _ = await answers(stub.AppendStream(iter(asked([[entry] for entry in entries]))))
        assert [answer.appended.proofs[0].index for answer in found] == list(range(7, 37))
        assert log.store.head.size == 37

    run(log, use)


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


def test_bytes_that_are_no_request_end_the_stream_after_the_answers_before(log: Log) -> None:
    before, after = (asked([[entry]])[0].SerializeToString() for entry in log.datasets(2))

    async def use(served: Served, stub: Any) -> None:
        with connect(served.address) as channel:
            send: Any = channel.stream_stream(METHOD, response_deserializer=pb.AppendStreamResponse.FromString)
            call = send(iter([before, b"\x12\xff", after]))
            await served.until(lambda: served.queued == 1)
            served.gate.open.set()
            found, ended = await asyncio.to_thread(answers_in_thread, call)
        assert reasons(found) == [""]
        assert isinstance(ended, InvalidInput)
        assert "not a message" in ended.message
        assert log.store.head.size == 8

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


# The client's side


def test_a_client_gets_one_result_for_each_request_in_order(log: Log) -> None:
    entries = log.datasets(50)
    log._versions.clear()
    requests = [[entry] for entry in entries]
    requests[20] = [log.dataset("d3")]  # a second event that says it is the first of its stream
    with grpc_client(log) as client:
        results = list(client.append_stream(iter(requests)))
    assert len(results) == 50
    assert isinstance(results.pop(20), WrongStreamVersion)
    assert [result.proofs[0].index for result in results] == list(range(7, 56))


def test_what_the_requests_raise_comes_after_the_answers(log: Log) -> None:
    def requests() -> Iterator[list[bytes]]:
        yield from ([entry] for entry in log.datasets(3))
        raise KeyError("the caller's own")

    results = []
    with grpc_client(log) as client, pytest.raises(KeyError, match="the caller's own"):
        results += client.append_stream(requests())
    assert log.store.head.size == 10


def test_a_client_may_leave_before_the_last_answer(log: Log) -> None:
    def endless() -> Iterator[list[bytes]]:
        number = 0
        while True:
            yield [log.dataset(f"e{number}")]
            number += 1

    with grpc_client(log) as client:
        for number, result in enumerate(client.append_stream(endless())):
            assert result.proofs[0].index == 7 + number
            if number == 20:
                break
        assert client.checkpoint().checkpoint


def test_the_benchmark_of_streams_verifies_every_proof() -> None:
    measured = measure_append(200, 8, 1, 10, streams=3)
    assert measured["conditions"]["proofs_verified"] == 200 + WARM_UP
    assert measured["conditions"]["streams"] == 3
    assert measured["value"] > 0
    assert measured["floor"] > 0
