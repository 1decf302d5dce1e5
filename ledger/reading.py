"""Reading what callers send, before it is decided on: envelope, signatures, statement, schema.

All of it is computation on one request at a time, but for the signatures, which are verified together; nothing here
touches the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ledger import envelope as dsse
from ledger import rules, schema, statement
from ledger.errors import ModelLedgerError, Violation
from ledger.rules import ActorKey, Candidate
from ledger.statement import Event
from ledger.store import StoredRow
from ledger.verifying import Check, Verdicts, Verify, verify_alone

Keys = Mapping[str, ActorKey]


class Read(NamedTuple):
    """One envelope, read and verified, and its bytes as they came."""

    candidate: Candidate
    entry: bytes


class _Opened(NamedTuple):
    """One envelope before its signatures are verified: of those that known keys may have made, key ids and checks."""

    entry: bytes
    event: Event
    payload_sha256: str
    problems: tuple[Violation, ...]
    keyids: list[str]
    checks: list[Check]


ReadRequest = list[Read] | Exception
Reading = Callable[[], list[ReadRequest]]
"""Every request's events, or what is wrong with the first one that cannot be read."""


def begin_reading(requests: Sequence[Sequence[bytes]], keys: Keys, verify: Verify = verify_alone) -> Reading:
    """Read everything but the signatures, which are begun with; what it gives waits for their verdicts."""
    opened = [_open_request(envelopes, keys) for envelopes in requests]
    readable = [item for items in opened if isinstance(items, list) for item in items]
    return partial(_finish, opened, verify([check for item in readable for check in item.checks]))


def _finish(opened: Sequence[list[_Opened] | Exception], found: Verdicts) -> list[ReadRequest]:
    verdicts = iter(found())
    return [[_read(item, verdicts) for item in items] if isinstance(items, list) else items for items in opened]


def _open_request(envelopes: Sequence[bytes], keys: Keys) -> list[_Opened] | Exception:
    items = []
    for position, entry in enumerate(envelopes):
        try:
            items.append(_open(entry, keys))
        except ModelLedgerError as error:
            where = f"envelopes[{position}]"
            violations = [replace(v, field=f"{where}.{v.field}") for v in error.violations]
            return type(error)(f"{where}: {error.message}", violations=violations)
        except Exception as error:  # a fault of ours in reading one request fails that request alone
            return error
    return items


def _open(entry: bytes, keys: Keys) -> _Opened:
    envelope = dsse.parse(entry)
    event = statement.decode(envelope.payload)
    message = dsse.pae(envelope.payload_type, envelope.payload)
    keyids, checks = [], []
    for signature in envelope.signatures:
        key = keys.get(signature.keyid) or (None if keys else rules.founder(event))
        if key is None:
            continue  # a stranger's signature neither helps nor harms
        keyids.append(signature.keyid)
        checks.append((key.public_key, signature.sig, message))
    problems = schema.violations(event.kind, event.data)
    return _Opened(entry, event, dsse.payload_digest(envelope), problems, keyids, checks)


def _read(item: _Opened, verdicts: Iterator[bool]) -> Read:
    verified, problems = set(), list(item.problems)
    for keyid in item.keyids:
        if next(verdicts):
            verified.add(keyid)
        else:
            error = dsse.misfit(keyid)
            problems.append(Violation("signatures", error.reason, error.message))
    return Read(Candidate(item.event, item.payload_sha256, frozenset(verified), tuple(problems)), item.entry)


def read_event(row: StoredRow) -> Event:
    """The event inside a stored row, which was read and verified when it was appended."""
    return statement.recall(dsse.stored_payload(row.entry))
