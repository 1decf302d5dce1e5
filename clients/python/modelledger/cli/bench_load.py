"""The load of `modelledger bench append`: pre-signed events against a real ledger, and bytes against an echo.

Three processes: this one (the callers), the ledger, the echo. Rounds alternate, so that both meet the same machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio

from ledger import envelope, merkle, statement
from ledger.checkpoint import open_checkpoint
from ledger.envelope import Signer
from ledger.errors import DamagedLog
from ledger.kit.client import from_status
from ledger.kit.keys import actor_signer
from ledger.note import Verifier
from ledger.statement import Artifact, Event
from modelledger.cli.bench_servers import ECHO
from modelledger.cli.child import Child, environment
from modelledger.client import Client
from modelledger.ledger.v1 import ledger_pb2

APPEND = "/modelledger.ledger.v1.LedgerService/AppendEvents"
STREAM = "/modelledger.ledger.v1.LedgerService/AppendStream"
WARM_UP = 200  # events
VERIFIED = 2_000  # signatures for one measurement of the floor


def measure_append(events: int, callers: int, rounds: int, batch: int, streams: int = 0) -> dict[str, Any]:
    """Median events a second of the ledger. The floor: messages a second of the echo when a call has one event, else
    the P-256 signatures that one core verifies in a second."""
    load = partial(_load_streams, streams=streams) if streams else partial(_load, method=APPEND)
    floor_is_echo = batch == 1 and not streams
    with tempfile.TemporaryDirectory(prefix="modelledger-bench-") as name:
        folder = Path(name)
        data = folder / "data"
        servers = [sys.executable, "-m", "modelledger.cli.bench_servers"]
        with (
            Child([*servers, "ledger", str(data)], folder / "ledger.log", environment()) as ledger,
            Child([*servers, "echo"], folder / "echo.log", environment()) as echo,
        ):
            signer = actor_signer(data / "keys" / "trainer.key")
            warm_up = max(WARM_UP, 4 * batch)
            loads = [_requests(signer, count, batch) for count in (warm_up, *[events] * rounds)]
            appended, floors, verified = [], [], 0
            for number, requests in enumerate(loads):
                if floor_is_echo:
                    floor_seconds, _ = asyncio.run(_load(echo.ready["grpc"], requests, callers, ECHO))
                    floor = events / floor_seconds
                else:
                    floor = verify_rate(signer)
                seconds, responses = asyncio.run(load(ledger.ready["grpc"], requests, callers))
                verified += _check(ledger.ready["grpc"], requests, responses)
                if number:  # the first load warms both up
                    appended.append(events / seconds)
                    floors.append(floor)
            size = len(loads[-1][-1])
    value, floor = statistics.median(appended), statistics.median(floors)
    return {
        "name": "append",
        "value": round(value, 1),
        "floor": round(floor, 1),
        "ratio": round(value / floor, 4),
        "unit": "events/s",
        "conditions": {
            "callers": callers,
            "streams": streams,  # 0: a call for each request
            "events_per_request": batch,
            "events_per_round": events,
            "rounds": rounds,
            "request_bytes": size,
            "fsync": "every commit (SQLite, WAL, synchronous=FULL)",
            "signatures": "ECDSA P-256, signed beforehand, verified by the ledger",
            "proofs_verified": verified,  # one for each event, the warm-up's too, after the timing
            "floor": "gRPC echo of the same bytes on asyncio's own loop, same client"
            if floor_is_echo
            else "P-256 verified by one core",
            "value_rounds": [round(rate, 1) for rate in appended],
            "floor_rounds": [round(rate, 1) for rate in floors],
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        },
    }


def verify_rate(signer: Signer) -> float:
    """P-256 signatures that one core verifies in a second of its own time, whatever else runs."""
    [entry] = signed_events(signer, 1)
    parsed, key = envelope.parse(entry), envelope.load_public_key(signer.public_key_der)
    started = time.process_time()
    for _ in range(VERIFIED):
        envelope.verify(parsed, signer.keyid, key)
    return VERIFIED / (time.process_time() - started)


def _requests(signer: Signer, count: int, batch: int) -> list[bytes]:
    """AppendEvents requests of `batch` events each, serialized."""
    entries = signed_events(signer, count)
    return [
        ledger_pb2.AppendEventsRequest(envelopes=entries[i : i + batch]).SerializeToString()
        for i in range(0, count, batch)
    ]


def signed_events(signer: Signer, count: int) -> list[bytes]:
    """Entries of the trainer's; every event begins a stream of its own."""
    run = uuid.uuid4().hex[:12]
    entries = []
    for number in range(count):
        name = f"{run}-{number}"
        artifact = Artifact(f"datasets/bench/{name}", hashlib.sha256(name.encode()).hexdigest())
        event = Event(
            kind="DatasetRegistered",
            stream=f"datasets/bench/{name}",
            version=1,
            actor="trainer",
            subjects=(artifact,),
            data={"org": "bench", "name": name, "form": "messages", "examples": 100, "band": "minimum"},
        )
        entries.append(envelope.sign(statement.encode(event), [signer]))
    return entries


async def _load(address: str, requests: Sequence[bytes], callers: int, method: str) -> tuple[float, list[bytes]]:
    """Seconds until `callers` at once have sent all requests, and the responses in their order."""
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        send: Any = channel.unary_unary(method)  # bytes in, bytes out
        responses = [b""] * len(requests)
        waiting = iter(range(len(requests)))

        async def caller() -> None:
            for number in waiting:
                responses[number] = await send(requests[number])

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return time.perf_counter() - started, responses


async def _load_streams(
    address: str, requests: Sequence[bytes], callers: int, streams: int
) -> tuple[float, list[bytes]]:
    """The same over AppendStream: `callers` requests are under way at once, on all streams together."""
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        numbers = [list(range(stream, len(requests), streams)) for stream in range(streams)]
        messages = [_numbered(number, request) for number, request in enumerate(requests)]
        answers = [b""] * len(requests)

        async def stream(numbers: Sequence[int], under_way: int) -> None:
            room = asyncio.Semaphore(under_way)

            async def send() -> AsyncIterator[bytes]:
                for number in numbers:
                    await room.acquire()
                    yield messages[number]

            call: Any = channel.stream_stream(STREAM)  # bytes in, bytes out
            expected = iter(numbers)
            async for answer in call(send()):
                answers[next(expected)] = answer
                room.release()

        started = time.perf_counter()
        await asyncio.gather(*(stream(part, max(1, callers // streams)) for part in numbers))
        seconds = time.perf_counter() - started
    return seconds, [_appended(number, answer) for number, answer in enumerate(answers)]


def _numbered(number: int, request: bytes) -> bytes:
    """A request of AppendEvents as one of AppendStream."""
    envelopes = ledger_pb2.AppendEventsRequest.FromString(request).envelopes
    return ledger_pb2.AppendStreamRequest(number=number, envelopes=envelopes).SerializeToString()


def _appended(number: int, answer: bytes) -> bytes:
    """A response of AppendStream as one of AppendEvents. Raises what it was refused with."""
    response = ledger_pb2.AppendStreamResponse.FromString(answer)
    if response.HasField("refused"):
        raise from_status(response.refused)
    if response.number != number:
        raise DamagedLog(f"the answer to request {number} says that it is to request {response.number}")
    return response.appended.SerializeToString()


def _check(address: str, requests: Sequence[bytes], responses: Sequence[bytes]) -> int:
    """Every event is in the tree of a checkpoint that the log signed: their number. Raises DamagedLog."""
    with Client(address) as client:
        verifier = Verifier.parse(client.checkpoint().vkey)
    checked = 0
    for request, response in zip(requests, responses, strict=True):
        entries = ledger_pb2.AppendEventsRequest.FromString(request).envelopes
        answer = ledger_pb2.AppendEventsResponse.FromString(response)
        checkpoint = open_checkpoint(answer.checkpoint, [verifier], verifier.name)
        for entry, proof in zip(entries, answer.proofs, strict=True):
            leaf = merkle.leaf_hash(entry)
            try:
                merkle.verify_inclusion(leaf, proof.index, checkpoint.size, proof.hashes, checkpoint.root)
            except ValueError as error:
                raise DamagedLog(f"event {proof.index}: its proof does not hold: {error}") from None
            checked += 1
    return checked
