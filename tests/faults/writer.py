"""Processes that append until they are killed, telling their parent before and after each batch.

Messages to the parent: ("found", one list of positions for each request that was in doubt), then again and again
("try", the batch) and ("ack", positions of each request, checkpoint).
"""

from __future__ import annotations

import os
import random
import signal
import uuid
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from ledger.committer import Appended, Committer, Request
from ledger.errors import NotFound, Unreachable
from ledger.group_store import Group, GroupStore
from ledger.statement import Event
from ledger.store import Store
from tests.databases import log_signer
from tests.logs import artifact, event_of, signed

T = TypeVar("T")
Batch = Sequence[Request]


def batch_of(sizes: Sequence[int]) -> list[list[bytes]]:
    """Requests of so many events each, every event on a stream of its own."""
    return [[_dataset(f"d{uuid.uuid4()}") for _ in range(size)] for size in sizes]


def _dataset(name: str) -> bytes:
    subject = artifact(f"datasets/acme/{name}")
    data = {"org": "acme", "name": name, "examples": 100, "band": "minimum"}
    return signed(Event("DatasetRegistered", subject.name, 1, "trainer", (subject,), data))


def positions_of(store: Store, request: Request) -> list[int]:
    """Where those of a request's events are that are in the log."""
    found = []
    for entry in request:
        try:
            found.append(store.get_by_id(event_of(entry).id).position)
        except NotFound:
            continue
    return found


def write_until_killed(url: str, pipe: Connection, in_doubt: Batch, point: str, countdown: int) -> None:
    """First repeat what was in doubt. With a `point`, this process kills itself there in its commit `countdown`."""
    commits = 0

    def at(reached: str) -> None:
        if reached == point and commits >= countdown:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store(url, log_signer(), at=at)
    committer = Committer(store)
    pipe.send(("found", [positions_of(store, request) for request in in_doubt]))
    sizes = random.Random(commits + store.head.size)
    batch = in_doubt or batch_of([1])
    while True:
        pipe.send(("try", batch))
        commits += 1
        answers = [_appended(answer) for answer in committer.commit(batch)]
        pipe.send(("ack", [list(answer.indexes) for answer in answers], answers[0].checkpoint))
        batch = batch_of([sizes.randint(1, 3) for _ in range(sizes.randint(1, 3))])


def write_all(url: str, requests: Sequence[Request], marks: Path, go: Connection) -> None:
    """Append the requests one by one, each until it is acknowledged, and leave without closing anything.

    Marks in the file: its number in the list when a request was acknowledged. Before each one something is written
    that is not flushed, as consumer groups do.
    """
    go.recv()
    file = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = _insist(lambda: Store(url, log_signer()))
    with store._writer.begin() as connection:  # the committer has the same one
        connection.exec_driver_sql("PRAGMA wal_autocheckpoint=24")
    committer, groups = Committer(store), GroupStore(url)
    for number, request in enumerate(requests):
        _insist(lambda number=number: _write_unflushed(groups, f"group{number}"))
        _insist(lambda request=request: committer.append(request))
        os.write(file, b"%d\n" % number)
    os._exit(0)


def _write_unflushed(groups: GroupStore, name: str) -> None:
    if not groups.add(Group(name, "", (), 0, 1, 1, 0), most=1_000_000):
        raise AssertionError("there is no room for another group")


def _insist(ask: Callable[[], T]) -> T:
    """The answer once nothing is Unreachable any more."""
    while True:
        try:
            return ask()
        except Unreachable:
            continue


def _appended(answer: Appended | Exception) -> Appended:
    if isinstance(answer, Exception):
        raise answer
    return answer
