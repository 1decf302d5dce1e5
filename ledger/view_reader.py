"""Reading a view, from the event loop of a service: you read your own writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ledger.errors import Unreachable
from ledger.store import Store
from ledger.view_store import ViewRows

Answer = TypeVar("Answer")


class ViewReader:
    """Reads the view `name` of a store. `reach(n)` waits until it has folded the first n events."""

    def __init__(self, store: Store, name: str, reach: Callable[[int], Awaitable[None]]) -> None:
        self._store = store
        self._name = name
        self._reach = reach

    async def read(self, query: Callable[[ViewRows], Answer]) -> Answer:
        """The query's answer from one snapshot that holds every event that is in the log now."""
        position = self._store.head.size
        await self._reach(position)
        return await asyncio.to_thread(self._query, query, position)

    def _query(self, query: Callable[[ViewRows], Answer], position: int) -> Answer:
        with self._store.views.open(self._name) as rows:
            if rows.next_position < position:
                raise Unreachable(f"the view {self._name!r} is being rebuilt; retry in a moment")
            return query(rows)
