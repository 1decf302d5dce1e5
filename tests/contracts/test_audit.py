"""One auditor, four ways to read a log, the same verdict by each; from the beginning or from the last checkpoint."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from modelledger.audit_sources import RemoteLog, StaticLog
from modelledger.cli import run
from starlette.applications import Starlette

from ledger import audit_state
from ledger.audit import audit, claimed_key
from ledger.audit_source import Source
from ledger.audit_state import AuditState
from ledger.backup import Backup, back_up
from ledger.errors import DamagedLog, InvalidInput, InvalidSignature, NotFound, Refused, Unreachable
from ledger.note import LogSigner
from ledger.whole_log import DatabaseLog, _raw
from tests.databases import StoreFactory, log_signer
from tests.logs import ACTORS, Log, artifact, event_of, rotation, signed, signer
from tests.served import EntryLog, FileLog, files_of, grpc_client, serving, serving_app

VERIFIERS = [log_signer().verifier]


@contextmanager
def _read(way: str, log: Log, stores: StoreFactory, folder: Path) -> Iterator[Source]:
    url = stores.url_of(log.store)
    if way == "http":
        with serving(log.store) as address, StaticLog(address) as source:
            yield source
    elif way == "grpc":
        with grpc_client(log) as client:
            yield RemoteLog(client, "the ledger")
    elif way == "backup":
        file = folder / f"{log.store.head.size}.backup"
        with DatabaseLog(url) as source:
            back_up(source, file)
        yield Backup(file)
    else:
        with DatabaseLog(url) as source:
            yield source


WAYS = ["http", "grpc", "backup", "database"]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_tells_the_same(way: str, store_factory: StoreFactory, tmp_path: Path) -> None:
    log = Log(store_factory())
    log.append(*log.history())
    log.append(*log.datasets(300))
    progress: list[tuple[int, int]] = []
    with _read(way, log, store_factory, tmp_path) as source:
        assert claimed_key(source) == log_signer().vkey()
        found = audit(source, VERIFIERS, jobs=1, progress=lambda done, total: progress.append((done, total)))
    assert (found.size, found.note, found.since) == (320, log.store.head.checkpoint, 0)
    assert found.actors == sorted(ACTORS)
    assert (found.streams, found.artifacts) == (313, 313)
    assert progress == [(0, 320), (256, 320), (320, 320)]


@pytest.mark.parametrize("way", WAYS)
def test_an_audit_continues_from_the_last_checkpoint(way: str, store_factory: StoreFactory, tmp_path: Path) -> None:
    log, path = Log(store_factory()), tmp_path / "state"
    note = b""
    for entries in (log.datasets(3), log.datasets(300, start=100), [], log.history(), log.datasets(1, start=900)):
        since = log.store.head.size if note else 0
        if entries:
            log.append(*entries)
        with _read(way, log, store_factory, tmp_path) as source, AuditState(path, note) as state:
            found = audit(source, VERIFIERS, since=note, state=state, jobs=1)
            state.save(found.note)
        assert (found.since, found.size) == (since, log.store.head.size)
        note = found.note
        Path(tmp_path / f"{found.size}.backup").unlink(missing_ok=True)
    with DatabaseLog(store_factory.url_of(log.store)) as source:
        whole = audit(source, VERIFIERS, jobs=1)
    assert (found.streams, found.artifacts, found.root) == (whole.streams, whole.artifacts, whole.root)


def test_cores_and_memory_change_nothing(
    sqlite_stores: StoreFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(sqlite_stores())
    log.append(*log.history())
    for start in range(0, 1_500, 500):
        log.append(*log.datasets(500, start=start))
    url = sqlite_stores.url_of(log.store)
    with DatabaseLog(url) as source:
        alone = audit(source, VERIFIERS, jobs=1)
    monkeypatch.setattr("ledger.audit.ALONE", 0)
    monkeypatch.setattr(audit_state, "HELD", 100)  # nearly everything lies in the file
    with DatabaseLog(url) as source:
        assert audit(source, VERIFIERS, jobs=2) == alone
    with log.store._writer.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER events_no_update")
        connection.exec_driver_sql("UPDATE events SET entry = CAST(entry || ' ' AS BLOB) WHERE position = 1300")
        connection.exec_driver_sql("UPDATE events SET entry = CAST(entry || ' ' AS BLOB) WHERE position = 1400")
    with DatabaseLog(url) as source, pytest.raises(DamagedLog, match="event 1300 was changed"):
        audit(source, VERIFIERS, jobs=2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_cannot_be_read_comes_after_the_damage_before_it(
    sqlite_stores: StoreFactory, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """Reading runs ahead of judging; what is named is still the first fault."""
    log = Log(sqlite_stores())
    for start in range(0, 1_000, 250):
        log.append(*log.datasets(250, start=start))
    monkeypatch.setattr("ledger.audit.ALONE", 0)

    def position_with(damage: str) -> str:
        with log.store._writer.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS events_no_update")
            connection.exec_driver_sql(damage)
        with DatabaseLog(sqlite_stores.url_of(log.store)) as source, pytest.raises(DamagedLog) as caught:
            audit(source, VERIFIERS, jobs=jobs)
        return caught.value.metadata["position"]

    assert position_with("UPDATE events SET version = 'no number' WHERE position = 768") == "768"
    assert position_with("UPDATE events SET stream = stream || 'x' WHERE position = 600") == "600"


def _dataset(name: str) -> tuple[Any, ...]:
    data = {"org": "acme", "name": name, "examples": 100, "band": "minimum"}
    return "trainer", "DatasetRegistered", f"datasets/acme/{name}", [artifact(f"datasets/acme/{name}")], data


# The trainer's keyid over another's signature.
PRETENDER = replace(ACTORS["trainer"], private_key=signer(50).private_key)
BROKEN: dict[str, Callable[[Log], list[bytes]]] = {
    "stands in the log twice": lambda log: [log.sign(*_dataset("new"), id=event_of(log.store.get(8).entry).id)],
    "so the next is 2, not 3": lambda log: [log.sign(*_dataset("d3"), version=3)],
    "no earlier event introduced": lambda log: [log.training("run2", base="other")[0]],
    "was revoked at index": lambda log: [log.training("run3")[0]],
    "no signature is by an enrolled": lambda log: [signed(log.event(*_dataset("new")), signer(50))],
    "replaced at index 270": lambda log: [
        signed(rotation("trainer", ACTORS["trainer"], signer(99), 2)),
        log.sign(*_dataset("new")),
    ],
    "does not fit the payload": lambda log: [signed(log.event(*_dataset("new")), PRETENDER)],
    "LogCreated is the first event": lambda log: [log.store.get(0).entry],
    "not a DSSE envelope": lambda log: [b"{}"],
}


@pytest.mark.parametrize("held", [audit_state.HELD, 1], ids=["in memory", "in a file"])
@pytest.mark.parametrize("reason", BROKEN)
def test_the_rules_reach_over_the_whole_log(
    sqlite_stores: StoreFactory, monkeypatch: pytest.MonkeyPatch, held: int, reason: str
) -> None:
    """What an event may say depends on events far behind it. The log's key signs here whatever it is given."""
    monkeypatch.setattr(audit_state, "HELD", held)
    log = Log(sqlite_stores())
    log.append(*log.history())
    log.append(*log.datasets(250))
    sound = log.store.entries(0, 270)
    bad = BROKEN[reason](log)
    source = EntryLog([*sound, *bad], log_signer())
    with pytest.raises(DamagedLog, match=reason) as caught:
        audit(source, VERIFIERS, jobs=1)
    assert caught.value.metadata["position"] == str(270 + len(bad) - 1)
    assert audit(EntryLog(sound, log_signer()), VERIFIERS, jobs=1).size == 270


def test_a_log_that_is_cut_off_forked_or_another_is_found(sqlite_stores: StoreFactory) -> None:
    log = Log(sqlite_stores())
    log.append(*log.datasets(9))
    entries = log.store.entries(0, 16)
    seen = EntryLog(entries[:12], log_signer()).checkpoint()
    other = [*entries[:10], log.dataset("other")]

    def position(now: list[bytes], since: bytes = seen) -> str:
        with pytest.raises(DamagedLog) as caught:
            audit(EntryLog(now, log_signer()), VERIFIERS, since=since, jobs=1)
        return caught.value.metadata["position"]

    assert audit(EntryLog(entries, log_signer()), VERIFIERS, since=seen, jobs=1).since == 0  # without its state
    assert position(entries[:11]) == "11"
    assert position([*other, log.dataset("more")]) == "12"
    assert position([*other, *(log.dataset(f"x{i}") for i in range(5))]) == "12"
    stranger = EntryLog(entries, log_signer(bytes(32))).checkpoint()
    with pytest.raises(InvalidSignature, match="the last checkpoint seen"):
        audit(EntryLog(entries, log_signer()), VERIFIERS, since=stranger, jobs=1)
    with pytest.raises(InvalidSignature, match="the entries: the checkpoint does not verify"):
        audit(EntryLog(entries, log_signer(bytes(32))), VERIFIERS, jobs=1)
    renamed = LogSigner("other.log", log_signer().private_key)
    with pytest.raises(InvalidSignature, match="not one you trust"):
        audit(EntryLog(entries, renamed), VERIFIERS, jobs=1)
    with pytest.raises(DamagedLog, match="creates another log"):
        audit(EntryLog(entries, renamed), [renamed.verifier], jobs=1)


# The command


def test_the_command_continues_and_tells_the_position(
    sqlite_stores: StoreFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, file = Log(sqlite_stores()), tmp_path / "last"
    log.append(*log.datasets(5))

    def told(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert run(["audit", *arguments, "--checkpoint", str(file), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    with serving(log.store) as url:
        first = told(url, "--trust", log_signer().vkey())
        assert (first["valid"], first["since"], first["events"], first["trusted"]) == (True, 0, 12, True)
        assert file.read_bytes() == log.store.head.checkpoint
        log.append(*log.datasets(2, start=5))
        assert (told(url)["since"], told(url)["since"]) == (12, 14)
        kept = file.read_bytes()
        with log.store._writer.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER events_no_update")
        log.append(log.dataset("new"))
        with log.store._writer.begin() as connection:
            connection.exec_driver_sql("UPDATE events SET entry = CAST(entry || ' ' AS BLOB) WHERE position = 14")
        wrong = told(url, code=1)
        assert (wrong["valid"], wrong["position"]) == (False, 14)
        assert file.read_bytes() == kept, "the last sound checkpoint stays"
        Path(f"{file}.state").unlink()
        assert told(url, code=1)["position"] == 14
        assert told(sqlite_stores.url_of(log.store), code=1)["position"] == 14
        assert told(str(sqlite_stores.file_of(log.store)), code=1)["position"] == 14
    assert run(["audit", url]) == 1
    assert "refused" in capsys.readouterr().err


def test_the_evidence_stays_as_it_is(
    sqlite_stores: StoreFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing may be written, and where a write-ahead log was left behind with the database."""
    log = Log(sqlite_stores())
    log.append(*log.datasets(5))
    (tmp_path / "link.db").symlink_to(tmp_path / "it's 100 % #1" / "log.db")
    live, folder = sqlite_stores.file_of(log.store), tmp_path / "it's 100 % #1"
    folder.mkdir()
    for end in ("", "-wal"):
        shutil.copy(f"{live}{end}", folder / f"log.db{end}")

    def audited() -> dict[str, bytes]:
        for file in (folder / "log.db", tmp_path / "link.db"):
            with DatabaseLog(f"sqlite:///{file}") as source:
                assert audit(source, VERIFIERS, jobs=1).size == log.store.head.size
        return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before["log.db-wal"]) > 10_000
    assert audited() == before
    log.store.close()
    for path in folder.iterdir():
        path.unlink()
    shutil.copy(live, folder / "log.db")
    assert audited() == {"log.db": live.read_bytes()}
    (folder / "log.db-wal").touch()
    made: list[str] = []
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    monkeypatch.setattr("ledger.whole_log._raw", lambda *a: made.extend(p.name for p in folder.iterdir()) or _raw(*a))
    assert audited() == {"log.db": live.read_bytes(), "log.db-wal": b""}
    assert set(made) == {"log.db", "log.db-wal"}, "there is no place for others"


def test_an_address_without_a_log_is_told_so_without_a_key_too() -> None:
    refused = pytest.raises(NotFound, match="there is no /checkpoint")
    with serving_app(Starlette()) as address, StaticLog(address) as source, refused:
        claimed_key(source)


def test_an_audit_whose_state_cannot_be_kept_says_why(
    sqlite_stores: StoreFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, file = Log(sqlite_stores()), tmp_path / "last"
    url = sqlite_stores.url_of(log.store)
    assert run(["audit", url, "--trust", log_signer().vkey(), "--checkpoint", str(file)]) == 0
    with closing(sqlite3.connect(f"{file}.state")) as state, state:
        state.execute("UPDATE facts SET name = CAST(x'ff' AS TEXT) WHERE name = 'note'")
    assert run(["audit", url, "--trust", log_signer().vkey(), "--checkpoint", str(file)]) == 1
    assert "last.state: cannot be used: Could not decode" in capsys.readouterr().err
    nowhere = str(tmp_path / "nowhere" / "last")
    assert run(["audit", url, "--trust", log_signer().vkey(), "--checkpoint", nowhere]) == 1
    assert "nowhere a folder to write in?" in capsys.readouterr().err


def test_what_was_refused_once_is_refused_again(
    sqlite_stores: StoreFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last checkpoint that all was well at stays the last."""
    log, file, trusted = Log(sqlite_stores()), tmp_path / "last", tmp_path / "trust.toml"
    log.append(log.dataset("one"))
    pin = f'logs = ["{log_signer().vkey()}"]\n[[actors]]\nname = "trainer"\nkeys = ["{"0" * 64}"]\n'
    trusted.write_text(pin)
    arguments = ["audit", sqlite_stores.url_of(log.store), "--checkpoint", str(file), "--trust"]
    for _ in range(2):
        assert run([*arguments, str(trusted)]) == 1
        assert "NOT VALID" in capsys.readouterr().out
    assert not file.exists()
    assert run([*arguments, log_signer().vkey()]) == 0
    file.write_bytes(b"")
    assert run([*arguments, log_signer().vkey()]) == 1
    assert "is empty" in capsys.readouterr().err


def test_one_trusted_log_cannot_speak_for_another(sqlite_stores: StoreFactory) -> None:
    entries = Log(sqlite_stores()).store.entries(0, 7)
    other = LogSigner("other.log", log_signer(bytes(32)).private_key)
    forged = EntryLog(entries, other)
    text = forged.checkpoint().partition(b"\n\n")[0].replace(b"other.log", b"test.log") + b"\n"
    forged.checkpoint = lambda: other.sign(text)
    with pytest.raises(InvalidSignature, match=r"is signed by 'other\.log' only"):
        audit(forged, [*VERIFIERS, other.verifier], jobs=1)


def test_a_state_of_another_checkpoint_is_not_used(sqlite_stores: StoreFactory, tmp_path: Path) -> None:
    log, path = Log(sqlite_stores()), tmp_path / "state"
    entries = EntryLog(log.store.entries(0, 7), log_signer())
    with AuditState(path) as state:
        found = audit(entries, VERIFIERS, state=state, jobs=1)
        state.save(found.note)
    with AuditState(path, found.note) as state:
        assert state.known.size == 7
        with pytest.raises(Refused, match="another audit"):
            AuditState(path, found.note)
    for note in (b"", found.note + b" "):
        with AuditState(path, note) as state:
            assert state.known.size == 0
    path.write_bytes(b"something else" * 100)
    with pytest.raises(InvalidInput, match="delete it"):
        AuditState(path, found.note)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("ftp://log.example", "not the URL of a database"),
        ("sqlite:////nowhere/log.db", "there is no such file"),
        ("no-such-file", "not a file, and not the address"),
        ("http://", "not the http or https address"),
        ("http://127.0.0.1:9", "refused"),
    ],
)
def test_what_is_no_source_is_said(
    source: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("modelledger.audit_sources.ATTEMPTS", 1)
    assert run(["audit", source]) == 1
    assert reason in capsys.readouterr().err


# A server that is not ours


def test_a_log_may_have_deleted_the_partial_tiles_of_full_ones(sqlite_stores: StoreFactory) -> None:
    log = Log(sqlite_stores())
    log.append(*log.datasets(20))
    early = log.store.head.checkpoint
    log.append(*log.datasets(300, start=20))
    with FileLog({**files_of(log.store), "checkpoint": early}) as source:
        assert audit(source, VERIFIERS, jobs=1).size == 27


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("checkpoint", None, "no /checkpoint"),
        ("tile/entries/000.p/7", None, "event 0 is missing"),
        ("tile/entries/000.p/7", b"", "bundle is empty"),
        ("tile/entries/000.p/7", b"\x00\x05x", "bundle ends inside entry 0"),
        ("tile/0/000.p/7", None, "does not agree with hash 0"),
        ("tile/0/000.p/7", bytes(32 * 8), "does not agree with hash 0"),
    ],
)
def test_a_server_that_serves_something_else(
    sqlite_stores: StoreFactory, path: str, answer: bytes | None, reason: str
) -> None:
    files = files_of(Log(sqlite_stores()).store)
    assert path in files
    changed = {name: data for name, data in files.items() if name != path} | ({} if answer is None else {path: answer})
    with FileLog(changed) as source, pytest.raises((DamagedLog, NotFound), match=reason):
        audit(source, VERIFIERS, jobs=1)


@pytest.mark.parametrize(
    ("status", "headers", "body", "reason"),
    [
        (503, {}, b"", "HTTP status 503"),
        (403, {}, b"", "HTTP status 403"),
        (302, {"location": "/elsewhere"}, b"", "HTTP status 302"),
        (200, {}, bytes((1 << 20) + 1), "longer than"),
        (200, {"content-encoding": "gzip"}, b"no gzip", "not gzip"),
        (200, {"content-encoding": "gzip"}, gzip.compress(bytes(1 << 24), mtime=0), "longer than"),
        (200, {"content-encoding": "gzip"}, gzip.compress(b"x" * 99, mtime=0)[:-9], "cut off"),
    ],
)
def test_a_server_that_misbehaves(
    monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], body: bytes, reason: str
) -> None:
    monkeypatch.setattr("modelledger.audit_sources.ATTEMPTS", 2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    with serving_app(app) as url, StaticLog(url) as source, pytest.raises((DamagedLog, Unreachable), match=reason):
        source.checkpoint()
