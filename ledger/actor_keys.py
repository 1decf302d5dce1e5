"""The actors' keys as the log has them: who may sign, and since and until which event."""

from __future__ import annotations

from ledger import rules
from ledger.key_rules import KEY_KINDS
from ledger.reading import read_event
from ledger.rules import ActorKey, Known
from ledger.store import Store


class ActorKeys:
    """`known`: every key ever enrolled, by key id, after the first `size` events."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.known: dict[str, ActorKey] = {}
        self.size = 0
        self.catch_up(store.head.size)

    def catch_up(self, size: int) -> None:
        """Learn from the committed events up to `size`."""
        known, start = Known(keys=dict(self.known)), self.size
        while rows := self._store.select(start=start, stop=size, kinds=KEY_KINDS, limit=1_000):
            for row in rows:
                rules.learn_keys(known, read_event(row), row.position)
            start = rows[-1].position + 1
        self.known, self.size = known.keys, size
