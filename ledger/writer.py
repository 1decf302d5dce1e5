"""The single writer, in a process of its own.

    writer = Writer(settings, store)              # store: this process's, which reads
    results = await writer.commit(requests)       # ledger/committer.py's answers, after one durable commit

A writer that dies loses nothing that was acknowledged. What it was doing is Unreachable for its callers, who may
retry (an event's id makes that safe), and the next batch starts another, which verifies the log as every start does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ledger.committer import Appended, Commit, Committer, Request
from ledger.kit.answering import answer_questions, portable
from ledger.kit.companion import Companion
from ledger.signers import log_signer
from ledger.store import Store
from ledger.verifying import AllCores
from ledger.writing import Head

# A caller who appends one event after the other comes again after 0.8 ms. A process that has slept meanwhile works at
# half its speed: staying awake makes that caller's appends a tenth quicker, for at most so much of a core for each.
ATTENTIVE = 0.0015  # seconds

Results = list[Appended | Exception]


@dataclass(frozen=True)
class LogSettings:
    """What a process needs to open the log: the database's URL, the folder of keys, the log's name."""

    url: str
    keys: Path
    origin: str

    def open(self) -> Store:
        return Store(self.url, log_signer(self.keys, self.origin))


class Writer:
    """The service's end. Batches are written in the order of the calls; `store` sees a head before its answers do."""

    def __init__(self, settings: LogSettings, store: Store) -> None:
        self.store = store
        self._process = Companion("ledger.writer", settings)

    async def start(self) -> None:
        """Start the process and wait until it has verified the log."""
        await self._process.start()

    async def commit(self, requests: Sequence[Request]) -> Results:
        """One answer or error for each request. Raises Unreachable when the process dies over it."""
        results, head = await self._process.ask(requests)
        if head is not None:
            self.store.see(head)
        return list(results)

    async def close(self) -> None:
        await self._process.close()


class _Committing:
    """The process's end. A batch's signatures are being verified while the batch before it is written."""

    def __init__(self, settings: LogSettings) -> None:
        self._committer = Committer(settings.open(), AllCores())
        self._told: Head | None = None

    def __call__(self, requests: Sequence[Request]) -> Callable[[], tuple[Results, Head | None]]:
        return partial(self._write, self._committer.begin(requests))

    def _write(self, commit: Commit) -> tuple[Results, Head | None]:
        results = [portable(r) if isinstance(r, Exception) else r for r in commit()]
        head, told = self._committer.store.head, self._told
        self._told = head
        return results, head if head is not told else None


def _attentive(requests: Sequence[Request] | LogSettings) -> float:
    return ATTENTIVE if isinstance(requests, list) and len(requests) == 1 else 0.0


if __name__ == "__main__":
    answer_questions(_Committing, _attentive)
