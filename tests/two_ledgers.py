"""Two ledger processes on one PostgreSQL database, callers that insist, and what must hold whatever happened."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Self

import grpc
from modelledger.cli.child import environment
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from ledger.checkpoint import open_checkpoint
from ledger.envelope import Signer
from ledger.kit.client import connect
from ledger.kit.keys import actor_signer
from ledger.merkle import consistency_proof, verify_consistency
from ledger.signers import log_signer
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.house import eventually
from tests.logs import dataset

CALL_SECONDS = 30.0
INSIST_SECONDS = 30.0
FOUNDING = 7  # events


def free_address() -> str:
    """One that stays free while its ledger is down: no connection is made from a port so low."""
    while True:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", random.randint(20_000, 32_000))) as taken:
            return f"127.0.0.1:{taken.getsockname()[1]}"


class LedgerProcess:
    """`python -m ledger CONFIG.toml` with its companions, in a process group and on addresses of its own."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.address, self.http = free_address(), free_address()
        self._config = folder / f"{name}.toml"
        self._config.write_text(
            f"[ledger]\ndata = '{folder / 'data'}'\ndatabase = '{url}'\n"
            f"listen = '{self.address}'\nhttp = '{self.http}'\n"
        )
        self._output = folder / f"{name}.log"
        self._channel = connect(self.address)
        self.log = ledger_pb2_grpc.LedgerServiceStub(self._channel)

    def launch(self) -> None:
        command = [sys.executable, "-m", "ledger", str(self._config)]
        with self._output.open("ab") as log:
            self._before = log.tell()
            self._process = subprocess.Popen(command, stderr=log, env=environment(), start_new_session=True)

    def wait_until_ready(self) -> None:
        """Until it says so itself, which is after its companions have started."""
        eventually(lambda: b"ledger is ready" in self._said() or self._process.poll() is not None, 60)
        assert self._process.poll() is None, self._said().decode()

    def _said(self) -> bytes:
        return self._output.read_bytes()[self._before :]

    def signal(self, number: signal.Signals) -> None:
        """To the process and its companions, all at once."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        """As an administrator does; `kill` when it has ended already."""
        self._process.terminate()
        code = self._process.wait(30)
        self._channel.close()
        assert code in (0, -signal.SIGKILL), self._said().decode()

    def append(self, *entries: bytes) -> ledger_pb2.AppendEventsResponse:
        return self.log.AppendEvents(ledger_pb2.AppendEventsRequest(envelopes=entries), timeout=CALL_SECONDS)

    def checkpoint(self) -> bytes:
        return self.log.GetCheckpoint(ledger_pb2.GetCheckpointRequest(), timeout=2).checkpoint


@dataclass
class TwoLedgers:
    """Both processes, and what only a test may know of them."""

    first: LedgerProcess
    second: LedgerProcess
    trainer: Signer
    store: Store  # the same database, seen from outside

    def size_of(self, note: bytes) -> int:
        return open_checkpoint(note, [self.store.signer.verifier], self.store.signer.name).size


@contextmanager
def two_ledgers(folder: Path, url: str) -> Iterator[TwoLedgers]:
    """Two ledgers that begin a new log at the same moment."""
    both = [LedgerProcess(name, folder, url) for name in ("first", "second")]
    for ledger in both:
        ledger.launch()
    try:
        for ledger in both:
            ledger.wait_until_ready()
        keys = folder / "data" / "keys"
        store = Store(url, log_signer(keys, ""))
        yield TwoLedgers(*both, actor_signer(keys / "trainer.key"), store)
        store.close()
    finally:
        for ledger in both:
            ledger.end()


@dataclass
class Load:
    """Callers that append data sets one after another, and change to the other ledger when one is UNAVAILABLE.

    Meanwhile somebody watches the log through `reader`, and looks at both ledgers' checkpoints.
    """

    ledgers: TwoLedgers
    writer: LedgerProcess
    reader: LedgerProcess
    callers: int = 4
    entries: dict[str, bytes] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    answered: list[bytes] = field(default_factory=list)  # checkpoints of answers
    seen: dict[str, list[bytes]] = field(default_factory=dict)  # by address, what GetCheckpoint said
    watched: list[int] = field(default_factory=list)
    refusals: set[grpc.StatusCode] = field(default_factory=set)

    def __enter__(self) -> Self:
        self._stopped = threading.Event()
        self._threads = ThreadPoolExecutor(self.callers + 2)
        self._work: list[Future[None]] = [self._threads.submit(self._call, number) for number in range(self.callers)]
        self._work += [self._threads.submit(self._watch), self._threads.submit(self._look)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._threads.shutdown()
        for done in self._work:
            done.result()

    def insist(self, event_id: str, entry: bytes, *ledgers: LedgerProcess) -> None:
        """Append through the first of these ledgers that takes it."""
        self.entries[event_id] = entry
        deadline, said = time.monotonic() + INSIST_SECONDS, {}
        for ledger in itertools.cycle(ledgers):
            try:
                answer = ledger.append(entry)
            except grpc.RpcError as error:
                self.refusals.add(error.code())
                said[ledger.address] = error.details()
                assert time.monotonic() < deadline, said
                time.sleep(0.02)
                continue
            self.answered.append(answer.checkpoint)
            self.acknowledged[event_id] = answer.proofs[0].index
            return

    def first_append(self, ledger: LedgerProcess) -> float:
        """Seconds until this ledger has acknowledged an event."""
        began = time.monotonic()
        self.insist(*dataset(f"first-{began}", self.ledgers.trainer), ledger)
        return time.monotonic() - began

    def _call(self, number: int) -> None:
        for count in itertools.count():
            if self._stopped.is_set():
                return
            both = (self.writer, self.reader)
            self.insist(*dataset(f"d{number}-{count}", self.ledgers.trainer), *both)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            start = len(self.watched)
            pages = self.reader.log.WatchEvents(ledger_pb2.WatchEventsRequest(start_index=start))
            try:
                for page in pages:
                    self.watched += [event.index for event in page.events]
                    if self._stopped.is_set():
                        break
            except grpc.RpcError as error:
                self.refusals.add(error.code())
                time.sleep(0.05)
            finally:
                pages.cancel()

    def _look(self) -> None:
        while not self._stopped.wait(0.02):
            for ledger in (self.ledgers.first, self.ledgers.second):
                try:
                    self.seen.setdefault(ledger.address, []).append(ledger.checkpoint())
                except grpc.RpcError:  # it was killed or stopped
                    continue

    def check(self) -> None:
        """Nothing acknowledged is lost or moved, nobody was ever shown another history, and the log verifies."""
        store = self.ledgers.store
        for ledger in (self.ledgers.first, self.ledgers.second):
            self.first_append(ledger)
        store.refresh()
        assert self.entries.keys() == self.acknowledged.keys()
        assert verify_whole_log(store) == FOUNDING + len(self.entries), "something is in the log twice, or not at all"
        for ledger in (self.ledgers.first, self.ledgers.second):
            for event_id, index in self.acknowledged.items():
                assert store.get_by_id(event_id).position == index
            self._retry_everything(ledger)
        self._check_checkpoints()
        assert self.watched == list(range(len(self.watched)))

    def _retry_everything(self, ledger: LedgerProcess) -> None:
        ids = list(self.entries)
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            answer = ledger.append(*(self.entries[event_id] for event_id in some))
            assert [proof.index for proof in answer.proofs] == [self.acknowledged[event_id] for event_id in some]

    def _check_checkpoints(self) -> None:
        store = self.ledgers.store
        for notes in self.seen.values():
            sizes = [self.ledgers.size_of(note) for note in notes]
            assert sizes == sorted(sizes), "a ledger's checkpoint went back"
        notes = {*self.answered, *itertools.chain(*self.seen.values())}
        opened = [open_checkpoint(note, [store.signer.verifier], store.signer.name) for note in notes]
        for old, new in pairwise(sorted(opened, key=lambda checkpoint: checkpoint.size)):
            proof = consistency_proof(store.tiles(), old.size, new.size) if old.size < new.size else []
            verify_consistency(old.size, new.size, old.root, new.root, proof)
