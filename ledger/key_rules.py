"""The append rules for events about actors' keys: enrolment, rotation and revocation. Pure.

A new key proves that somebody holds it (possession.py). A key that is retired may be said to have been in other
hands from an earlier index on: the log keeps what it signed there, and verifiers do not trust it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ledger.envelope import load_public_key
from ledger.errors import InvalidInput, Violation
from ledger.events import ROLES
from ledger.possession import is_proven
from ledger.statement import Artifact, Event

if TYPE_CHECKING:
    from ledger.rules import ActorKey

KEY_KINDS = ("LogCreated", "ActorEnrolled", "ActorKeyRotated", "ActorRevoked")


def about(event: Event) -> str:
    """The actor whose keys a key event is about."""
    return event.actor if event.kind == "LogCreated" else str(event.data.get("actor"))


def check_keys(event: Event, keys: Mapping[str, ActorKey], current: ActorKey | None, size: int) -> Iterator[Violation]:
    """What is wrong with a key event, given all keys so far and the one that the event's actor has at `size`."""
    actor = about(event)
    if event.kind != "LogCreated" and event.stream != f"actors/{actor}":
        yield Violation("predicate.event.stream", "MALFORMED_EVENT", f"is not actors/{actor}")
    if event.kind == "ActorRevoked":
        if current is None:
            yield Violation("predicate.data.actor", "UNKNOWN_ACTOR", f"{actor!r} has no key to revoke")
        elif Artifact(f"actors/{actor}", hashlib.sha256(current.public_key).hexdigest()) not in event.subjects:
            yield Violation("subject", "MALFORMED_EVENT", f"is not actors/{actor} with its present key's digest")
        yield from _compromise(event, current, size)
        return
    name = "actorPublicKey" if event.kind == "LogCreated" else "publicKey"
    der = decode(event.data.get(name))
    if der is None:
        yield Violation(f"predicate.data.{name}", "MALFORMED_EVENT", "is not base64")
        return
    try:
        load_public_key(der)
    except InvalidInput as error:
        yield Violation(f"predicate.data.{name}", "MALFORMED_EVENT", error.message)
        return
    key_id = hashlib.sha256(der).hexdigest()
    if Artifact(f"actors/{actor}", key_id) not in event.subjects:
        yield Violation("subject", "MALFORMED_EVENT", f"is not actors/{actor} with the key's digest")
    existing = keys.get(key_id)
    # LogCreated already made the ledger's key known; its enrolment repeats it for the record.
    repeats = (
        existing is not None
        and existing.actor == actor
        and existing.enrolled_at == 0
        and existing.retired_at is None  # a replaced key does not come back
    )
    if existing is not None and not repeats:
        yield Violation(f"predicate.data.{name}", "ALREADY_EXISTS", f"is already the key of {existing.actor!r}")
    if event.kind == "ActorEnrolled":
        if event.data.get("role") not in ROLES:
            yield Violation("predicate.data.role", "MALFORMED_EVENT", f"is not one of {', '.join(ROLES)}")
        if current is not None and not repeats:
            yield Violation("predicate.data.actor", "ALREADY_EXISTS", f"{actor!r} has a key; rotate it")
    if event.kind == "ActorKeyRotated" and current is None:
        yield Violation("predicate.data.actor", "UNKNOWN_ACTOR", f"{actor!r} has no key to rotate")
    yield from _possession(event, current, der)
    yield from _compromise(event, current, size)


def _possession(event: Event, current: ActorKey | None, der: bytes) -> Iterator[Violation]:
    """A new key proves that somebody holds it. Logs of earlier versions enrolled actors without."""
    proof = decode(event.data.get("possession"))
    if event.kind == "LogCreated" or (event.kind == "ActorEnrolled" and "possession" not in event.data):
        return
    replaced = hashlib.sha256(current.public_key).hexdigest() if current and event.kind == "ActorKeyRotated" else ""
    if proof is None or not is_proven(about(event), replaced, der, proof):
        yield Violation(
            "predicate.data.possession",
            "INVALID_SIGNATURE",
            "is not the new key's signature for this actor and this rotation (ledger/possession.py says over what)",
        )


def _compromise(event: Event, key: ActorKey | None, size: int) -> Iterator[Violation]:
    """From where on a retired key is not trusted: while it was enrolled, and not in the future."""
    try:
        index = compromised_from(event.data)
    except ValueError as error:
        yield Violation("predicate.data.compromisedFrom", "MALFORMED_EVENT", str(error))
        return
    if index is not None and key is not None and not key.enrolled_at <= index <= size:
        yield Violation(
            "predicate.data.compromisedFrom",
            "MALFORMED_EVENT",
            f"{index} is not between the key's enrolment at index {key.enrolled_at} and this event at {size}",
        )


def compromised_from(data: Mapping[str, Any]) -> int | None:
    """The index in the data of a rotation or revocation; None when it names none. Raises ValueError."""
    # proto3 JSON reads both spellings of a field and writes an int64 as text; 0 is what an absent field means.
    value = data.get("compromisedFrom", data.get("compromised_from", 0))
    text = str(value) if type(value) in (int, str) else ""
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise ValueError("is not an index")
    return int(text) or None


def decode(text: Any) -> bytes | None:
    """Bytes from their one base64 spelling."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return None
    return data if data and base64.b64encode(data).decode() == text else None
