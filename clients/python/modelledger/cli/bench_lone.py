"""The load of `modelledger bench lone`: one caller, one event at a time, and one row at a time."""

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

import grpc

from ledger.kit.keys import actor_signer
from modelledger.cli.bench_load import signed_events
from modelledger.cli.child import Child, environment
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc


def measure_lone(events: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds of an append and, as the floor, of a committed row of the same size."""
    with tempfile.TemporaryDirectory(prefix="modelledger-bench-") as name:
        folder = Path(name)
        data = folder / "data"
        command = [sys.executable, "-m", "modelledger.cli.bench_servers", "ledger", str(data)]
        with Child(command, folder / "ledger.log", environment()) as ledger:
            signer = actor_signer(data / "keys" / "trainer.key")
            appended, committed = [], []
            for number in range(rounds + 1):
                entries = signed_events(signer, events)
                floor = _commit(folder / f"floor{number}.db", entries)
                value = _append(ledger.ready["grpc"], entries)
                if number:  # the first round warms both up
                    appended.append(1_000 * statistics.median(value))
                    committed.append(1_000 * statistics.median(floor))
    value_ms, floor_ms = statistics.median(appended), statistics.median(committed)
    return {
        "name": "lone",
        "value": round(value_ms, 3),
        "floor": round(floor_ms, 3),
        "ratio": round(value_ms / floor_ms, 3),
        "unit": "ms",
        "conditions": {
            "events_per_round": events,
            "rounds": rounds,
            "entry_bytes": len(entries[-1]),
            "fsync": "every commit (SQLite, WAL, synchronous=FULL)",
            "floor": "one row of the same bytes inserted and committed by sqlite3",
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        },
    }


def _append(address: str, entries: list[bytes]) -> list[float]:
    """Seconds of each append."""
    with grpc.insecure_channel(address) as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        seconds = []
        for entry in entries:
            request = ledger_pb2.AppendEventsRequest(envelopes=[entry])
            started = time.perf_counter()
            stub.AppendEvents(request)
            seconds.append(time.perf_counter() - started)
    return seconds


def _commit(file: Path, entries: list[bytes]) -> list[float]:
    """Seconds of each row's transaction."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE entries (position INTEGER PRIMARY KEY, entry BLOB NOT NULL)")
    seconds = []
    for entry in entries:
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO entries (entry) VALUES (?)", (entry,))
        connection.execute("COMMIT")
        seconds.append(time.perf_counter() - started)
    connection.close()
    return seconds
