"""A process that appends events until it is killed, telling its parent before and after each one.

Lines to the parent: `try <entry>` before an append, `ack <event id> <index> <checkpoint>` after its answer.
"""

from __future__ import annotations

import os
import signal
import uuid
from multiprocessing.connection import Connection

from ledger.store import Store
from tests.databases import log_signer
from tests.logs import Log, event_of

Message = tuple[str, bytes, int, bytes]


def write_until_killed(url: str, pipe: Connection, point: str, countdown: int) -> None:
    """Append data sets. With a `point`, this process kills itself there in its commit number `countdown`."""
    commits = 0

    def at(reached: str) -> None:
        if reached == point and commits >= countdown:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store(url, log_signer(), at=at)
    log = Log(store)
    pipe.send(("ready", b"", store.head.size, store.head.checkpoint))
    while True:
        entry = log.dataset(f"d{uuid.uuid4()}")
        pipe.send(("try", entry, 0, b""))
        commits += 1
        answer = log.append(entry)
        pipe.send(("ack", event_of(entry).id.encode(), answer.indexes[0], answer.checkpoint))
