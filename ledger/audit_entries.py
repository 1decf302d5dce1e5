"""The part of an audit that needs no memory of the log, so that every core can do it: bytes in, facts out.

A keyid is the digest of its key, so a signature can be verified before it is known whether that key was enrolled
then; `ledger/audit.py` decides that, in order. What leaves a process here is small: an event's data goes along
only where the rules still ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ledger import envelope as dsse
from ledger import rules, schema, statement
from ledger.checkpoint import open_checkpoint
from ledger.errors import ModelLedgerError, Violation
from ledger.key_rules import KEY_KINDS
from ledger.merkle import leaf_hash
from ledger.note import NoteError, Verifier
from ledger.statement import Event

Keys = Mapping[str, bytes]  # keyid -> DER SubjectPublicKeyInfo


@dataclass(frozen=True, slots=True)
class ReadEntry:
    """One entry as far as it can be judged alone; of its event only what the rules ask of it where it stands.

    verified, failed: keyids of signatures by the keys that were given; untried: of all others.
    """

    event: Event
    payload_sha256: str
    verified: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    untried: tuple[str, ...]
    problems: tuple[Violation, ...]


@dataclass(frozen=True)
class ReadBundle:
    """Leaf hashes of all entries, each entry or what is wrong with it, and (size, root, problem) of each note."""

    leaf_hashes: bytes
    entries: list[ReadEntry | str]
    notes: list[tuple[int, bytes, str]]


def read_bundle(
    entries: Sequence[bytes], keys: Keys, notes: Sequence[bytes], verifiers: Sequence[Verifier]
) -> ReadBundle:
    """Read and verify what one bundle holds."""
    return ReadBundle(
        b"".join(map(leaf_hash, entries)),
        [_read(entry, keys) for entry in entries],
        [_open(note, verifiers) for note in notes],
    )


def verified_by(entry: bytes, keyid: str, public_key: bytes) -> str:
    """Verify one signature of an entry: empty, or what is wrong with it."""
    return _verify(dsse.parse(entry), keyid, public_key)


def _read(entry: bytes, keys: Keys) -> ReadEntry | str:
    try:
        envelope = dsse.parse(entry)
        event = statement.decode(envelope.payload)
    except ModelLedgerError as error:
        return error.message
    verified, failed, untried = [], [], []
    for signature in envelope.signatures:
        public_key = keys.get(signature.keyid)
        if public_key is None:
            untried.append(signature.keyid)
        elif problem := _verify(envelope, signature.keyid, public_key):
            failed.append((signature.keyid, problem))
        else:
            verified.append(signature.keyid)
    problems = (*schema.violations(event.kind, event.data), *rules.form(event))
    # What goes to the other process costs time there: of most events the rules ask nothing more.
    data = event.data if event.kind in KEY_KINDS else {}
    kept = Event(
        event.kind, event.stream, event.version, event.actor, event.subjects, data, event.materials, event.id, ""
    )
    return ReadEntry(kept, dsse.payload_digest(envelope), tuple(verified), tuple(failed), tuple(untried), problems)


def _verify(envelope: dsse.Envelope, keyid: str, public_key: bytes) -> str:
    try:
        dsse.verify(envelope, keyid, _public_key(public_key))
    except ModelLedgerError as error:
        return error.message
    return ""


def _open(note: bytes, verifiers: Sequence[Verifier]) -> tuple[int, bytes, str]:
    origin = note.partition(b"\n")[0].decode(errors="replace")
    try:
        checkpoint = open_checkpoint(note, verifiers, origin)
    except NoteError as error:
        return 0, b"", str(error)
    return checkpoint.size, checkpoint.root, ""


@lru_cache(1_000)
def _public_key(der: bytes) -> dsse.PublicKey:
    return dsse.load_public_key(der)
