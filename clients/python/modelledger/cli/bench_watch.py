"""The load of `modelledger bench watch`: a watcher catches up with a real ledger; a bare stream sends the same bytes.

Three processes: this one (the watcher), the ledger, the bare stream. Rounds alternate, so that both meet the same
machine. The events are signed and appended beforehand, and the registry has taken them in.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ledger.errors import DamagedLog
from ledger.kit.client import call, connect
from ledger.kit.keys import actor_signer
from modelledger.cli.bench_load import signed_events
from modelledger.cli.bench_servers import STREAM, write_messages
from modelledger.cli.child import Child, environment
from modelledger.client import Client
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

WATCH = "/modelledger.ledger.v1.LedgerService/WatchEvents"
BATCH = 500  # events in one append


def measure_watch(events: int, rounds: int) -> dict[str, Any]:
    """Median events a second that a watcher receives and, as the floor, over a bare stream of the same bytes."""
    with tempfile.TemporaryDirectory(prefix="modelledger-bench-") as name:
        folder = Path(name)
        data, messages = folder / "data", folder / "messages"
        servers = [sys.executable, "-m", "modelledger.cli.bench_servers"]
        with Child([*servers, "ledger", str(data)], folder / "ledger.log", environment()) as ledger:
            address = ledger.ready["grpc"]
            _fill(address, data, events)
            _, pages = _receive(address, WATCH)  # warms the ledger up, too
            size = _events(pages)
            write_messages(messages, pages)
            with Child([*servers, "stream", str(messages)], folder / "stream.log", environment()) as bare:
                watched, streamed = [], []
                for _ in range(rounds):
                    seconds, same = _receive(bare.ready["grpc"], STREAM)
                    streamed.append(size / seconds)
                    seconds, again = _receive(address, WATCH)
                    watched.append(size / seconds)
                    if not same == again == pages:
                        raise DamagedLog("two streams of the same events differ")
    value, floor = statistics.median(watched), statistics.median(streamed)
    return {
        "name": "watch",
        "value": round(value, 1),
        "floor": round(floor, 1),
        "ratio": round(value / floor, 4),
        "unit": "events/s",
        "conditions": {
            "events": size,
            "rounds": rounds,
            "messages": len(pages),
            "event_bytes": sum(map(len, pages)) // size,
            "floor": "bare gRPC stream of the same messages on asyncio's own loop, same client",
            "value_rounds": [round(rate, 1) for rate in watched],
            "floor_rounds": [round(rate, 1) for rate in streamed],
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        },
    }


def _fill(address: str, data: Path, events: int) -> None:
    entries = signed_events(actor_signer(data / "keys" / "trainer.key"), events)
    with Client(address) as client:
        append = ledger_pb2_grpc.LedgerServiceStub(client.channels["ledger"]).AppendEvents
        for start in range(0, events, BATCH):
            call(append, ledger_pb2.AppendEventsRequest(envelopes=entries[start : start + BATCH]))
        list(client.models())  # answered when the registry has taken in every event


def _receive(address: str, method: str) -> tuple[float, list[bytes]]:
    """Seconds until the watcher has caught up, reading every message; and the messages."""
    channel = connect(address)
    pages: list[bytes] = []
    started = time.perf_counter()
    send: Any = channel.unary_stream(method)
    running = send(b"")  # bytes in, bytes out: an empty WatchEventsRequest is no bytes
    for page in running:
        pages.append(page)
        if ledger_pb2.WatchEventsResponse.FromString(page).caught_up:
            break
    seconds = time.perf_counter() - started
    running.cancel()
    channel.close()
    return seconds, pages


def _events(pages: list[bytes]) -> int:
    return sum(len(ledger_pb2.WatchEventsResponse.FromString(page).events) for page in pages)
