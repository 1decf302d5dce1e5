"""Flip, delete, insert, swap, truncate: at every byte of what is served, in every row of what is stored.

Every damage is found, and named by the position where it stands. What is tested is the product's auditor.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from ledger.audit import audit
from ledger.audit_source import Source
from ledger.backup import MAGIC, Backup, back_up
from ledger.checkpoint import sign_checkpoint
from ledger.errors import DamagedLog, InvalidSignature
from ledger.merkle import TILE_WIDTH, leaf_hash, root
from ledger.tiles import decode_bundle, encode_bundle
from ledger.whole_log import DatabaseLog
from tests.databases import StoreFactory, log_signer
from tests.logs import Log
from tests.served import FileLog, files_of

# ruff: noqa: S608 - the tables and columns in these statements are named right here

VERIFIERS = [log_signer().verifier]


def _position(source: Source) -> str:
    """Where the auditor finds a log damaged; "" when it finds it sound."""
    try:
        audit(source, VERIFIERS, jobs=1)
    except DamagedLog as error:
        return error.metadata["position"]
    except InvalidSignature:
        return "checkpoint"
    return ""


@pytest.fixture
def small(sqlite_stores: StoreFactory) -> Log:
    """Eight events."""
    log = Log(sqlite_stores())
    log.append(log.dataset())
    return log


@pytest.fixture
def files(small: Log) -> dict[str, bytes]:
    """What is served of a log of five events."""
    entries = small.store.entries(0, 5)
    hashes = [leaf_hash(entry) for entry in entries]
    files = {
        "checkpoint": sign_checkpoint(log_signer(), 5, root(hashes)),
        "tile/0/000.p/5": b"".join(hashes),
        "tile/entries/000.p/5": encode_bundle(entries),
    }
    whole = files_of(small.store)
    assert whole["tile/0/000.p/8"].startswith(files["tile/0/000.p/5"])
    assert whole["tile/entries/000.p/8"].startswith(files["tile/entries/000.p/5"])
    assert _position(FileLog(files)) == ""
    return files


def test_a_flipped_byte_of_an_entry(files: dict[str, bytes]) -> None:
    [path] = [name for name in files if "entries" in name]
    bundle = files[path]
    owners = [index for index, entry in enumerate(decode_bundle(bundle)) for _ in range(2 + len(entry))]
    with FileLog(files) as source:
        for at, owner in enumerate(owners):
            source.files = files | {path: _flipped(bundle, at)}
            found = _position(source)
            # A changed length may leave the bundle without an end; then the bundle is what is named.
            is_length = at == 0 or owners[at - 1] != owner or at == 1 or owners[at - 2] != owner
            assert found == str(owner) or (is_length and found.isdigit() and int(found) <= owner), f"byte {at}"


def test_a_flipped_byte_of_a_tile_or_of_the_checkpoint(files: dict[str, bytes]) -> None:
    with FileLog(files) as source:
        for at in range(len(files["tile/0/000.p/5"])):
            source.files = files | {"tile/0/000.p/5": _flipped(files["tile/0/000.p/5"], at)}
            assert _position(source) == str(at // 32), f"byte {at}"
        for at in range(len(files["checkpoint"])):
            source.files = files | {"checkpoint": _flipped(files["checkpoint"], at)}
            assert _position(source) == "checkpoint", f"byte {at}"


def test_a_file_cut_off_or_longer_at_every_byte(files: dict[str, bytes]) -> None:
    with FileLog(files) as source:
        for path, data in files.items():
            for at in range(len(data)):
                source.files = files | {path: data[:at]}
                assert _position(source), f"{path} ends at byte {at}"
                source.files = files | {path: data[:at] + b"x" + data[at:]}
                assert _position(source), f"{path} has one byte more at {at}"
                source.files = files | {path: data[:at] + data[at + 1 :]}
                assert _position(source), f"{path} has one byte less at {at}"
            source.files = {name: files[name] for name in files if name != path}


def test_entries_deleted_inserted_or_swapped(files: dict[str, bytes]) -> None:
    [path] = [name for name in files if "entries" in name]
    entries = decode_bundle(files[path])
    with FileLog(files) as source:
        for i, entry in enumerate(entries):
            changes = [(entries[:i] + entries[i + 1 :], i), ([*entries[:i], entry, *entries[i:-1]], i + 1)]
            for j in range(i + 1, len(entries)):
                swapped = list(entries)
                swapped[i], swapped[j] = entries[j], entries[i]
                changes.append((swapped, i))
            for changed, position in changes:
                if changed == entries:
                    continue
                source.files = files | {path: encode_bundle(changed)}
                found = _position(source)
                assert found == str(position) or (len(changed) < len(entries) and found == "4"), (i, position)


def test_a_backup_changed(small: Log, sqlite_stores: StoreFactory, tmp_path: Path) -> None:
    file, changed = tmp_path / "log.backup", tmp_path / "changed.backup"
    with DatabaseLog(sqlite_stores.url_of(small.store)) as source:
        back_up(source, file)
    data = file.read_bytes()
    assert _position(Backup(file)) == ""
    # Every byte of entries and notes is flipped above; here it is what a backup puts around them.
    for at in (*range(120), *range(120, len(data) - 60, 23), *range(len(data) - 60, len(data))):
        for damaged in (_flipped(data, at), data[:at], data[:at] + data[at + 1 :]):
            changed.write_bytes(damaged)
            # The audit alone: without a look at its digest, which one who changes a file can make anew.
            assert _position(Backup(changed)), f"byte {at}"
        if at < len(data) - 37:
            anew = _flipped(data[:-37], at)
            changed.write_bytes(anew + b"Z\0\0\0\x20" + sha256(anew).digest())
            found = _position(Backup(changed))
            assert found or _key_record(data, at), f"byte {at}, with a digest made anew"


def _key_record(data: bytes, at: int) -> bool:
    """Whether a byte belongs to the log key's record, which is for people: nothing is verified with it."""
    start = len(MAGIC)
    return start <= at < start + 5 + int.from_bytes(data[start + 1 : start + 5], "big")


@pytest.fixture
def database(sqlite_stores: StoreFactory) -> Iterator[tuple[sqlite3.Connection, str]]:
    """A copy of a log with every kind of row in it and a full tile, in a file whose triggers are gone."""
    log = Log(sqlite_stores())
    log.append(*log.history())
    log.append(*log.datasets(100))
    log.append(*log.datasets(140, start=100))
    log.append(log.dataset("last"))
    log.store.close()
    file = sqlite_stores.file_of(log.store)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        yield connection, f"sqlite:///{file}"


KEYS = {
    "events": ["position"],
    "tiles": ["level", "tile"],
    "checkpoints": ["size"],
    "introductions": ["sha256", "name"],
    "revocations": ["sha256"],
}


def _rows(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    cursor = connection.execute(f"SELECT * FROM {table} ORDER BY {', '.join(KEYS[table])}")
    columns = [column[0] for column in cursor.description]
    return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]


def _where(table: str, row: dict[str, Any]) -> tuple[str, list[Any]]:
    return " AND ".join(f"{key} = ?" for key in KEYS[table]), [row[key] for key in KEYS[table]]


def _change(connection: sqlite3.Connection, table: str, row: dict[str, Any], column: str, value: Any) -> dict[str, Any]:
    """The row as it is then."""
    condition, key = _where(table, row)
    assert connection.execute(f"UPDATE {table} SET {column} = ? WHERE {condition}", (value, *key)).rowcount == 1
    return row | {column: value}


def test_every_column_of_every_row(database: tuple[sqlite3.Connection, str]) -> None:
    connection, url = database
    assert _database_position(url) == ""
    size = connection.execute("SELECT count(*) FROM events").fetchone()[0]
    assert size > TILE_WIDTH
    for table in KEYS:
        rows = _rows(connection, table)
        for row in rows if len(rows) < 10 else [*rows[:2], *rows[8:22:6], rows[-1]]:
            for column, value in row.items():
                other = value + 100_000 if isinstance(value, int) else _other(value)
                changed = _change(connection, table, row, column, other)
                found = _database_position(url)
                _change(connection, table, changed, column, value)
                assert found, f"{table}: {column} of {row}"
                if table == "events":
                    assert found == str(row["position"]), f"{column} of {row}"
    assert _database_position(url) == ""


def test_rows_deleted_inserted_and_swapped(database: tuple[sqlite3.Connection, str]) -> None:
    connection, url = database

    def damaged(*statements: str) -> str:
        for statement in statements:
            connection.execute(statement)
        return _database_position(url)

    size = connection.execute("SELECT count(*) FROM events").fetchone()[0]
    for position in (0, 9, size - 1):
        connection.execute(f"CREATE TABLE kept AS SELECT * FROM events WHERE position = {position}")
        assert damaged(f"DELETE FROM events WHERE position = {position}") == str(position)
        connection.execute("INSERT INTO events SELECT * FROM kept")
        connection.execute("DROP TABLE kept")
    for table in ("tiles", "checkpoints", "introductions", "revocations"):
        for row in _rows(connection, table)[:3]:
            condition, key = _where(table, row)
            connection.execute(f"DELETE FROM {table} WHERE {condition}", key)
            assert damaged(), f"{table}, row {row}"
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", list(row.values()))
    one = "SELECT 'x', stream, version + 90, kind, payload_sha256, leaf_hash, entry FROM events WHERE position = 9"
    for inserted, removed, position in (
        (f"INSERT INTO events SELECT {size}, * FROM ({one})", f"events WHERE position = {size}", size),
        (f"INSERT INTO events SELECT -1, * FROM ({one})", "events WHERE position = -1", 0),
        ("INSERT INTO tiles VALUES (0, 1, x'00', x'00')", "tiles WHERE tile = 1", 256),
        ("INSERT INTO tiles VALUES (5, 0, x'00', x'00')", "tiles WHERE level = 5", 0),
        ("INSERT INTO introductions VALUES ('aa', 'base-models/x', 12)", "introductions WHERE sha256 = 'aa'", 12),
        ("INSERT INTO revocations VALUES ('aa', 999)", "revocations WHERE sha256 = 'aa'", 999),
        ("INSERT INTO checkpoints SELECT 3, 99, note FROM checkpoints LIMIT 1", "checkpoints WHERE size = 3", 3),
    ):
        assert damaged(inserted) == str(position), inserted
        connection.execute(f"DELETE FROM {removed}")
    for first, second in ((0, 1), (3, 4), (20, size - 1)):
        away = f"UPDATE events SET position = -position - 1000 WHERE position = {second}"
        back = f"UPDATE events SET position = {first} WHERE position < -999"
        there = f"UPDATE events SET position = {second} WHERE position = {first}"
        assert damaged(away, there, back) == str(first)
        for statement in (away, there, back):
            connection.execute(statement)
    assert _database_position(url) == ""


@pytest.mark.parametrize("table", KEYS)
def test_a_value_of_another_type(database: tuple[sqlite3.Connection, str], table: str) -> None:
    """SQLite keeps what it is given, whatever the column says, but for a row's own number."""
    connection, url = database
    row = _rows(connection, table)[0]
    for column, value in row.items():
        for other in (f"text {value!r}", b"bytes", 1.5, 7_777_777):
            try:
                changed = _change(connection, table, row, column, other)
            except sqlite3.IntegrityError:
                if [column] != KEYS[table]:
                    raise
                continue
            assert _database_position(url), f"{table}.{column} = {other!r}"
            _change(connection, table, changed, column, value)
    assert _database_position(url) == ""


@pytest.mark.parametrize("column", ["id", "stream", "kind", "payload_sha256", "leaf_hash"])
def test_a_column_that_was_emptied(database: tuple[sqlite3.Connection, str], column: str) -> None:
    connection, url = database
    empty = "x''" if column == "leaf_hash" else "''"
    connection.execute(f"UPDATE events SET {column} = {empty} WHERE position = 9")
    assert _database_position(url) == "9"


def test_every_hash_of_a_stored_tile(database: tuple[sqlite3.Connection, str]) -> None:
    connection, url = database
    [(hashes,)] = connection.execute("SELECT hashes FROM tiles").fetchall()
    for element in range(0, TILE_WIDTH, 15):
        connection.execute("UPDATE tiles SET hashes = ?", (_flipped(hashes, 32 * element + element % 32),))
        assert _database_position(url) == str(element)
    connection.execute("UPDATE tiles SET hashes = ?", (hashes[:-1],))
    assert _database_position(url) == "255"


def test_every_node_of_a_stored_tile(database: tuple[sqlite3.Connection, str]) -> None:
    connection, url = database
    [(nodes,)] = connection.execute("SELECT nodes FROM tiles").fetchall()
    for number in range(16):
        connection.execute("UPDATE tiles SET nodes = ?", (_flipped(nodes, 32 * number + number),))
        assert _database_position(url) == str(16 * number)
    for changed, position in ((nodes[:-1], 240), (nodes + b"x", 256), (b"", 0), ("text", 0)):
        connection.execute("UPDATE tiles SET nodes = ?", (changed,))
        assert _database_position(url) == str(position)
    connection.execute("UPDATE tiles SET nodes = ?", (nodes,))
    assert _database_position(url) == ""


def _database_position(url: str) -> str:
    with DatabaseLog(url) as source:
        return _position(source)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _other(value: str | bytes) -> str | bytes:
    return _flipped(value, len(value) // 2) if isinstance(value, bytes) else value + "x"
