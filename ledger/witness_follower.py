"""One witness, asked by a thread of its own: newest checkpoint first, older ones never.

A witness that says it is at another size gets a proof from there. One that refuses the proof has seen another history
of this log: that is what it is for, and no retry mends it. Whatever goes wrong is logged with what it means for the
quorum, and tried again, later each time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ledger.add_checkpoint import encode_request
from ledger.cosignature import cosignatures_below
from ledger.cosignature_store import CosignatureStore
from ledger.cosigned import CosignedCheckpoints
from ledger.errors import ModelLedgerError, Refused
from ledger.merkle import consistency_proof
from ledger.note import NoteError
from ledger.store import Store
from ledger.trust_policy import Witness, shown
from ledger.witness_client import WitnessClient
from ledger.writing import Head

log = logging.getLogger("modelledger.witnessing")

LONGEST_PAUSE = 300.0


class WitnessFollower(threading.Thread):
    """Asks one witness for the checkpoint it was last told to ask for."""

    def __init__(
        self,
        witness: Witness,
        client: WitnessClient,
        store: Store,
        stored: CosignatureStore,
        cosigned: CosignedCheckpoints,
        interval: float,
    ) -> None:
        self._name = shown(witness.name)
        super().__init__(name=f"witness {self._name[:40]}", daemon=True)
        self._witness = witness
        self._client = client
        self._store = store
        self._stored = stored
        self._cosigned = cosigned
        self._interval = interval
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._target: Head | None = None
        self._done: int | None = None  # size of the newest checkpoint that is cosigned and stored
        self._size = 0  # that the witness is at, as far as we know
        self._told: Callable[[], None] = lambda: None

    def follow(self, told: Callable[[], None]) -> None:
        """Start; `told` is called after each new cosignature."""
        self._told = told
        self.start()

    def ask_for(self, head: Head) -> None:
        self._target = head
        self._news.set()

    def stop(self) -> None:
        self._stopped.set()
        self._news.set()

    def run(self) -> None:
        failures = 0
        while True:
            self._news.wait()
            self._news.clear()
            if self._stopped.is_set():
                return
            pause = self._interval
            try:
                self._ask_once()
                if failures:
                    log.info("witness %s answers again", self._name)
                failures = 0
            except Exception as error:  # whatever it is, the log goes on, and so does this thread
                failures += 1
                pause = min(self._interval * 2 ** min(failures, 20), LONGEST_PAUSE)
                self._report(error, pause)
                self._news.set()
            self._stopped.wait(pause)

    def _ask_once(self) -> None:
        if self._done is None:
            self._done = self._size = self._stored.newest_size(self._witness.verifier)
        head = self._target
        if head is None or head.size <= self._done:
            return
        answer = self._send(head)
        if isinstance(answer, int):
            self._size = answer
            if answer > self._store.head.size:
                self._store.refresh()  # another process of this ledger may be ahead
            if head.size < answer <= self._store.head.size:
                return  # somebody else showed it a later checkpoint of ours; the next round is for both
            answer = self._send(head)
        if isinstance(answer, int):
            raise Refused(f"it is at size {answer} now; somebody else submits this log to it too")
        try:
            found = cosignatures_below(head.checkpoint, answer, [self._witness.verifier])
        except NoteError as error:
            raise Refused(f"its answer is no cosignature of this checkpoint: {error}") from None
        if not found:
            raise Refused(f"its answer holds no line of its key {self._witness.verifier.vkey()}")
        self._stored.add(head.size, found[0])
        self._done = self._size = head.size
        self._told()

    def _send(self, head: Head) -> bytes | int:
        old = self._size
        if old > head.size:
            self._size = 0  # asked anew next time: it says again where it is
            raise Refused(
                f"it has seen {old} events of this log, which has {self._store.head.size} here: was the database put "
                "back to an earlier state? A log that forgot events must not go on under the same key"
            )
        proof = consistency_proof(self._store.tiles(head), old, head.size) if old else []
        return self._client.add_checkpoint(encode_request(old, proof, head.checkpoint))

    def _report(self, error: Exception, pause: float) -> None:
        if not isinstance(error, ModelLedgerError):
            log.exception("witness %s; again in %.0f s", self._name, pause)
            return
        try:
            quorum = self._cosigned.verdict().detail
        except ModelLedgerError as unreadable:
            quorum = unreadable.message
        log.warning("witness %s: %s; again in %.0f s; quorum %s", self._name, error.message, pause, quorum)
