"""The log of `modelledger bench audit`, and how fast it is verified.

A backup of a real log: signed entries, a checkpoint every thousand. The floor is what the cores can verify at all:
their number times the P-256 signatures that one of them verifies in a second, measured before and after each round.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger import envelope, statement
from ledger.audit import audit
from ledger.audit_source import Bundle, KeptCheckpoint, cuts
from ledger.backup import Backup, back_up
from ledger.checkpoint import sign_checkpoint
from ledger.errors import DamagedLog
from ledger.frontier import Frontier
from ledger.kit.keys import actor_signer
from ledger.merkle import Tile, leaf_hash
from ledger.note import LogSigner
from ledger.statement import Artifact, Event
from modelledger.cli.bench_load import verify_rate

EACH_CHECKPOINT = 1_000  # events


def measure_audit(events: int, rounds: int) -> dict[str, Any]:
    """Median events a second of an audit of a backup and, as the floor, signatures that the cores verify."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="modelledger-bench-") as name:
        folder = Path(name)
        signers = {actor: actor_signer(folder / f"{actor}.key") for actor in ("ledger", "trainer")}
        log = _Log(events, signers, LogSigner("bench.log", Ed25519PrivateKey.generate()))
        file = folder / "log.backup"
        written = back_up(log, file)
        verifying, rates = [verify_rate(signers["trainer"])], []
        for _ in range(rounds):
            started = time.perf_counter()
            audited = audit(Backup(file), [log.signer.verifier], jobs=cores)
            rates.append(audited.size / (time.perf_counter() - started))
            if audited.size != events:
                raise DamagedLog(f"{audited.size} of {events} events were verified")
            verifying.append(verify_rate(signers["trainer"]))
    value, one_core = statistics.median(rates), statistics.median(verifying)
    return {
        "name": "audit",
        "value": round(value, 1),
        "floor": round(cores * one_core, 1),
        "ratio": round(value / (cores * one_core), 4),
        "unit": "events/s",
        "conditions": {
            "events": events,
            "rounds": rounds,
            "entry_bytes": written.bytes // events,
            "source": "a backup file",
            "signatures": "ECDSA P-256, one for each event",
            "floor": "cores x P-256 signatures that one core verifies",
            "one_core": round(one_core, 1),
            "value_rounds": [round(rate, 1) for rate in rates],
            "cpus": cores,
            "python": platform.python_version(),
        },
    }


class _Log:
    """Source of the backup: a log of `events` signed entries, with a checkpoint every so often."""

    name = "the log of the bench"

    def __init__(self, events: int, signers: dict[str, Any], signer: LogSigner) -> None:
        self.signer = signer
        self.entries = list(_entries(events, signers, signer))
        self._checkpoints: list[KeptCheckpoint] = []
        frontier = Frontier()
        for size, entry in enumerate(self.entries, 1):
            frontier.append(leaf_hash(entry))
            if size % EACH_CHECKPOINT == 0 or size == events:
                previous = self._checkpoints[-1].size if self._checkpoints else 0
                note = sign_checkpoint(signer, size, frontier.root())
                self._checkpoints.append(KeptCheckpoint(size, previous, note))

    def checkpoint(self) -> bytes:
        return self._checkpoints[-1].note

    def bundles(self, start: int, stop: int) -> Iterator[Bundle]:
        for first, end in cuts(start, stop):
            kept = tuple(kept for kept in self._checkpoints if first < kept.size <= end)
            yield Bundle(first, self.entries[first:end], checkpoints=kept)

    def tile(self, tile: Tile) -> bytes | None:
        return None

    def finish(self, size: int) -> None:
        """There is nothing else."""


def _entries(events: int, signers: dict[str, Any], log: LogSigner) -> Iterator[bytes]:
    """LogCreated, the enrolment of the trainer, and data sets."""
    texts = {actor: base64.b64encode(signer.public_key_der).decode() for actor, signer in signers.items()}
    keys = {actor: Artifact(f"actors/{actor}", signer.keyid) for actor, signer in signers.items()}
    created = {"origin": log.name, "logVkey": log.vkey(), "actorPublicKey": texts["ledger"]}
    named = Artifact(f"log/{log.name}", hashlib.sha256(log.verifier.public_key).hexdigest())
    enrolled = {"actor": "trainer", "publicKey": texts["trainer"], "role": "trainer"}
    yield _signed(signers, Event("LogCreated", "log", 1, "ledger", (named, keys["ledger"]), created))
    yield _signed(signers, Event("ActorEnrolled", "actors/trainer", 1, "ledger", (keys["trainer"],), enrolled))
    for number in range(events - 2):
        stream = f"datasets/bench/{number}"
        rows = Artifact(stream, hashlib.sha256(stream.encode()).hexdigest())
        data = {"org": "bench", "name": str(number), "form": "messages", "examples": 100, "band": "minimum"}
        yield _signed(signers, Event("DatasetRegistered", stream, 1, "trainer", (rows,), data))


def _signed(signers: dict[str, Any], event: Event) -> bytes:
    return envelope.sign(statement.encode(event), [signers[event.actor]])
