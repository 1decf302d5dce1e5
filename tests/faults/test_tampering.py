"""Tampering with a database file: found at the start, or by the audit, with the position."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ledger.errors import DamagedLog, OtherLog
from ledger.merkle import inclusion_proof, leaf_hash, verify_inclusion
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.databases import StoreFactory, sqlite_factory
from tests.logs import Log


@dataclass
class Tampered:
    """A closed SQLite log of 600 events, its triggers dropped, to be changed by hand."""

    stores: StoreFactory
    store: Store

    def run(self, statement: str, *values: object) -> None:
        connection = sqlite3.connect(self.stores.file_of(self.store))
        connection.create_function("flipped", 1, _flipped)
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        assert connection.execute(statement, values).rowcount, "nothing was changed"
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stores = sqlite_factory(tmp_path_factory.mktemp("untouched"))
    log = Log(stores())
    log.append(*log.history())
    log.append(*log.datasets(600 - log.store.head.size))
    stores.close()
    return stores.file_of(log.store)


@pytest.fixture
def tampered(sqlite_stores: StoreFactory, untouched: Path) -> Tampered:
    store = sqlite_stores()
    store.close()
    shutil.copyfile(untouched, sqlite_stores.file_of(store))
    return Tampered(sqlite_stores, store)


def _flip(table: str, column: str, row: str) -> str:
    """One byte of a blob, overwritten by another one."""
    return f"UPDATE {table} SET {column} = flipped({column}) WHERE {row}"  # noqa: S608


def _flipped(blob: bytes) -> bytes:
    return blob[:20] + (b"\1" if blob[20] == 0 else b"\0") + blob[21:]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (_flip("events", "entry", "position = 555"), "event 555 was changed"),
        (_flip("events", "leaf_hash", "position = 599"), "event 599 was changed"),
        (_flip("tiles", "hashes", "level = 0 AND tile = 1"), "does not have the root"),
        ("DELETE FROM tiles WHERE level = 0 AND tile = 0", "tile 0 of level 0 is missing"),
        ("UPDATE tiles SET hashes = substr(hashes, 1, 100) WHERE tile = 1", "must have 8192 bytes"),
        ("UPDATE tiles SET hashes = 8192 WHERE tile = 1", "tile 1 of level 0 is kept without its hashes"),
        ("DELETE FROM events WHERE position = 599", "covers 600 events, but the last event is at position 598"),
        ("DELETE FROM events WHERE position = 540", "needs 88 leaf hashes, got 87"),
        ("DELETE FROM events", "covers 600 events, but the last event is at position None"),
        ("DELETE FROM checkpoints WHERE size = 600", "covers 20 events, but the last event is at position 599"),
        ("DELETE FROM checkpoints", "covers 0 events, but the last event is at position 599"),
        (_flip("checkpoints", "note", "size = 600"), "not signed by this log's key"),
        ("UPDATE checkpoints SET note = (SELECT note FROM checkpoints WHERE size = 20) WHERE size = 600", "the root"),
    ],
)
def test_damage_at_the_right_edge_stops_the_start(tampered: Tampered, statement: str, message: str) -> None:
    tampered.run(statement)
    with pytest.raises((DamagedLog, OtherLog), match=message):
        tampered.stores.reopen(tampered.store)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (_flip("events", "entry", "position = 100"), "event 100 was changed: its bytes"),
        ("UPDATE events SET stream = 'datasets/acme/other' WHERE position = 590", "event 590: stream is kept as"),
        ("UPDATE events SET kind = 'ModelLoaded' WHERE position = 30", "event 30: kind is kept as"),
        (
            "UPDATE introductions SET name = 'base-models/x' WHERE name = 'datasets/acme/faq'",
            "event 8: its introduction",
        ),
        ("DELETE FROM revocations", "event 19: its revocation"),
        (_flip("checkpoints", "note", "size = 7"), "size 7 does not verify: control character"),
    ],
)
def test_damage_in_the_middle_is_found_by_the_audit(tampered: Tampered, statement: str, message: str) -> None:
    tampered.run(statement)
    store = tampered.stores.reopen(tampered.store)
    with pytest.raises((AssertionError, ValueError), match=message):
        verify_whole_log(store)


@pytest.mark.parametrize("nodes", ["substr(nodes, 1, 480)", "x''", "''", "512"])
def test_a_tile_without_its_nodes_still_proves_and_is_found_by_the_audit(tampered: Tampered, nodes: str) -> None:
    tampered.run(f"UPDATE tiles SET nodes = {nodes} WHERE tile = 1")  # noqa: S608
    store = tampered.stores.reopen(tampered.store)
    size, root = store.head.size, store.head.edge.root()
    for position in range(256, 512, 17):
        proof = inclusion_proof(store.tiles(), position, size)
        verify_inclusion(leaf_hash(store.get(position).entry), position, size, proof, root)
    with pytest.raises(AssertionError, match=r"does not agree with node \d+ of tile 1 of level 0"):
        verify_whole_log(store)


def test_damage_to_an_old_tile_is_found_by_the_audit(sqlite_stores: StoreFactory) -> None:
    """Beyond 65,536 events a full level 0 tile is no part of the edge; here an extra one stands in for it."""
    log = Log(sqlite_stores())
    log.append(*log.datasets(300))
    Tampered(sqlite_stores, log.store).run("INSERT INTO tiles VALUES (0, 7, zeroblob(8192), zeroblob(512))")
    with pytest.raises(AssertionError, match="tile 7 of level 0 is kept, which 307 events do not complete"):
        verify_whole_log(sqlite_stores.reopen(log.store))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:100],
        lambda data: b"not a database at all" * 500,
        lambda data: data[:4_096] + b"\xff" * (len(data) - 4_096),
    ],
    ids=["half", "header", "other-file", "overwritten"],
)
def test_a_damaged_file_stops_the_start(tampered: Tampered, damage: Callable[[bytes], bytes]) -> None:
    path = tampered.stores.file_of(tampered.store)
    path.write_bytes(damage(path.read_bytes()))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with pytest.raises(DamagedLog, match="restore"):
        tampered.stores.reopen(tampered.store)
