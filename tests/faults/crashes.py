"""Writers that are killed one after another on one database, and the log held to everything they were told."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.committer import Request
from ledger.merkle import consistency_proof, verify_consistency
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.databases import StoreFactory, log_signer
from tests.faults.writer import Batch, write_until_killed
from tests.logs import Log, event_of

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.faults.writer"])


@dataclass
class Crashes:
    """One database. `live` is one writer's life and death; `verify` comes at the end and is thorough."""

    stores: StoreFactory
    store: Store
    kills: int = 0
    acknowledged: dict[str, int] = field(default_factory=dict)  # event id -> position
    checkpoints: list[bytes] = field(default_factory=list)  # of the newest answer of each life
    in_doubt: Batch = ()  # of the last writer, which was killed between `try` and `ack`
    doubts: int = 0
    came_through: int = 0  # requests that were in doubt, and were in the log

    def __post_init__(self) -> None:
        Log(self.store)
        self.founded = self.store.head.size

    def live(self, *, point: str = "", countdown: int = 0, seconds: float = 0.0) -> None:
        """One life, until the writer kills itself at `point`, or for some seconds after it was ready."""
        ours, theirs = CONTEXT.Pipe(duplex=False)
        url = self.stores.url_of(self.store)
        child = CONTEXT.Process(target=write_until_killed, args=(url, theirs, self.in_doubt, point, countdown))
        child.start()
        theirs.close()
        assert ours.poll(30), "the writer did not start"
        _, found = ours.recv()
        self._settle(found)
        if not point:
            time.sleep(seconds)
            child.kill()
        tried: Batch = ()
        try:
            while True:
                said = ours.recv()
                if said[0] == "try":
                    tried = said[1]
                else:
                    self._acknowledge(tried, said[1])
                    self.checkpoints.append(said[2])
                    tried = ()
        except (EOFError, OSError):
            pass  # the pipe ends where the writer was killed
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        self.kills += 1
        self.in_doubt = tried or self.in_doubt  # a life may end before it repeated what was in doubt
        self.doubts += bool(tried)

    def verify(self) -> int:
        """Hold the log to every answer, and audit it. The number of events."""
        store = self.stores.reopen(self.store)
        found = {row.id: row.position for row in store.select(limit=None)}
        lost = [one for one, index in self.acknowledged.items() if found.get(one) != index]
        assert not lost, f"acknowledged and lost: {lost}"
        current = _open(store.head.checkpoint)
        for note in self.checkpoints:
            earlier = _open(note)
            proof = consistency_proof(store.tiles(), earlier.size, current.size)
            verify_consistency(earlier.size, current.size, earlier.root, current.root, proof)
        return verify_whole_log(store)

    def _settle(self, found: Sequence[Sequence[int]]) -> None:
        """What the next writer found of requests that were in doubt: all of a request or nothing, in one commit."""
        for request, positions in zip(self.in_doubt, found, strict=True):
            assert len(positions) in (0, len(request)), "half a request came through"
        through = [bool(positions) for positions in found]
        assert all(through) or not any(through), "half a batch came through"
        self.came_through += sum(through)

    def _acknowledge(self, batch: Sequence[Request], answer: Sequence[Sequence[int]]) -> None:
        for request, positions in zip(batch, answer, strict=True):
            for entry, index in zip(request, positions, strict=True):
                assert self.acknowledged.setdefault(event_of(entry).id, index) == index


def _open(note: bytes) -> Checkpoint:
    return open_checkpoint(note, [log_signer().verifier], "test.log")
