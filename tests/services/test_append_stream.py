"""Appending over one long call. What is too much for the ledger, and how that is told: test_append_limits.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from modelledger.cli.bench_load import WARM_UP, measure_append
from modelledger.ledger.v1 import ledger_pb2 as pb
from modelledger.ledger.v1 import ledger_pb2_grpc

from ledger import merkle
from ledger.checkpoint import open_checkpoint
from ledger.errors import InvalidInput, WrongStreamVersion
from ledger.kit.client import connect, from_status
from ledger.sequencer import MAX_REQUEST
from tests.gated import Served, answers, answers_in_thread, asked, reasons, run
from tests.logs import Log
from tests.served import grpc_client

METHOD = "/modelledger.ledger.v1.LedgerService/AppendStream"


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
