"""The checkpoints that readers are given, with the lines of witnesses below the log's own.

    newest()    the newest checkpoint, with whatever cosignatures have arrived for it: maybe none yet
    agreed()    the newest checkpoint that the quorum of the configured policy has cosigned
    settled()   agreed() once it holds everything that is in the log now; newest() when that takes too long

Witnesses are asked after a commit, so the newest checkpoint is ahead of them most of the time. An append never waits.
Their lines are verified again as they are read from the database: one that does not fit would make the whole note
worthless for everybody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Protocol

from ledger.cosignature import add_lines, cosignatures_below
from ledger.cosignature_store import CosignatureStore, Cosigned
from ledger.errors import NotReady
from ledger.note import NoteError, Verifier
from ledger.store import Store
from ledger.trust_policy import TrustPolicy, Verdict

log = logging.getLogger("modelledger.witnessing")

PAGE = 100
LOOK_BACK = 1_000  # sizes that were cosigned by too few
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Published:
    """A signed checkpoint as readers get it; the note is empty for an empty log."""

    size: int
    note: bytes


class Checkpoints(Protocol):
    """What readers may ask for. All of it may block."""

    def newest(self) -> Published: ...

    def agreed(self) -> Published:
        """Raises NotReady, with who is missing, when the quorum was never met."""

    def settled(self, seconds: float) -> Published:
        """Blocks for at most so long."""


class PlainCheckpoints:
    """Of a log without witnesses: there is only the newest one."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def newest(self) -> Published:
        head = self._store.head
        return Published(head.size, head.checkpoint)

    def agreed(self) -> Published:
        raise NotReady("this ledger asks no witnesses; name a policy file in [ledger] witnesses")

    def settled(self, seconds: float) -> Published:
        return self.newest()


class CosignedCheckpoints:
    """Of a log that asks the witnesses of a policy. Lines of other witnesses, once asked, are not handed on."""

    def __init__(self, store: Store, cosignatures: CosignatureStore, policy: TrustPolicy) -> None:
        self._store = store
        self._cosignatures = cosignatures
        self._policy = policy
        self._verifiers = {(w.verifier.name, w.verifier.key_id.hex()): w.verifier for w in policy.witnesses.values()}
        self._agreed_size: int | None = None  # None before the first search

    def newest(self) -> Published:
        head = self._store.head
        return self._published(Cosigned(head.size, head.checkpoint, self._cosignatures.lines(head.size)))

    def agreed(self) -> Published:
        if self._policy.quorum is None:
            return self.newest()
        for one in self._candidates():
            if self._is_met(one):
                self._agreed_size = one.size
                return self._published(one)
        self._agreed_size = 0
        raise NotReady(f"no checkpoint has met the quorum: {self.verdict().detail}")

    def settled(self, seconds: float) -> Published:
        if self._policy.quorum is None:
            return self.newest()
        size, deadline = self._store.head.size, time.monotonic() + seconds
        while time.monotonic() < deadline:
            for one in takewhile(lambda one: one.size >= size, self._candidates()):
                if self._is_met(one):
                    return self._published(one)
            time.sleep(POLL_SECONDS)
        return self.newest()

    def verdict(self) -> Verdict:
        """On the newest checkpoint that any witness cosigned."""
        return self._judge(next(self._candidates(), Cosigned(0, b"", ())))

    def is_agreed(self, size: int) -> bool:
        found = self._cosignatures.newest(start=size, stop=size + 1)
        return self._is_met(found[0] if found else Cosigned(size, b"", ()))

    def _candidates(self) -> Iterator[Cosigned]:
        """Cosigned checkpoints, newest first. After the first search not all: what was agreed on stays agreed on."""
        stop, seen = None, 0
        while page := self._cosignatures.newest(stop=stop, limit=PAGE):
            yield from page
            stop, seen = page[-1].size, seen + len(page)
            if self._agreed_size is not None and seen >= LOOK_BACK:
                yield from self._cosignatures.newest(start=self._agreed_size, stop=self._agreed_size + 1)
                return

    def _is_met(self, one: Cosigned) -> bool:
        """Most that are asked about have too few lines, whatever they are worth."""
        claimed = [witness for witness, _ in self._known(one)]
        return self._policy.judge_cosigners(claimed).satisfied and self._judge(one).satisfied

    def _judge(self, one: Cosigned) -> Verdict:
        return self._policy.judge_cosigners([witness for witness, _ in self._fitting(one)])

    def _published(self, one: Cosigned) -> Published:
        return Published(one.size, add_lines(one.note, [line for _, line in self._fitting(one)]))

    def _fitting(self, one: Cosigned) -> list[tuple[Verifier, bytes]]:
        return [(witness, line) for witness, line in self._known(one) if _fits(one.note, line, witness)]

    def _known(self, one: Cosigned) -> list[tuple[Verifier, bytes]]:
        found = ((self._verifiers.get((line.witness, line.key_id)), line.line) for line in one.lines)
        return [(witness, line) for witness, line in found if witness is not None]


@lru_cache(16 * LOOK_BACK)
def _fits(checkpoint: bytes, line: bytes, witness: Verifier) -> bool:
    """Whether a stored line is this witness's on this checkpoint."""
    try:
        if [found.line for found in cosignatures_below(checkpoint, line, [witness])] == [line]:
            return True
        problem = "it is not one line of that witness"
    except NoteError as error:
        problem = str(error)
    log.error("a cosignature kept of %s is not handed on: %s; was the database changed?", witness.name, problem)
    return False
