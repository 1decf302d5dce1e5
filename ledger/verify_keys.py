"""Which proven statements may still not be trusted, for the key that signed them. Pure.

The append rules said what the log could know when it took an event in. Later it may have been told that a key was
in other hands from an earlier index on, and the verifier's own trust file may know more still.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from ledger.rules import ActorKey
from ledger.trust import Trust

UNPINNED = "unpinned-"  # how reasons begin that only the verifier's own trust file gives


@dataclass(frozen=True, order=True)
class Untrusted:
    """An event that the log holds rightly, and that a verifier does not trust."""

    index: int
    reason: str
    detail: str


@dataclass
class Signed:
    """Which key signed which events. Eight bytes for each, so a whole log can be remembered until its end is read."""

    _indexes: dict[str, array[int]] = field(default_factory=dict)

    def add(self, index: int, actor: str, key_ids: Iterable[str], keys: Mapping[str, ActorKey]) -> None:
        """The event of `actor` at `index` carries signatures by these keys; another actor's do not matter."""
        for key_id in key_ids:
            if key_id in keys and keys[key_id].actor == actor:
                self.extend(key_id, (index,))

    def extend(self, key_id: str, indexes: Iterable[int]) -> None:
        """The events at these indexes carry signatures by this key of their actor."""
        self._indexes.setdefault(key_id, array("Q")).extend(indexes)

    def untrusted(self, keys: Mapping[str, ActorKey], trust: Trust) -> list[Untrusted]:
        """Every event that is not trusted, by index. `keys`: as they are after the last event."""
        known = with_trust(keys, trust)
        return sorted(
            Untrusted(index, reason, detail)
            for key_id, indexes in self._indexes.items()
            for index in indexes
            for reason, detail in distrust(key_id, known[key_id], index, trust)
        )


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
