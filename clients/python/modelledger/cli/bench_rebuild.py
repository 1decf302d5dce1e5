"""The load of `modelledger bench rebuild`: the registry view is forgotten and folded again from a log of many runs."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ledger.committer import Committer
from ledger.founding import found
from ledger.registry_view import REGISTRY_VIEW, fold_registry, keys_read
from ledger.signers import actor_signers, log_signer
from ledger.store import Store
from ledger.views import ViewRunner
from modelledger.cli.bench_load import signed_events

BATCH = 500  # events in one commit


def measure_rebuild(events: int, rounds: int) -> dict[str, Any]:
    """Median events a second of a rebuild and, as the floor, of reading the rows alone."""
    with tempfile.TemporaryDirectory(prefix="modelledger-bench-") as name:
        folder = Path(name)
        log, signers = log_signer(folder / "keys", "bench.log"), actor_signers(folder / "keys")
        store = Store(f"sqlite:///{folder / 'log.db'}", log)
        committer = Committer(store)
        found(committer, log, signers, folder / "log.vkey")
        for start in range(0, events, BATCH):
            committer.append(signed_events(signers["trainer"], min(BATCH, events - start)))
        view = ViewRunner(store, REGISTRY_VIEW, fold_registry, keys_read)
        rebuilt, read = [], []
        for _ in range(rounds):
            read.append(store.head.size / _seconds(lambda: store.select(limit=None)))
            rebuilt.append(store.head.size / _seconds(view.rebuild))
        store.close()
    value, floor = statistics.median(rebuilt), statistics.median(read)
    return {
        "name": "rebuild",
        "value": round(value, 1),
        "floor": round(floor, 1),
        "ratio": round(value / floor, 4),
        "unit": "events/s",
        "conditions": {
            "events": events,
            "kinds": "DatasetRegistered, of which each changes three documents of the view",
            "rounds": rounds,
            "floor": "the same rows read from the same SQLite file",
            "value_rounds": [round(rate, 1) for rate in rebuilt],
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        },
    }


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
