"""The ledger asks its witnesses, in rounds, so that they cosign the same checkpoints.

    commit ──► store.head ──► a round a second at most ──► one thread for each witness ──► cosignatures

A round is one checkpoint, the newest when it begins; every witness is asked for it. The next one begins when the
quorum is met, or after a few seconds without it. Were each witness asked for whatever is newest at its own moment, a
busy log would collect cosignatures on different checkpoints and never a quorum on one.

Nothing waits for a witness: an append is answered before any of them has heard of it, and one that is slow, down or
of another opinion holds up its own thread only (witness_follower.py).
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from ledger.cosignature_store import CosignatureStore
from ledger.cosigned import Checkpoints, CosignedCheckpoints, PlainCheckpoints
from ledger.errors import InvalidConfig
from ledger.store import Store
from ledger.trust_policy import TrustPolicy, read_trust_policy, shown
from ledger.witness_client import WitnessClient
from ledger.witness_follower import WitnessFollower
from ledger.writing import Head

log = logging.getLogger("modelledger.witnessing")

INTERVAL = 1.0  # seconds between two rounds, and between two requests to one witness
PATIENCE = 5.0  # seconds that a round waits for its quorum
STOP_SECONDS = 2.0
MAX_WITNESSES = 64  # threads; and a note holds at most 100 signatures
MAX_NAME = 300  # characters of a key's name, which its column holds


class Witnessing:
    """The witnesses of a policy that have a URL; none without a policy. `checkpoints` is what readers are given."""

    def __init__(
        self,
        store: Store,
        database: str = "",
        policy: TrustPolicy | None = None,
        *,
        interval: float = INTERVAL,
        patience: float = PATIENCE,
    ) -> None:
        self.checkpoints: Checkpoints = PlainCheckpoints(store)
        self._cosignatures: CosignatureStore | None = None
        self._rounds: _Rounds | None = None
        if policy is not None:
            _check(policy, store)
            asked = [(witness, WitnessClient(witness.url)) for witness in policy.witnesses.values() if witness.url]
            self._cosignatures = CosignatureStore(database)
            cosigned = self.checkpoints = CosignedCheckpoints(store, self._cosignatures, policy)
            followers = [
                WitnessFollower(witness, client, store, self._cosignatures, cosigned, interval)
                for witness, client in asked
            ]
            self._rounds = _Rounds(store, cosigned, followers, interval, patience)

    def start(self) -> None:
        if self._rounds is not None:
            self._rounds.start()

    def stop(self) -> None:
        """A request under way is given a moment, then left behind; its answer comes again at the next start."""
        if self._rounds is not None:
            self._rounds.stop()

    def close(self) -> None:
        if self._cosignatures is not None:
            self._cosignatures.close()


def open_witnessing(store: Store, database: str, file: Path | None) -> Witnessing:
    """As configured: `file` is a tlog-policy with the witnesses' URLs. Raises InvalidConfig."""
    if file is None:
        return Witnessing(store)
    policy = read_trust_policy(file)
    try:
        return Witnessing(store, database, policy)
    except InvalidConfig as error:
        raise InvalidConfig(f"{file}: {error.message}") from None


class _Rounds(threading.Thread):
    """Chooses the checkpoint that every follower asks for."""

    def __init__(
        self,
        store: Store,
        cosigned: CosignedCheckpoints,
        followers: list[WitnessFollower],
        interval: float,
        patience: float,
    ) -> None:
        super().__init__(name="witnessing", daemon=True)
        self._store = store
        self._cosigned = cosigned
        self._followers = followers
        self._interval = interval
        self._patience = patience
        self._news = threading.Event()
        self._progress = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        for follower in self._followers:
            follower.follow(self._progress.set)
        self._store.listeners.add(self._tell)
        self._news.set()  # what was committed while nobody asked
        super().start()

    def stop(self) -> None:
        self._store.listeners.discard(self._tell)
        self._stopped.set()
        self._news.set()
        self._progress.set()
        for follower in self._followers:
            follower.stop()
        for thread in (self, *self._followers):
            if thread.is_alive():
                thread.join(STOP_SECONDS)

    def run(self) -> None:
        size = 0
        while True:
            self._news.wait()
            self._news.clear()
            if self._stopped.is_set():
                return
            head = self._store.head
            if head.size > size:
                size = head.size
                for follower in self._followers:
                    follower.ask_for(head)
                self._stopped.wait(self._interval)
                self._wait_for_quorum(size)

    def _wait_for_quorum(self, size: int) -> None:
        deadline = time.monotonic() + self._patience
        while not self._stopped.is_set() and time.monotonic() < deadline:
            self._progress.clear()
            try:
                if self._cosigned.is_agreed(size):
                    return
            except Exception:  # the database is away: the next round will show
                log.exception("the cosignatures of size %d cannot be read", size)
            self._progress.wait(self._interval)

    def _tell(self, head: Head) -> None:
        self._news.set()


def _check(policy: TrustPolicy, store: Store) -> None:
    """Raises InvalidConfig for a policy that this ledger cannot follow."""
    if not any(witness.url for witness in policy.witnesses.values()):
        raise InvalidConfig("no witness has a URL, so none can be asked")
    if len(policy.witnesses) > MAX_WITNESSES:
        raise InvalidConfig(f"{len(policy.witnesses)} witnesses; a ledger asks at most {MAX_WITNESSES}")
    for witness in policy.witnesses.values():
        if len(witness.verifier.name) > MAX_NAME:
            raise InvalidConfig(f"the key name of {shown(witness.name)} is longer than {MAX_NAME} characters")
    if policy.logs and store.signer.vkey() not in {entry.verifier.vkey() for entry in policy.logs}:
        raise InvalidConfig(f"this log is not one of the policy's; add the line: log {store.signer.vkey()}")
