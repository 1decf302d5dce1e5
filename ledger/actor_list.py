"""The actors of a log and all their keys, read out of its key events."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric import ed25519
from modelledger.ledger.v1 import actors_pb2

from ledger.envelope import load_public_key
from ledger.key_rules import KEY_KINDS
from ledger.reading import read_event
from ledger.rules import ActorKey, Known, learn_keys
from ledger.statement import Event
from ledger.store import Store

PAGE = 1_000


def read_actors(store: Store) -> dict[str, actors_pb2.Actor]:
    """By name. There are few key events, so they are read anew each time: nothing here can be out of date."""
    found: list[tuple[int, Event]] = []
    while rows := store.select(start=found[-1][0] + 1 if found else 0, kinds=KEY_KINDS, limit=PAGE):
        found += [(row.position, read_event(row)) for row in rows]
    return fold(found)


def fold(key_events: Iterable[tuple[int, Event]]) -> dict[str, actors_pb2.Actor]:
    """The actors by name, given the key events with their indexes."""
    known, reasons = Known(), {}
    for index, event in key_events:
        learn_keys(known, event, index)
        reasons[index] = str(event.data.get("reason", ""))
    actors: dict[str, actors_pb2.Actor] = {}
    for key in known.keys.values():
        actor = actors.setdefault(key.actor, actors_pb2.Actor(name=f"actors/{key.actor}"))
        actor.keys.append(_key(key, "" if key.retired_at is None else reasons[key.retired_at]))
        actor.role = key.role
        actor.revoked = key.retired_at is not None
    return dict(sorted(actors.items()))


def current(actor: actors_pb2.Actor) -> actors_pb2.ActorKey | None:
    """The key the actor signs with now."""
    return actor.keys[-1] if actor.keys and not actor.revoked else None


def _key(key: ActorKey, reason: str) -> actors_pb2.ActorKey:
    ed = isinstance(load_public_key(key.public_key), ed25519.Ed25519PublicKey)
    return actors_pb2.ActorKey(
        key_id=hashlib.sha256(key.public_key).hexdigest(),
        public_key=key.public_key,
        algorithm="Ed25519" if ed else "ECDSA P-256",
        enrolled_index=key.enrolled_at,
        retired_index=key.retired_at,
        reason=reason,
        compromised_from=key.compromised_from,
    )
