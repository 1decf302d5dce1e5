"""A real ledger process with its companions, on a database of its own, for what is done to it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from modelledger.cli.child import Child, environment
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc, registry_pb2, registry_pb2_grpc

from ledger.kit.client import call, connect
from ledger.kit.keys import actor_signer
from ledger.signers import log_signer
from ledger.store import Store
from tests.audit import verify_whole_log

FOUNDING = 7  # events


class Ledger:
    """`python -m modelledger.cli.bench_servers ledger`, and what it keeps. Calls raise errors of our tree."""

    def __init__(self, data: Path, child: Child) -> None:
        self.data = data
        self.database = data / "log.db"
        self.pid = child._process.pid
        self.address: str = child.ready["grpc"]
        self.channel = connect(self.address)
        self.log = ledger_pb2_grpc.LedgerServiceStub(self.channel)
        self.registry = registry_pb2_grpc.RegistryServiceStub(self.channel)
        self.trainer = actor_signer(data / "keys" / "trainer.key")

    def processes(self, module: str = "") -> list[int]:
        """Ids of this ledger's companions, or of those that run a module."""
        found = subprocess.run(
            ["pgrep", "--parent", str(self.pid), "--full", f" -m {module}"], capture_output=True, text=True
        )
        return [int(line) for line in found.stdout.split()]

    def kill(self, module: str) -> None:
        for process in self.processes(module):
            os.kill(process, signal.SIGKILL)

    def append(self, *entries: bytes, timeout: float = 20.0) -> list[int]:
        answer = call(self.log.AppendEvents, ledger_pb2.AppendEventsRequest(envelopes=entries), timeout=timeout)
        return [proof.index for proof in answer.proofs]

    def size(self) -> int:
        newest = call(self.log.ListEvents, ledger_pb2.ListEventsRequest(descending=True, page_size=1))
        return newest.events[0].index + 1

    def datasets(self) -> list[str]:
        listed = call(self.registry.ListDatasets, registry_pb2.ListDatasetsRequest(parent="orgs/acme"))
        return [dataset.name for dataset in listed.datasets]

    def verify(self) -> int:
        """Audit the whole log; the number of events."""
        with closing(Store(f"sqlite:///{self.database}", log_signer(self.data / "keys", ""))) as store:
            return verify_whole_log(store)


@contextmanager
def ledger_process(folder: Path, **more: str) -> Iterator[Ledger]:
    """Started and ready, on what `folder` holds already; `more` of its environment."""
    data = folder / "data"
    command = [sys.executable, "-m", "modelledger.cli.bench_servers", "ledger", str(data)]
    with Child(command, folder / "ledger.log", environment(**more)) as child:
        running = Ledger(data, child)
        with closing(running.channel):
            yield running
