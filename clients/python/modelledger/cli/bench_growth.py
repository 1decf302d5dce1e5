"""The measurements of `modelledger bench growth`: what a log of a thousand and one of ten million events cost.

One database grows from size to size (bench_fill.py); at each of them the same calls are timed, in this process as the
ledger's processes make them, and once over gRPC. Every proof is checked against the signed checkpoint.
"""

from __future__ import annotations

import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc

from ledger import envelope, statement
from ledger.checkpoint import open_checkpoint
from ledger.committer import Committer
from ledger.database import reader_engine, writer_engine
from ledger.edge import LogTiles
from ledger.envelope import Signer
from ledger.errors import DamagedLog
from ledger.event_pages import list_page
from ledger.founding import found
from ledger.merkle import TILE_WIDTH, group_layers, inclusion_proof, leaf_hash, tile_nodes, verify_inclusion
from ledger.note import LogSigner
from ledger.registry_view import REGISTRY_VIEW
from ledger.signers import actor_signers, log_signer
from ledger.statement import Artifact, Event
from ledger.store import FullTiles, Store, StoredRow
from ledger.tiles import encode_bundle
from modelledger.cli.bench_fill import LONG_STREAM, database_bytes, fill, id_of, run_stream, settle
from modelledger.cli.bench_load import signed_events
from modelledger.cli.child import Child, environment
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

BATCH = 100  # events
BATCHES = 10
STARTS = 5
WARM_UP = 20  # calls that do not count, before those that do
COMPARED = 10_000  # events: the size that the others are compared with
# What must not grow; everything else is told beside it. Processor time where a disk would be measured otherwise.
HEADLINE = ("append_cpu", "append_long_stream_cpu", "append_batch_event_cpu", "grpc_proof")

Costs = dict[str, float]


def measure_growth(sizes: Sequence[int], calls: int, database: str) -> dict[str, Any]:
    """Milliseconds of each call at each size. `database`: URL of an empty one; empty for a SQLite file."""
    costs: dict[int, Costs] = {}
    with tempfile.TemporaryDirectory(prefix="modelledger-bench-") as name:
        log = _Log(Path(name), database)
        for size in sorted(sizes):
            filled = log.grow(size)
            costs[size] = {**log.measure(calls), "bytes_per_event": round(database_bytes(log.url) / size)}
            costs[size]["fill_seconds"] = filled
    base = costs[COMPARED if COMPARED in costs else min(costs)]
    last = costs[max(costs)]
    growth = {name: round(last[name] / base[name], 3) for name in last if base[name] and name != "fill_seconds"}
    value = max(growth[name] for name in HEADLINE)
    return {
        "name": "growth",
        "value": value,
        "floor": 1.0,
        "ratio": value,
        "unit": f"times the cost at {COMPARED if COMPARED in costs else min(costs)} events",
        "conditions": {
            "of": " ".join(HEADLINE),
            "sizes": sorted(costs),
            "calls": calls,
            "fsync": "every commit",
            "floor": "nothing grows",
            "database": "PostgreSQL" if database else f"SQLite {sqlite3.sqlite_version}",
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
        },
        "growth": growth,
        "milliseconds": {str(size): cost for size, cost in costs.items()},
    }


@dataclass
class _Log:
    """A log in a folder of its own, with the keys that may write to it."""

    folder: Path
    database: str
    signer: LogSigner = field(init=False)
    signers: dict[str, Signer] = field(init=False)
    filled: list[range] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.url = self.database or f"sqlite:///{self.folder / 'log.db'}"
        self.signer, self.signers = log_signer(self.folder / "keys", ""), actor_signers(self.folder / "keys")
        self.random = random.Random(1)  # noqa: S311 - nothing is secret
        store = Store(self.url, self.signer)
        committer = Committer(store)
        found(committer, self.signer, self.signers, self.folder / "keys" / "log.vkey")
        self.model = Artifact(LONG_STREAM, sha256(LONG_STREAM.encode()).hexdigest())
        if not store.select(stream=LONG_STREAM, limit=1):
            committer.append([self._served("DeploymentChanged", 1, {})])
        store.close()

    def grow(self, size: int) -> float:
        """Seconds that it took."""
        started = time.perf_counter()
        store = Store(self.url, self.signer)
        long_version = _next_version(store)
        store.close()
        if store.head.size < size:
            self.filled.append(range(store.head.size, size))
            fill(self.url, self.signer, store.head, size, long_version)
            settle(self.url)
        return round(time.perf_counter() - started, 1)

    def measure(self, calls: int) -> Costs:
        costs = {"start": _median(_times(lambda _: Store(self.url, self.signer).close(), range(STARTS), warm_up=1))}
        store = Store(self.url, self.signer)
        # Reads first: what is appended next is written through the same caches.
        costs |= self._floors(calls) | self._reads(store, calls) | self._proofs(store, calls)
        costs |= self._appends(store, calls)
        with store.views.open(REGISTRY_VIEW, write=True) as rows:  # it could not read what fills the log
            rows.advance(store.head.size, store.get(store.head.size - 1).id)
        store.close()
        return costs | self._served_proofs(calls)

    def _floors(self, calls: int) -> Costs:
        """What the database itself takes: a row read by its position, and a row committed."""
        connection = reader_engine(self.url).raw_connection()
        cursor, parameter = connection.cursor(), "?" if self.url.startswith("sqlite") else "%s"
        query = f"SELECT entry FROM events WHERE position = {parameter}"  # noqa: S608 - nothing of a caller's
        row = _times(lambda position: cursor.execute(query, (position,)).fetchall(), self._some(calls))
        connection.close()
        entries = signed_events(self.signers["trainer"], min(calls, 300))
        beside = f"sqlite:///{self.folder / 'floor.db'}" if self.url.startswith("sqlite") else self.url
        return {"floor_row": _median(row), "floor_commit": _median(_committed(beside, entries))}

    def _reads(self, store: Store, calls: int) -> Costs:
        size, long_version = store.head.size, _next_version(store)
        reads: dict[str, Callable[[int], Any]] = {
            "event_by_index": store.get,
            "event_by_id": lambda position: store.get_by_id(id_of(position)),
            "bundle": lambda position: encode_bundle(_bundle(store, position)),
            "stream": lambda position: store.select(stream=run_stream(position), limit=101),
            "newest_of_stream": lambda _: store.select(stream=LONG_STREAM, descending=True, limit=1),
            "long_stream": lambda position: store.select(
                stream=LONG_STREAM, after_version=position * long_version // size, limit=101
            ),
            "stream_rare_kind": lambda _: _list(
                store, stream=LONG_STREAM, kinds=["DeploymentChanged"], descending=True
            ),
            "kind": lambda position: store.select(kinds=["DatasetRegistered"], start=position, limit=101),
            "two_kinds": lambda position: store.select(
                kinds=["DatasetRegistered", "UsageRecorded"], start=position, limit=101
            ),
            "prefix": lambda position: _list(store, stream_prefix="training-runs/", start_index=position),
            "prefix_newest": lambda _: _list(store, stream_prefix="training-runs/", descending=True),
            "rare_prefix": lambda _: _list(store, stream_prefix="actors/"),
            "rare_kind": lambda _: store.select(kinds=["ActorEnrolled"], limit=101),
            "refresh": lambda _: store.refresh(),
        }
        return {name: _median(_times(read, self._some(calls))) for name, read in reads.items()}

    def _proofs(self, store: Store, calls: int) -> Costs:
        head = store.head
        checkpoint = open_checkpoint(head.checkpoint, [self.signer.verifier], self.signer.name)
        proofs: list[tuple[int, list[bytes]]] = []
        seconds = _times(
            lambda position: proofs.append((position, inclusion_proof(store.tiles(head), position, head.size))),
            self._some(calls),
        )
        for position, proof in proofs:
            leaf = leaf_hash(store.get(position).entry)
            _check(leaf, position, checkpoint.size, proof, checkpoint.root)
        engine = reader_engine(self.url)

        def prove_cold(position: int) -> None:
            """When no tile, and nothing computed from one, is in this process's memory."""
            tile_nodes.cache_clear()
            group_layers.cache_clear()
            with closing(FullTiles(engine)) as full:
                inclusion_proof(LogTiles(full, head.edge), position, head.size)

        cold = _times(prove_cold, self._some(calls))
        engine.dispose()
        return {"proof": _median(seconds), "proof_p99": _p99(seconds), "proof_cold": _median(cold)}

    def _appends(self, store: Store, calls: int) -> Costs:
        committer, trainer = Committer(store), self.signers["trainer"]
        version = _next_version(store)
        fresh = [[entry] for entry in signed_events(trainer, WARM_UP + calls)]
        long = [[self._usage(version + number)] for number in range(WARM_UP + calls)]
        entries = signed_events(trainer, BATCH * (1 + BATCHES))
        large = [entries[start : start + BATCH] for start in range(0, len(entries), BATCH)]
        costs: Costs = {}
        for name, requests in (("append", fresh), ("append_long_stream", long), ("append_batch_event", large)):
            cpu: list[float] = []
            wall = _times(committer.append, requests, cpu, warm_up=1 if requests is large else WARM_UP)
            events = len(requests[0])
            costs |= {name: _median(wall) / events, f"{name}_cpu": _median(cpu) / events}
        return costs

    def _served_proofs(self, calls: int) -> Costs:
        """Of a real ledger, in a process of its own."""
        command = [sys.executable, "-m", "modelledger.cli.bench_servers", "ledger", str(self.folder), self.database]
        started = time.perf_counter()
        with Child(command, self.folder / "ledger.log", environment()) as ledger:
            ready = 1_000 * (time.perf_counter() - started)
            with grpc.insecure_channel(ledger.ready["grpc"]) as channel:
                ask = ledger_pb2_grpc.LedgerServiceStub(channel).GetInclusionProof
                indexes = self._some(calls)
                seconds = _times(lambda index: ask(ledger_pb2.GetInclusionProofRequest(index=index)), indexes)
        return {"ledger_start": ready, "grpc_proof": _median(seconds), "grpc_proof_p99": _p99(seconds)}

    def _some(self, calls: int) -> list[int]:
        """Positions of events that fill the log."""
        choices = self.random.choices(self.filled, [len(part) for part in self.filled], k=WARM_UP + calls)
        return [self.random.choice(part) for part in choices]

    def _usage(self, version: int) -> bytes:
        root = sha256(str(version).encode()).hexdigest()
        return self._served("UsageRecorded", version, {"answers": 9, "receiptsRoot": root})

    def _served(self, kind: str, version: int, data: dict[str, Any]) -> bytes:
        name = LONG_STREAM.removeprefix("deployments/")
        event = Event(kind, LONG_STREAM, version, "inference", (self.model,), {"name": name, **data})
        return envelope.sign(statement.encode(event), [self.signers["inference"]])


def _times(
    call: Callable[[Any], Any], arguments: Iterable[Any], cpu: list[float] | None = None, *, warm_up: int = WARM_UP
) -> list[float]:
    """Milliseconds of each call after the first ones, and in `cpu` those that this process worked."""
    wall = []
    for number, argument in enumerate(arguments):
        worked, started = time.process_time(), time.perf_counter()
        call(argument)
        seconds, working = time.perf_counter() - started, time.process_time() - worked
        if number >= warm_up:
            wall.append(1_000 * seconds)
            if cpu is not None:
                cpu.append(1_000 * working)
    return wall


def _committed(url: str, entries: Sequence[bytes]) -> list[float]:
    """Milliseconds of a transaction that inserts one row."""
    engine = writer_engine(url)
    connection = engine.raw_connection()
    cursor, parameter = connection.cursor(), "?" if url.startswith("sqlite") else "%s"
    cursor.execute("CREATE TABLE IF NOT EXISTS bench_floor (entry BYTEA)")
    connection.commit()
    insert = f"INSERT INTO bench_floor VALUES ({parameter})"  # noqa: S608 - nothing of a caller's

    def commit(entry: bytes) -> None:
        cursor.execute(insert, (entry,))
        connection.commit()

    milliseconds = _times(commit, entries)
    connection.close()
    engine.dispose()
    return milliseconds


def _next_version(store: Store) -> int:
    """Of the long stream."""
    newest = store.select(stream=LONG_STREAM, descending=True, limit=1)
    return newest[0].version + 1


def _list(store: Store, **asked: Any) -> Sequence[StoredRow]:
    page, _ = list_page(store, ledger_pb2.ListEventsRequest(**asked), 100)
    return page


def _bundle(store: Store, position: int) -> list[bytes]:
    start = position - position % TILE_WIDTH
    return store.entries(start, start + TILE_WIDTH)


def _median(milliseconds: Sequence[float]) -> float:
    return round(statistics.median(milliseconds), 4)


def _p99(milliseconds: Sequence[float]) -> float:
    return round(statistics.quantiles(milliseconds, n=100)[98], 4)


def _check(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    try:
        verify_inclusion(leaf, index, size, proof, root)
    except ValueError as error:
        raise DamagedLog(f"event {index}: its proof does not hold: {error}") from None
