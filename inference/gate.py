"""The gate: a file is served only if the log vouches for its digest now, and nothing it is made from was revoked.

    name -> enabled in serving.toml? -> the registry's files for it -> the configured quantisation -> path by digest

The registry's answer for a name is kept until something happens in the log that could change it. That is safe only
while the log is followed: when the subscription breaks, every answer is asked for again, and without a ledger there is
none (Unreachable). The engine hashes the very file it loads, so other bytes at the path are refused there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc, registry_pb2, registry_pb2_grpc

from inference.serving_config import QUANTISATIONS, ServedModel
from ledger.errors import Damaged, ModelLedgerError, NotReady
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.client import call, stream
from ledger.kit.threads import in_thread
from ledger.statement import Artifact

log = logging.getLogger("modelledger.inference")

# Whatever changes what is active, which files there are, or what is revoked.
KINDS = (
    "VersionCreated",
    "VersionActivated",
    "VersionRevoked",
    "QuantizationCompleted",
    "BaseModelRegistered",
    "BaseModelWithdrawn",
)
RECONNECT = 0.2  # seconds
AFTER_FAILURE = 1.0  # seconds; the ledger being away is not a failure


@dataclass(frozen=True)
class Vouched:
    """A file that may be served under a name, and the event (its index) that says so. version: empty for a base."""

    name: str
    version: str
    gguf: Artifact
    event_index: int
    path: Path


class Gate:
    """`start` follows the log in a thread; `on_change` is called from there after every event that matters."""

    def __init__(
        self,
        ledger: ledger_pb2_grpc.LedgerServiceStub,
        registry: registry_pb2_grpc.RegistryServiceStub,
        artifacts: ArtifactStore,
        on_change: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._registry = registry
        self._artifacts = artifacts
        self._on_change = on_change
        self._lock = threading.Lock()
        self._answers: dict[str, registry_pb2.ListServableResponse] = {}
        self._following = False
        self._changes = 0
        self._position = 0  # in the log
        self._stopped = threading.Event()
        self._cancel: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._follow, name="gate-follow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._cancel()
        self._thread.join(timeout=10)

    async def vouched(self, model: ServedModel) -> Vouched:
        """The file that `model` is served from now.

        Raises NotReady with the registry's reason, Damaged when the file is gone, Unreachable without a ledger.
        """
        answer = self._kept(model.name)
        if answer is None:
            answer = await in_thread(self._ask, model.name)
        # A GGUF that holds only an adapter cannot answer on its own.
        files = [file for file in answer.files if file.file.type in QUANTISATIONS and not file.revoked]
        if not files:
            raise NotReady(f"{model.name} cannot be served: {answer.reason or 'it has only GGUF adapters'}")
        wanted = [file for file in files if file.file.type == model.quantisation]
        chosen = (wanted or files)[0]
        sha256 = chosen.file.file.sha256
        path = self._artifacts.path_of(sha256)
        if not path.is_file():
            raise Damaged(
                f"the file that event {chosen.event_index} vouches for, sha256:{sha256}, is not in the artifact store; "
                "restore it from a backup or quantise again"
            )
        gguf = Artifact(chosen.file.file.name, sha256)
        return Vouched(model.name, chosen.version, gguf, chosen.event_index, path)

    def _kept(self, name: str) -> registry_pb2.ListServableResponse | None:
        with self._lock:
            return self._answers.get(name) if self._following else None

    def _ask(self, name: str) -> registry_pb2.ListServableResponse:
        with self._lock:
            changes = self._changes
        answer = call(self._registry.ListServable, registry_pb2.ListServableRequest(name=name))
        with self._lock:
            if self._following and changes == self._changes:  # otherwise it may be older than what was just heard
                self._answers[name] = answer
        return answer

    def _follow(self) -> None:
        while not self._stopped.is_set():
            pause = RECONNECT
            try:
                self._watch()
            except ModelLedgerError as error:
                if self._following and not self._stopped.is_set():  # once for each time it is lost
                    log.warning("the log is not followed at the moment: %s", error.message)
            except Exception:  # this thread is the only one that hears of a revocation: it must not end
                log.exception("following the log failed; it is followed again in %g seconds", AFTER_FAILURE)
                pause = AFTER_FAILURE
            # Whatever ended it: from here on nothing that is kept may be used.
            self._heard(following=False, changed=True)
            self._stopped.wait(pause)

    def _watch(self) -> None:
        """Hear of every change that was not heard of yet, until the ledger ends the stream."""
        request = ledger_pb2.WatchEventsRequest(start_index=self._position, kinds=KINDS)
        self._cancel, responses = stream(self._ledger.WatchEvents, request)
        for response in responses:
            self._heard(following=response.caught_up, changed=bool(response.events))
            self._position = response.next_index
            if self._stopped.is_set():
                break

    def _heard(self, *, following: bool, changed: bool) -> None:
        with self._lock:
            self._following = following
            if changed:
                self._changes += 1
                self._answers.clear()
        if changed and not self._stopped.is_set():
            try:
                self._on_change()
            except Exception:  # what is served is decided by the answers above, not by who is told
                log.exception("a change in the log could not be passed on")
