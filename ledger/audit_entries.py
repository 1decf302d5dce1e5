"""The part of an audit that needs no memory of the log, so that every core can do it: bytes in, facts out.

A keyid is the digest of its key, so a signature can be verified before it is known whether that key was enrolled
then; `ledger/audit.py` decides that, in order. What leaves a process here is small: of a bundle of plain events what
they ask and add (audit_plain.py), of another its entries, with an event's data only where the rules still ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from ledger import envelope as dsse
from ledger import rules, schema, statement
from ledger.audit_plain import Plain
from ledger.audit_source import Columns
from ledger.checkpoint import open_checkpoint
from ledger.errors import ModelLedgerError, Violation
from ledger.key_rules import KEY_KINDS
from ledger.merkle import leaf_hash
from ledger.note import NoteError, Verifier
from ledger.statement import Event

Keys = Mapping[str, bytes]  # keyid -> DER SubjectPublicKeyInfo
T = TypeVar("T")


class Signatures(NamedTuple):
    """verified, failed: keyids of signatures by the keys that were given; untried: of all others."""

    verified: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    untried: tuple[str, ...]


class ReadEntry(NamedTuple):
    """One entry as far as it can be judged alone; of its event only what the rules ask of it where it stands."""

    event: Event
    payload_sha256: str
    signatures: Signatures
    problems: tuple[Violation, ...]


@dataclass(frozen=True, slots=True)
class ReadBundle:
    """Leaf hashes of all entries, (size, root, problem) of each note, and either `plain` or the entries.

    plain: when all events are plain, and the columns kept with them say what they say.
    entries: each entry, or what is wrong with it.
    """

    leaf_hashes: bytes
    notes: list[tuple[int, bytes, str]]
    plain: Plain | None
    entries: list[ReadEntry | str]


class _Read(NamedTuple):
    """All entries of a bundle, step by step. A text says what is wrong with an entry that could not be read."""

    envelopes: list[dsse.Envelope | str]
    events: list[Event | str]
    signatures: list[Signatures]
    problems: list[tuple[Violation, ...]]


def read_bundle(
    entries: Sequence[bytes],
    keys: Keys,
    notes: Sequence[bytes],
    verifiers: Sequence[Verifier],
    columns: Columns | None = None,
) -> ReadBundle:
    """Read and verify what one bundle holds."""
    read = _read(entries, keys)
    plain = _plain(read, columns)
    opened = [_open(note, verifiers) for note in notes]
    return ReadBundle(b"".join(map(leaf_hash, entries)), opened, plain, [] if plain else _entries(read))


def read_entries(entries: Sequence[bytes], keys: Keys) -> list[ReadEntry | str]:
    """Each entry, or what is wrong with it."""
    return _entries(_read(entries, keys))


def verified_by(entry: bytes, keyid: str, public_key: bytes) -> str:
    """Verify one signature of an entry: empty, or what is wrong with it."""
    return _verify(dsse.parse(entry), keyid, public_key)


def _read(entries: Sequence[bytes], keys: Keys) -> _Read:
    """One step with all entries, then the next: so each step's code and tables stay in the core's caches."""
    envelopes = [_attempt(dsse.parse, entry) for entry in entries]
    signatures = [_signatures(envelope, keys) for envelope in envelopes]
    events = [e if isinstance(e, str) else _attempt(statement.decode, e.payload) for e in envelopes]
    problems = [() if isinstance(e, str) else (*schema.violations(e.kind, e.data), *rules.form(e)) for e in events]
    return _Read(envelopes, events, signatures, problems)


def _attempt(read: Callable[[bytes], T], data: bytes) -> T | str:
    try:
        return read(data)
    except ModelLedgerError as error:
        return error.message


def _signatures(envelope: dsse.Envelope | str, keys: Keys) -> Signatures:
    verified, failed, untried = [], [], []
    if not isinstance(envelope, str):
        message = dsse.pae(envelope.payload_type, envelope.payload)
        for signature in envelope.signatures:
            keyid, public_key = signature.keyid, keys.get(signature.keyid)
            if public_key is None:
                untried.append(keyid)
            elif dsse.is_signed(dsse.load_public_key(public_key), signature.sig, message):
                verified.append(keyid)
            else:
                failed.append((keyid, _verify(envelope, keyid, public_key)))  # which says what is wrong
    return Signatures(tuple(verified), tuple(failed), tuple(untried))


def _plain(read: _Read, columns: Columns | None) -> Plain | None:
    events = [event for event in read.events if not isinstance(event, str)]
    keyids = [one.verified[0] for one in read.signatures if len(one.verified) == 1 and not one.failed + one.untried]
    if len(events) != len(read.events) or len(keyids) != len(events) or any(read.problems):
        return None
    return Plain.of(events, keyids) if columns is None or _agree(columns, events, read.envelopes) else None


def _agree(kept: Columns, events: Sequence[Event], envelopes: Sequence[dsse.Envelope | str]) -> bool:
    """Whether the columns kept beside the entries say what these say; leaf hashes are for the tree to compare."""
    return (
        kept.id == tuple([event.id for event in events])
        and kept.stream == tuple([event.stream for event in events])
        and kept.version == tuple([event.version for event in events])
        and kept.kind == tuple([event.kind for event in events])
        and (
            kept.payload_sha256 is None
            or kept.payload_sha256 == tuple([dsse.payload_digest(e) for e in envelopes if not isinstance(e, str)])
        )
    )


def _entries(read: _Read) -> list[ReadEntry | str]:
    return [
        envelope
        if isinstance(envelope, str)
        else event
        if isinstance(event, str)
        else ReadEntry(_asked(event), dsse.payload_digest(envelope), signatures, problems)
        for envelope, event, signatures, problems in zip(*read, strict=True)
    ]


def _asked(event: Event) -> Event:
    """As much of an event as the rules ask for where it stands: what goes to another process costs time there."""
    return event if event.kind in KEY_KINDS else replace(event, data={}, time="")


def _verify(envelope: dsse.Envelope, keyid: str, public_key: bytes) -> str:
    try:
        dsse.verify(envelope, keyid, dsse.load_public_key(public_key))
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
