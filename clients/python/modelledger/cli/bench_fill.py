"""The log of `modelledger bench growth`: millions of events in minutes, in one database that grows.

What fills it is not signed: no append rule has looked at it, and an audit would say so. Everything else is as a ledger
leaves it, because the ledger's own code writes it: rows, tiles, introductions, and a checkpoint for every 256 events.
Ids are random, streams are short (runs), of one event (data sets) or very long (a deployment's), and two events in
five introduce an artifact.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from ledger.checkpoint import sign_checkpoint
from ledger.database import driver_errors, writer_engine
from ledger.merkle import TILE_WIDTH
from ledger.note import LogSigner
from ledger.writing import Head, Row, Writing

LONG_STREAM = "deployments/bench/bot"  # a quarter of all events
COMMIT = 1_000_000  # events in one transaction
_RUN = ("TrainingRequested", "TrainingStarted", *["EpochCompleted"] * 6, "TrainingCompleted")
_ROUND = 20  # events: a run and its version, five data sets, five of the long stream
_MODELS = 97
# Of the connection that fills a SQLite file: random keys need their pages in memory, and nobody needs a journal.
_PRAGMAS = ("journal_mode=OFF", "locking_mode=EXCLUSIVE", "cache_size=-3000000")


def fill(url: str, signer: LogSigner, head: Head, size: int, long_version: int) -> None:
    """Grow a log from `head` to `size` events; no ledger may have it open.

    `long_version` is the next one of the long stream.
    """
    engine = writer_engine(url, synchronous="OFF")
    try:
        if url.startswith("sqlite"):
            raw = engine.raw_connection()
            for pragma in _PRAGMAS:
                raw.cursor().execute(f"PRAGMA {pragma}").fetchall()
            raw.close()  # the pool has no other
        rows = _rows(head.size, size, long_version)
        while head.size < size:
            with driver_errors(), engine.begin() as connection:
                head = _write(Writing(connection, head), signer, islice(rows, COMMIT))
    finally:
        engine.dispose()


def settle(url: str) -> None:
    """Have the database do now what it would do in a quiet hour, so that no measurement pays for the filling."""
    if url.startswith("sqlite"):
        with _file(url).open("rb") as file:
            os.fsync(file.fileno())
        return
    engine = writer_engine(url)
    raw = engine.raw_connection().driver_connection
    assert raw is not None  # noqa: S101 - it is connected
    raw.autocommit = True
    for statement in ("VACUUM (ANALYZE)", "CHECKPOINT"):
        raw.execute(statement)
    engine.dispose()


def database_bytes(url: str) -> int:
    """Of a SQLite file; 0 for another database."""
    return _file(url).stat().st_size if url.startswith("sqlite") else 0


def id_of(position: int) -> str:
    """The id of an event that fills the log."""
    return _id(_digest(position))


def run_stream(position: int) -> str:
    """The stream of the run that was written around this position."""
    return f"training-runs/{_digest(position // _ROUND)[:12]}"


def _write(writing: Writing, signer: LogSigner, rows: Iterator[Row]) -> Head:
    """Append in pieces that end where a tile does, each with a checkpoint."""
    previous, note = writing.size, b""
    for first in rows:
        piece = chain((first,), islice(rows, TILE_WIDTH - 1 - writing.size % TILE_WIDTH))
        writing.append(list(piece))
        note = sign_checkpoint(signer, writing.size, writing.edge.root())
        writing.keep(writing.size, previous, note)
        previous = writing.size
    return Head(writing.size, writing.edge, note)


def _rows(start: int, stop: int, long_version: int) -> Iterator[Row]:
    for position in range(start, stop):
        number, place = divmod(position, _ROUND)
        digest = _digest(position)
        introduced = ""
        if place < len(_RUN):
            run = _digest(number)[:12]
            kind, stream, version = _RUN[place], f"training-runs/{run}", place + 1
            introduced = {"TrainingRequested": f"requests/{run}", "TrainingCompleted": f"adapters/{run}/tiny"}.get(
                kind, ""
            )
        elif place == len(_RUN):
            kind, stream, version = "VersionCreated", f"models/bench/m{number % _MODELS}", number // _MODELS + 1
        elif place < _ROUND - 5:
            kind, stream, version = "DatasetRegistered", f"datasets/bench/{digest[:12]}", 1
            introduced = stream
        else:
            kind, stream, version = "UsageRecorded", LONG_STREAM, long_version
            long_version += 1
        id = _id(digest)
        entry = (
            f'{{"payloadType":"application/vnd.in-toto+json","id":"{id}","kind":"{kind}","stream":"{stream}",'
            f'"version":{version},"signatures":[],"filling":"{digest}"}}'
        )
        pairs = ((digest[::-1], introduced),) if introduced else ()
        yield Row(id, stream, version, kind, digest, entry.encode(), pairs)


def _digest(number: int) -> str:
    return hashlib.sha256(b"bench growth %d" % number).hexdigest()


def _id(digest: str) -> str:
    """A UUID of version 4."""
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"


def _file(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))
