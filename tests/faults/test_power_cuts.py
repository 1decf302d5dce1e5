"""Power cuts after kills and failed flushes: what was acknowledged is on the disk, and not only in memory.

A writer runs under strace, which kills it inside a commit or lets flushes fail, and another one goes on with what it
finds. From the record of both follows what a power cut would leave after every single acknowledgement.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from ledger.committer import Request
from tests.audit import verify_whole_log
from tests.databases import StoreFactory, sqlite_factory
from tests.faults.crashes import CONTEXT
from tests.faults.power_cut import Disk
from tests.faults.strace import Call, calls, strace
from tests.faults.writer import batch_of, positions_of, write_all
from tests.logs import Log

REQUESTS = (1, 3, 2, 1, 3)  # events of each
pytestmark = pytest.mark.usefixtures("strace_works")


def _run(url: str, requests: Sequence[Request], folder: Path, *inject: str) -> Iterator[Call]:
    """One writer's life; the system calls that it made."""
    ours, theirs = CONTEXT.Pipe()
    record, marks = folder / "record", folder / "marks"
    child = CONTEXT.Process(target=write_all, args=(url, requests, marks, theirs))
    child.start()
    with strace(child.pid or 0, inject=inject, record=record):
        ours.send("go")
        child.join(30)
    assert child.exitcode == (-9 if any("SIGKILL" in fault for fault in inject) else 0)
    return calls(record)


@pytest.mark.parametrize(
    "faults",
    [
        *(f"fdatasync:signal=SIGKILL:when={number}" for number in range(2, 10)),
        *(f"pwrite64:signal=SIGKILL:when={number}" for number in range(5, 90, 12)),
        *(f"fdatasync:error=EIO:when={number}" for number in range(2, 10)),
        # Not every second one: an attempt after a failed one flushes twice, so none would ever succeed.
        *(f"fdatasync:error=EIO:when={first}+{step}" for first, step in ((2, 3), (3, 3), (5, 5))),
        "fdatasync:error=ENOSPC:when=3+3",
        "pwrite64:error=EIO:when=7+31",
        "pwrite64:error=ENOSPC:when=13+31",
    ],
)
def test_what_was_acknowledged_is_there_after_a_power_cut(
    sqlite_stores: StoreFactory, tmp_path: Path, faults: str
) -> None:
    store = Log(sqlite_stores()).store
    store.close()
    url, file = sqlite_stores.url_of(store), sqlite_stores.file_of(store)
    disk = Disk.holding(file, file.with_name(f"{file.name}-wal"))
    requests = batch_of(REQUESTS)
    acknowledged: list[Request] = []
    chances = random.Random(faults)
    for inject in ([faults], []):
        acknowledged.clear()
        for call in _run(url, requests, tmp_path, *inject):
            disk.apply(call)
            if call.path.endswith("marks"):
                acknowledged.append(requests[int(call.content)])
                _check(disk.after_a_power_cut(chances), acknowledged, tmp_path / "left")
        (tmp_path / "marks").unlink()
    assert len(acknowledged) == len(requests)
    assert verify_whole_log(sqlite_stores.reopen(store)) == store.head.size + sum(REQUESTS)


def _check(left: Mapping[str, bytes], acknowledged: Sequence[Request], folder: Path) -> None:
    """Everything acknowledged is in the log that a power cut leaves, which verifies."""
    folder.mkdir(exist_ok=True)
    for path, content in left.items():
        (folder / Path(path).name).write_bytes(content)
    stores = sqlite_factory(folder)
    store = stores.open(f"sqlite:///{folder / 'log1.db'}")
    for request in acknowledged:
        assert len(positions_of(store, request)) == len(request), "acknowledged and lost"
    verify_whole_log(store)
    stores.close()
    for file in folder.iterdir():
        file.unlink()
