"""A backup holds the whole log; what is restored from it, on any database, is the same log."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from modelledger.cli import run
from sqlalchemy import select

from ledger import tables
from ledger.audit import audit
from ledger.backup import MAGIC, Backup, back_up
from ledger.errors import DamagedLog, InvalidSignature, NotFound, Refused
from ledger.restore import restore
from ledger.store import Store
from ledger.whole_log import DatabaseLog
from tests.audit import verify_whole_log
from tests.databases import Cluster, StoreFactory, log_signer
from tests.logs import Log

VERIFIERS = [log_signer().verifier]


def _tables(url: str) -> dict[str, list[Any]]:
    """Everything that a log is made of, as it stands in a database."""
    found = {}
    with DatabaseLog(url) as source:
        for name in tables.IMMUTABLE:
            table = tables.metadata.tables[name]
            rows = source._connection.execute(select(table).order_by(*table.primary_key.columns))
            found[name] = [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in rows]
    return found


def _back_up(url: str, path: Path) -> Path:
    with DatabaseLog(url) as source:
        done = back_up(source, path)
    assert (done.bytes, done.origin) == (path.stat().st_size, "test.log")
    return path


@pytest.fixture
def log(store_factory: StoreFactory) -> Log:
    """A short log."""
    log = Log(store_factory())
    log.append(*log.history())
    return log


@pytest.fixture
def full(store_factory: StoreFactory) -> Log:
    """A log with rows in every table, 271 events."""
    log = Log(store_factory())
    log.append(*log.history())
    log.append(*log.datasets(250))
    log.append(log.dataset("last"))
    return log


def test_there_and_back_again_over_both_databases(
    full: Log, store_factory: StoreFactory, postgresql: Cluster, tmp_path: Path
) -> None:
    original = _tables(store_factory.url_of(full.store))
    assert all(original.values()), "the log has rows in every table"
    url, file = store_factory.url_of(full.store), tmp_path / "0"
    for number, target in enumerate((postgresql.new_url(), f"sqlite:///{tmp_path}/1.db", postgresql.new_url())):
        _back_up(url, file)
        assert restore(file, target, VERIFIERS).size == full.store.head.size
        assert _tables(target) == original
        url, earlier, file = target, file, tmp_path / str(number + 1)
        assert _back_up(url, file).read_bytes() == earlier.read_bytes(), (
            "the same bytes, whatever database they come from"
        )
        file.unlink()


def test_a_restored_log_goes_on(full: Log, store_factory: StoreFactory, tmp_path: Path) -> None:
    size = full.store.head.size
    file = _back_up(store_factory.url_of(full.store), tmp_path / "backup")
    restore(file, f"sqlite:///{tmp_path}/log.db", VERIFIERS)
    again = Log(Store(f"sqlite:///{tmp_path}/log.db", log_signer()))
    again.append(*again.datasets(20, start=1_000))
    assert verify_whole_log(again.store) == size + 20
    again.store.close()


def test_a_backup_while_events_are_appended_is_one_moment_of_the_log(
    store_factory: StoreFactory, tmp_path: Path
) -> None:
    log = Log(store_factory())
    log.append(*log.datasets(300))
    stopped = threading.Event()

    def append() -> None:
        number = 1_000
        while not stopped.is_set():
            log.append(log.dataset(f"d{number}"))
            number += 1

    appender = threading.Thread(target=append)
    appender.start()
    try:
        for number in range(4):
            before = log.store.head.size
            file = _back_up(store_factory.url_of(log.store), tmp_path / str(number))
            size = audit(Backup(file), VERIFIERS, jobs=1).size
            assert before <= size <= log.store.head.size
    finally:
        stopped.set()
        appender.join()
    assert log.store.head.size > 307, "events were appended meanwhile"
    restore(file, f"sqlite:///{tmp_path}/log.db", VERIFIERS)
    assert (
        _tables(f"sqlite:///{tmp_path}/log.db")["events"] == _tables(store_factory.url_of(log.store))["events"][:size]
    )


def test_a_backup_of_a_damaged_database_fails_and_leaves_no_file(sqlite_stores: StoreFactory, tmp_path: Path) -> None:
    log = Log(sqlite_stores())
    with log.store._writer.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER events_no_update")
        connection.exec_driver_sql("UPDATE events SET entry = x'00' WHERE position = 3")
    with pytest.raises(DamagedLog, match="run `modelledger audit` on the database"):
        _back_up(sqlite_stores.url_of(log.store), tmp_path / "backup")
    assert not [path for path in tmp_path.iterdir() if "backup" in path.name]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            "UPDATE checkpoints SET note = CAST(replace(note, '— test.log ', '— test.log A') AS BLOB) WHERE size = 7",
            "does not verify",
        ),
        ("UPDATE checkpoints SET note = zeroblob(2000000) WHERE size = 7", "does not verify"),
        ("UPDATE checkpoints SET note = (SELECT note FROM checkpoints WHERE size = 8) WHERE size = 7", "signs size 8"),
        ("UPDATE checkpoints SET previous = 6 WHERE size = 8", "follows size 6, not 7"),
        ("INSERT INTO checkpoints VALUES (0, -1, x'78')", "kept for size 0, which is no event's"),
        ("UPDATE checkpoints SET note = 'x' WHERE size = 9", "newest checkpoint cannot be read"),
        ("INSERT INTO checkpoints VALUES (99, 98, 'x')", "newest checkpoint cannot be read"),
        ("INSERT INTO checkpoints SELECT 99, 98, note FROM checkpoints WHERE size = 9", "the log ends at 9"),
        ("DELETE FROM checkpoints WHERE size = 7", "follows size 7, not 1"),
    ],
)
def test_what_could_not_be_restored_is_not_backed_up(
    sqlite_stores: StoreFactory, tmp_path: Path, damage: str, named: str
) -> None:
    log = Log(sqlite_stores())
    for name in ("one", "two"):
        log.append(log.dataset(name))
    with log.store._writer.begin() as connection:
        for trigger in ("update", "delete"):
            connection.exec_driver_sql(f"DROP TRIGGER checkpoints_no_{trigger}")
        connection.exec_driver_sql(damage)
    with pytest.raises(DamagedLog, match=named) as caught:
        _back_up(sqlite_stores.url_of(log.store), tmp_path / "backup")
    assert caught.value.metadata["position"]
    assert not (tmp_path / "backup").exists()


def test_a_source_without_its_checkpoints_is_not_backed_up(
    sqlite_stores: StoreFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = DatabaseLog.bundles
    monkeypatch.setattr(
        DatabaseLog, "bundles", lambda *range: (replace(bundle, checkpoints=()) for bundle in kept(*range))
    )
    with pytest.raises(DamagedLog, match="of size 7, is not kept with the others"):
        _back_up(sqlite_stores.url_of(Log(sqlite_stores()).store), tmp_path / "backup")


def test_a_backup_never_replaces_a_file(sqlite_stores: StoreFactory, tmp_path: Path) -> None:
    log = Log(sqlite_stores())
    (tmp_path / "backup").write_text("mine")
    with pytest.raises(Refused, match="never overwritten"):
        _back_up(sqlite_stores.url_of(log.store), tmp_path / "backup")
    assert (tmp_path / "backup").read_text() == "mine"


def test_what_is_no_ledger_cannot_be_backed_up(sqlite_stores: StoreFactory, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        DatabaseLog(f"sqlite:///{tmp_path}/nothing.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(NotFound, match="holds no ledger"):
        DatabaseLog(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(NotFound, match="empty log"):
        _back_up(sqlite_stores.url_of(sqlite_stores()), tmp_path / "backup")


def test_a_database_that_holds_a_log_is_refused(log: Log, store_factory: StoreFactory, tmp_path: Path) -> None:
    url = store_factory.url_of(log.store)
    file, before = _back_up(url, tmp_path / "backup"), _tables(url)
    with pytest.raises(Refused, match="already holds events"):
        restore(file, url, VERIFIERS)
    assert _tables(url) == before


def test_an_empty_ledger_may_be_restored_into(log: Log, store_factory: StoreFactory, tmp_path: Path) -> None:
    file, empty = _back_up(store_factory.url_of(log.store), tmp_path / "backup"), store_factory()
    restore(file, store_factory.url_of(empty), VERIFIERS)
    empty.refresh()
    assert verify_whole_log(empty) == log.store.head.size


@pytest.mark.parametrize("damage", ["cut", "edited", "longer", "other"])
def test_a_damaged_backup_writes_nothing(sqlite_stores: StoreFactory, tmp_path: Path, damage: str) -> None:
    file = _back_up(sqlite_stores.url_of(Log(sqlite_stores()).store), tmp_path / "backup")
    data = file.read_bytes()
    file.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "edited": data.replace(b'"payloadType"', b'"payloadTypf"', 1),
            "longer": data + b"x",
            "other": b"SQLite format 3\0" + data,
        }[damage]
    )
    with pytest.raises(DamagedLog) as caught:
        restore(file, f"sqlite:///{tmp_path}/new.db", VERIFIERS)
    assert caught.value.metadata["position"]
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("crafted", ["K again", "H again", "C twice", "C first", "C large"])
def test_records_that_no_backup_has_are_refused(sqlite_stores: StoreFactory, tmp_path: Path, crafted: str) -> None:
    """Whatever their digest says: of what stands behind an entry there is no end otherwise."""
    file = _back_up(sqlite_stores.url_of(Log(sqlite_stores()).store), tmp_path / "backup")
    records = list(Backup(file)._records())
    kinds = [kind for kind, _ in records]
    at = kinds.index(b"C")
    more = {
        "K again": (at + 1, records[0]),
        "H again": (at + 1, records[1]),
        "C twice": (at + 1, records[at]),
        "C first": (2, records[at]),
        "C large": (at, (b"C", bytes(100_000))),
    }[crafted]
    records[more[0] : more[0] + (crafted == "C large")] = [more[1]]
    data = MAGIC + b"".join(kind + len(content).to_bytes(4, "big") + content for kind, content in records)
    file.write_bytes(data + b"Z" + (32).to_bytes(4, "big") + sha256(data).digest())
    with pytest.raises(DamagedLog, match="there is no record of a backup"):
        restore(file, f"sqlite:///{tmp_path}/new.db", VERIFIERS)
    assert not (tmp_path / "new.db").exists()


def test_another_logs_key_restores_nothing(sqlite_stores: StoreFactory, tmp_path: Path) -> None:
    file = _back_up(sqlite_stores.url_of(Log(sqlite_stores()).store), tmp_path / "backup")
    with pytest.raises(InvalidSignature, match="no signature by a trusted key"):
        restore(file, f"sqlite:///{tmp_path}/new.db", [log_signer(bytes(32)).verifier])
    assert not (tmp_path / "new.db").exists()


def test_a_backup_changed_between_audit_and_restore_writes_nothing(
    sqlite_stores: StoreFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Log(sqlite_stores()), Log(sqlite_stores())
    first.append(first.dataset("one"))
    second.append(second.dataset("two"))
    file = _back_up(sqlite_stores.url_of(first.store), tmp_path / "backup")
    other = _back_up(sqlite_stores.url_of(second.store), tmp_path / "other")

    def audit_then_swap(*arguments: Any, **more: Any) -> Any:
        audited = audit(*arguments, **more)
        other.rename(file)
        return audited

    monkeypatch.setattr("ledger.restore.audit", audit_then_swap)
    with pytest.raises(DamagedLog, match="was changed while"):
        restore(file, f"sqlite:///{tmp_path}/new.db", VERIFIERS)
    with pytest.raises(NotFound, match="holds no ledger"):  # not even its tables
        DatabaseLog(f"sqlite:///{tmp_path}/new.db")


def test_a_full_disk_leaves_no_backup(
    sqlite_stores: StoreFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(sqlite_stores())
    real = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"{tmp_path}/.backup."):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _back_up(sqlite_stores.url_of(log.store), tmp_path / "backup")
    assert not [path for path in tmp_path.iterdir() if "backup" in path.name]


def test_the_commands(sqlite_stores: StoreFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, vkey = Log(sqlite_stores()), log_signer().vkey()
    url, file, data = sqlite_stores.url_of(log.store), str(tmp_path / "backup"), str(tmp_path / "new")
    assert run(["log", "backup", file, "--database", url]) == 0
    assert "7 events of test.log" in capsys.readouterr().out
    assert run(["audit", file, "--trust", vkey]) == 0
    assert run(["log", "restore", file, "--data", data, "--trust", vkey]) == 0
    assert "7 events of test.log restored and verified" in capsys.readouterr().out
    assert run(["log", "backup", str(tmp_path / "again"), "--data", data]) == 0
    assert (tmp_path / "again").read_bytes() == Path(file).read_bytes()
    assert run(["log", "restore", file, "--data", data, "--trust", vkey]) == 1
    assert "a restore changes no log" in capsys.readouterr().err
    assert run(["log", "restore", file, "--data", data]) == 2
    assert run(["log", "backup", file]) == 2
    assert run(["log", "backup", file, "--data", data, "--database", url]) == 2
    assert run(["log", "backup", str(tmp_path / "x"), "--database", "no-database://x"]) == 1
