"""Disks that are full, read-only or not there, and databases that are another's: named, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.errors import OtherLog, Unreachable
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.databases import StoreFactory, log_signer, sqlite_factory
from tests.logs import Log, artifact


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, which only root may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no small file system here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def _append_without_end(log: Log, tried: list[bytes]) -> None:
    """Big events, so that the disk is soon full. The last of `tried` is the one that was refused."""
    materials = [artifact("base-models/tiny"), *(artifact(f"datasets/acme/d{i}") for i in range(200))]
    for number in range(1_000):
        request = artifact(f"requests/r{number}")
        asked = {"run": f"r{number}", "org": "acme", "model": "m", "bases": ["tiny"], "dataset": "acme/d0"}
        tried.append(log.sign("trainer", "TrainingRequested", f"training-runs/r{number}", [request], asked, materials))
        log.append(tried[-1])


def _write_until_refused(log: Log) -> bytes:
    tried: list[bytes] = []
    with pytest.raises(Unreachable, match="is full, nothing was recorded; free space"):
        _append_without_end(log, tried)
    return tried[-1]


def test_a_full_disk(small_disk: Path) -> None:
    stores = sqlite_factory(small_disk)
    log = Log(stores())
    log.append(log.base(), *log.datasets(200))
    refused = _write_until_refused(log)
    size = log.store.head.size
    with pytest.raises(Unreachable):
        log.append(refused)
    assert verify_whole_log(log.store) == size
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert log.append(refused).indexes == (size,)
    assert verify_whole_log(stores.reopen(log.store)) == size + 1
    stores.close()


def test_a_full_database(sqlite_stores: StoreFactory) -> None:
    """The same without root: SQLite's own limit on the number of pages."""
    log = Log(sqlite_stores())
    log.append(log.base(), *log.datasets(200))
    _limit_pages(log.store, 300)
    refused = _write_until_refused(log)
    size = log.store.head.size
    assert verify_whole_log(log.store) == size
    _limit_pages(log.store, 1_000_000)
    assert log.append(refused).indexes == (size,)
    assert verify_whole_log(sqlite_stores.reopen(log.store)) == size + 1


def _limit_pages(store: Store, pages: int) -> None:
    with store._writer.begin() as connection:  # the next writer has the same one
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_read_only_database_is_named_as_such(sqlite_stores: StoreFactory, tmp_path: Path, what: str) -> None:
    log = Log(sqlite_stores())
    log.append(log.dataset())
    log.store.close()
    database = sqlite_stores.file_of(log.store)
    script = f"""
import sys
from ledger.errors import Unreachable
from ledger.store import Store
from tests.databases import log_signer
try:
    Store("sqlite:///{database}", log_signer())
except Unreachable as error:
    print(error.message)
"""
    # Root may write anywhere; without this capability it is told no like everybody else.
    command = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    target = database if what == "file" else tmp_path
    for path in (database, target):
        path.chmod(0o444 if path.is_file() else 0o555)
    try:
        told = subprocess.run(
            [*command, sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            text=True,
            capture_output=True,
            check=True,
        ).stdout
    finally:
        for path in (database, target):
            path.chmod(0o755)
    assert "cannot be opened for writing; check its path and permissions" in told
    assert verify_whole_log(sqlite_stores.reopen(log.store)) == 8


def test_a_directory_that_is_not_there(sqlite_stores: StoreFactory) -> None:
    with pytest.raises(Unreachable, match="cannot be opened for writing; check its path"):
        sqlite_stores.open("sqlite:////nowhere/at/all/log.db")


def test_the_database_of_another_log(store_factory: StoreFactory) -> None:
    log = Log(store_factory())
    with pytest.raises(OtherLog, match="the key file that belongs to this database"):
        store_factory.reopen(log.store, signer=log_signer(b"k" * 32))
    verify_whole_log(log.store)
