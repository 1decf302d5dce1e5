"""Backups: a whole log in one file, the same for every database.

    modelledger backup v1\n
    K <length> the log's verifier key
    H <length> the newest checkpoint
    E <length> an entry, verbatim ...           in order; a checkpoint stands behind the last entry it covers
    C <length> a checkpoint ...
    Z <length> SHA-256 of everything before this record

A record is one letter, its length in four bytes (big-endian) and that many bytes. Nothing else is kept: ids,
streams, tiles and indexes follow from the entries. The digest finds a file that was cut off or damaged; what it is
worth is decided by the audit against a key that is trusted, never by this file.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO

from ledger import envelope as dsse
from ledger import statement
from ledger.audit_source import Bundle, KeptCheckpoint, Source, fault
from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.errors import DamagedLog, ModelLedgerError, Refused
from ledger.frontier import Frontier
from ledger.kit.artifacts import sync_directory
from ledger.merkle import TILE_WIDTH, Tile, leaf_hash
from ledger.note import NoteError, Verifier

MAGIC = b"modelledger backup v1\n"
_MAX_NOTE = 1 << 16  # the log's name twice, and the first event holds it twice, too
_LIMITS = {b"K": _MAX_NOTE, b"H": _MAX_NOTE, b"E": dsse.MAX_ENTRY, b"C": _MAX_NOTE, b"Z": 32}
# What may follow what: no two checkpoints stand behind one entry.
_NEXT = {b"": b"K", b"K": b"H", b"H": b"EZ", b"E": b"ECZ", b"C": b"EZ"}
_HEAD = 5  # bytes before a record's content
_READ = 1 << 17


@dataclass(frozen=True)
class BackedUp:
    """What a backup holds."""

    origin: str
    size: int
    sha256: str
    bytes: int


def back_up(source: Source, path: Path) -> BackedUp:
    """Write the log to `path`: all of it, flushed to disk, or nothing. Raises Refused when the file exists.

    Entries are compared with the signed root on the way, and each checkpoint with the entries, so that a backup of a
    damaged database fails: one that restores nothing would be found out when it is needed.
    """
    if path.exists():
        raise Refused(f"{path} exists already; a backup is never overwritten")
    note = source.checkpoint()
    try:
        checkpoint = Checkpoint.parse(note[: note.rfind(b"\n\n") + 1])
    except NoteError as error:
        raise fault("checkpoint", f"the newest checkpoint cannot be read: {error}") from None
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            digest = _write(source, note, checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        size = temporary.stat().st_size
        try:
            os.link(temporary, path)  # unlike a rename, this never replaces a file
        except FileExistsError:
            raise Refused(f"{path} exists already; a backup is never overwritten") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    sync_directory(path.parent)
    return BackedUp(checkpoint.origin, checkpoint.size, digest, size)


def _write(source: Source, note: bytes, checkpoint: Checkpoint, file: IO[bytes]) -> str:
    digest, frontier = sha256(), Frontier()
    last = KeptCheckpoint(0, 0, b"")

    def put(kind: bytes, content: bytes) -> None:
        record = kind + len(content).to_bytes(4, "big") + content
        digest.update(record)
        file.write(record)

    digest.update(MAGIC)
    file.write(MAGIC)
    for bundle in source.bundles(0, checkpoint.size):
        if bundle.start == 0:
            log = _log_key(bundle.entries[0])
            put(b"K", log.vkey().encode())
            put(b"H", note)
        checkpoints = list(bundle.checkpoints)
        for size, entry in enumerate(bundle.entries, bundle.start + 1):
            put(b"E", entry)
            frontier.append(leaf_hash(entry))
            if checkpoints and checkpoints[0].size == size:
                kept = checkpoints.pop(0)
                _check(kept, last.size, frontier, log)
                put(b"C", kept.note)
                last = kept
        if checkpoints:
            raise fault(
                checkpoints[0].size, f"a checkpoint is kept for size {checkpoints[0].size}, which is no event's"
            )
    if frontier.size != checkpoint.size:
        raise fault(
            frontier.size, f"there are {frontier.size} events, and the newest checkpoint covers {checkpoint.size}"
        )
    if last.note != note:
        raise fault(checkpoint.size, f"the newest checkpoint, of size {checkpoint.size}, is not kept with the others")
    total = digest.digest()
    put(b"Z", total)
    return total.hex()


def _check(kept: KeptCheckpoint, previous: int, frontier: Frontier, log: Verifier) -> None:
    """Whether a checkpoint signs the entries up to it, and follows the one before."""
    what = f"the checkpoint kept for size {kept.size}"
    try:
        signed = open_checkpoint(kept.note, [log], log.name)
    except NoteError as error:
        raise fault(kept.size, f"{what} does not verify: {error}") from None
    if (signed.size, signed.root) != (frontier.size, frontier.root()):
        raise fault(
            kept.size,
            f"{what} signs size {signed.size} and root {signed.root.hex()}, and the first {frontier.size} events have "
            f"the root {frontier.root().hex()}; run `modelledger audit` on the database for the position",
        )
    if kept.previous != previous:
        raise fault(kept.size, f"{what} says that it follows size {kept.previous}, not {previous}")


def _log_key(entry: bytes) -> Verifier:
    try:
        return Verifier.parse(str(statement.decode(dsse.parse(entry).payload).data.get("logVkey")))
    except (ModelLedgerError, NoteError) as error:
        raise fault(0, f"event 0: {error}") from None


@dataclass
class Backup:
    """A backup file: source of an audit, and what a restore reads."""

    path: Path
    name: str = field(init=False)
    digest: str = field(init=False, default="")  # of the last whole reading

    def __post_init__(self) -> None:
        self.name = str(self.path)

    def key(self) -> str:
        """The verifier key the log had when it began; trust it only when you have it from elsewhere too."""
        return next(self._records())[1].decode(errors="replace")

    def checkpoint(self) -> bytes:
        records = self._records()
        next(records)
        return next(records)[1]

    def bundles(self, start: int, stop: int) -> Iterator[Bundle]:
        """All of it is read, whatever is asked, because the digest at its end covers all of it."""
        entries: list[bytes] = []
        checkpoints: list[KeptCheckpoint] = []
        first = position = previous = 0
        newest = self.checkpoint()
        last = b""
        for kind, content in self._records():
            if kind == b"E":
                # A checkpoint belongs to the bundle of its last entry, so a whole one waits for the next entry.
                if entries and (position % TILE_WIDTH == 0 or position == start):
                    if position > start:
                        yield Bundle(first, entries, checkpoints=tuple(checkpoints))
                    first, entries, checkpoints = position, [], []
                entries.append(content)
                position += 1
            elif kind == b"C":
                checkpoints.append(KeptCheckpoint(position, previous, content))
                previous, last = position, content
        if position > start:
            yield Bundle(first, entries, checkpoints=tuple(checkpoints))
        if position != stop or last != newest:
            raise fault(
                min(position, stop), f"{self.name} holds {position} events, its newest checkpoint covers {stop}"
            )

    def tile(self, tile: Tile) -> bytes | None:
        return None

    def finish(self, size: int) -> None:
        """Nothing can be left over: `bundles` read to the end."""

    def _records(self) -> Iterator[tuple[bytes, bytes]]:
        """(kind, content) of every record, the digest compared at the end. Raises DamagedLog."""
        digest, before = sha256(MAGIC), b""
        with self.path.open("rb", buffering=_READ) as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise self._wrong(0, f"it is not a backup: it does not begin with {MAGIC.decode().strip()!r}")
            at = len(MAGIC)
            while True:
                head = file.read(_HEAD)
                kind, length = head[:1], int.from_bytes(head[1:], "big")
                if len(head) < _HEAD:
                    raise self._wrong(at, "the file ends before its digest: it was cut off")
                if kind not in _NEXT[before] or length > _LIMITS[kind]:
                    raise self._wrong(at, "there is no record of a backup")
                content = file.read(length)
                if len(content) < length:
                    raise self._wrong(at, "the file ends inside a record: it was cut off")
                if kind == b"Z":
                    if content != digest.digest():
                        raise self._wrong(at, "the digest does not fit: the file was changed")
                    if file.read(1):
                        raise self._wrong(at + _HEAD + length, "the file goes on behind its digest")
                    self.digest = content.hex()
                    return
                digest.update(head)
                digest.update(content)
                at += _HEAD + length
                before = kind
                yield kind, content

    def _wrong(self, at: int, what: str) -> DamagedLog:
        return fault(f"byte {at}", f"{self.name}, byte {at}: {what}")


def is_backup(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
