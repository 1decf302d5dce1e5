"""Reading what callers send, before it is decided on: envelope, signatures, statement, schema.

All of it is computation on one request at a time; nothing here touches the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from ledger import envelope as dsse
from ledger import rules, schema, statement
from ledger.errors import ModelLedgerError, Violation
from ledger.rules import ActorKey, Candidate
from ledger.statement import Event
from ledger.store import StoredRow

Keys = Mapping[str, ActorKey]


class Read(NamedTuple):
    """One envelope, read and verified, and its bytes as they came."""

    candidate: Candidate
    entry: bytes


ReadRequest = list[Read] | Exception


def read_requests(requests: Sequence[Sequence[bytes]], keys: Keys) -> list[ReadRequest]:
    """Every request's events, or what is wrong with the first one that cannot be read."""
    return [_read_request(envelopes, keys) for envelopes in requests]


def _read_request(envelopes: Sequence[bytes], keys: Keys) -> ReadRequest:
    items = []
    for position, entry in enumerate(envelopes):
        try:
            items.append(_read(entry, keys))
        except ModelLedgerError as error:
            where = f"envelopes[{position}]"
            violations = [replace(v, field=f"{where}.{v.field}") for v in error.violations]
            return type(error)(f"{where}: {error.message}", violations=violations)
        except Exception as error:  # a fault of ours in reading one request fails that request alone
            return error
    return items


def _read(entry: bytes, keys: Keys) -> Read:
    envelope = dsse.parse(entry)
    event = statement.decode(envelope.payload)
    verified, problems = set(), list(schema.violations(event.kind, event.data))
    for signature in envelope.signatures:
        key = keys.get(signature.keyid) or (None if keys else rules.founder(event))
        if key is None:
            continue  # a stranger's signature neither helps nor harms
        try:
            dsse.verify(envelope, signature.keyid, _public_key(key.public_key))
            verified.add(signature.keyid)
        except ModelLedgerError as error:
            problems.append(Violation("signatures", error.reason, error.message))
    candidate = Candidate(event, dsse.payload_digest(envelope), frozenset(verified), tuple(problems))
    return Read(candidate, entry)


@lru_cache(1_000)
def _public_key(der: bytes) -> dsse.PublicKey:
    return dsse.load_public_key(der)


def read_event(row: StoredRow) -> Event:
    """The event inside a stored row, which was read and verified when it was appended."""
    return statement.recall(dsse.stored_payload(row.entry))
