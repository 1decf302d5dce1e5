"""Consumers that wait for the next event of their group.

A claim that finds nothing looks again after every commit to the log and whenever something of its group is settled;
once a second it looks anyway: for leases that ended, retries that are due, and what other processes did. The consumers
of one group look one after another, and one that finds nothing has looked for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ledger.errors import Overloaded
from ledger.groups import Claimed, Groups
from ledger.kit.live import LOOK_AGAIN, Changes
from ledger.store import Store
from ledger.writing import Head

MAX_WAITING = 1_000  # claims at the same time
REST = 0.02  # seconds, between two looks of one consumer: a busy log costs an idle group little


@dataclass
class _Line:
    """The consumers of one group whose claims are being answered."""

    consumers: int = 0
    settled: int = 0  # how often something of the group was settled meanwhile
    found_empty: tuple[int, int] = (-1, -1)  # the log's size and `settled` when there was nothing
    at: float = 0.0  # when that was
    look: asyncio.Lock = field(default_factory=asyncio.Lock)


class Waiting:
    """Everybody who waits for events of any group in this process. Belongs to one event loop."""

    def __init__(self, store: Store, groups: Groups) -> None:
        self._store = store
        self._groups = groups
        self._changes = Changes()
        self._lines: dict[str, _Line] = {}
        store.listeners.add(self._committed)

    async def claim(
        self,
        name: str,
        consumer: str,
        limit: int,
        lease_seconds: float,
        wait_seconds: float = 0.0,
        *,
        resume: bool = False,
    ) -> Claimed:
        """Groups.claim; when there is nothing, wait for about this long. Raises Overloaded: too many wait."""
        deadline = asyncio.get_running_loop().time() + wait_seconds
        with self._in_line(name) as line, self._changes.watching(name) as changed:
            while True:
                claimed = await self._look(line, name, consumer, limit, lease_seconds, resume)
                resume = False  # its earlier life is over
                if claimed.deliveries or asyncio.get_running_loop().time() >= deadline:
                    return claimed
                await asyncio.sleep(REST)
                await changed()

    def settled(self, name: str) -> None:
        """Something of this group was settled, so there may be something to claim."""
        if name in self._lines:
            self._lines[name].settled += 1
            self._changes.publish(name)

    async def _look(
        self, line: _Line, name: str, consumer: str, limit: int, lease_seconds: float, resume: bool
    ) -> Claimed:
        async with line.look:
            now, state = asyncio.get_running_loop().time(), (self._store.head.size, line.settled)
            if not resume and line.found_empty == state and now - line.at < LOOK_AGAIN / 2:
                return Claimed()
            claimed = await asyncio.to_thread(self._groups.claim, name, consumer, limit, lease_seconds, resume=resume)
            if not claimed.deliveries:
                line.found_empty, line.at = state, now
            return claimed

    @contextmanager
    def _in_line(self, name: str) -> Iterator[_Line]:
        if sum(line.consumers for line in self._lines.values()) >= MAX_WAITING:
            raise Overloaded(
                f"{MAX_WAITING} consumers wait for events already; retry in a while", retry_after=LOOK_AGAIN
            )
        line = self._lines.setdefault(name, _Line())
        line.consumers += 1
        try:
            yield line
        finally:
            line.consumers -= 1
            if not line.consumers:
                del self._lines[name]

    def _committed(self, head: Head) -> None:
        for name in list(self._lines):
            self._changes.publish(name)
