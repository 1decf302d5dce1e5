"""Which proven statements may still not be trusted, for the key that signed them. Pure.

The append rules said what the log could know when it took an event in. Later it may have been told that a key was
in other hands from an earlier index on, and the verifier's own trust file may know more still.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ledger.rules import ActorKey
from ledger.trust import Trust


def with_trust(keys: Mapping[str, ActorKey], trust: Trust) -> dict[str, ActorKey]:
    """The keys as the log has them, each compromised from the earlier index that the log or `trust` names."""
    found = dict(keys)
    for key_id, index in trust.compromised.items():
        key = found.get(key_id)
        if key is not None and (key.compromised_from is None or index < key.compromised_from):
            found[key_id] = replace(key, compromised_from=index)
    return found


def distrust(key_id: str, key: ActorKey, index: int, trust: Trust) -> Iterator[tuple[str, str]]:
    """(reason, detail) of everything that speaks against what this key of an actor signed at this index."""
    if key.compromised_from is not None and index >= key.compromised_from:
        yield (
            "compromised-key",
            f"the key {key_id} of {key.actor!r} is not trusted from index {key.compromised_from} on",
        )
    pin = trust.actors.get(key.actor)
    if pin is None:
        return
    if pin.keys and key_id not in pin.keys:
        yield "unpinned-key", f"signed by key {key_id}, which is not one that you trust for {key.actor!r}"
    if pin.role and key.role != pin.role:
        yield "unpinned-role", f"{key.actor!r} is enrolled as {key.role!r}; you trust it as {pin.role!r}"
