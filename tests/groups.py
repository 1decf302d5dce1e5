"""Consumer groups for tests: a log of plain rows, a clock that is set by hand."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from ledger.group_store import Group, GroupStore
from ledger.groups import Claimed, Groups
from ledger.store import Store
from ledger.writing import Row
from tests.databases import StoreFactory

KIND = "EpochCompleted"


def write(store: Store, streams: Sequence[str], kind: str = KIND, size: int = 16) -> list[int]:
    """The next event of each of these streams, in one transaction; their positions. No rule looks at them."""
    versions: dict[str, int] = {}
    first, rows = store.head.size, []
    for stream in streams:
        if stream not in versions:
            newest = store.select(stream=stream, descending=True, limit=1)
            versions[stream] = newest[0].version if newest else 0
        versions[stream] += 1
        entry = uuid.uuid4().bytes.ljust(size)
        rows.append(Row(str(uuid.uuid4()), stream, versions[stream], kind, "0" * 64, entry))
    with store.writing() as writing:
        writing.append(rows)
    return list(range(first, first + len(rows)))


def group(name: str = "mail", **more: object) -> Group:
    settings = {
        "stream_prefix": "",
        "kinds": (),
        "start_index": 0,
        "max_attempts": 3,
        "max_in_flight": 100,
        "position": 0,
    }
    return Group(name, **{**settings, **more})  # type: ignore[arg-type]


def indexes(claimed: Claimed) -> list[int]:
    return [delivery.event.position for delivery in claimed.deliveries]


@dataclass
class World:
    """One log and its groups. `restart` is what a new ledger process on the same database sees."""

    factory: StoreFactory
    store: Store
    now: float = 1_000_000.0

    def __post_init__(self) -> None:
        self._open()

    def restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._rows.close()

    def _open(self) -> None:
        self._rows = GroupStore(self.factory.url_of(self.store))
        self.groups = Groups(self.store, self._rows, lambda: self.now)
