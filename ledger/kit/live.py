"""Telling watchers inside this process that something changed, from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator

# Another process may have written the change; looking again after this long finds it too.
LOOK_AGAIN = 1.0  # seconds


class Changes:
    """`publish(key)` wakes everybody in `watch(key)`. Losing a watcher changes nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = defaultdict(set)

    def publish(self, key: str) -> None:
        with self._lock:
            watchers = list(self._watchers.get(key, ()))
        for loop, event in watchers:
            loop.call_soon_threadsafe(event.set)

    async def watch(self, key: str) -> AsyncGenerator[None, None]:
        """Yields at once, then after every change, and now and then without one."""
        watcher = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._watchers[key].add(watcher)
        try:
            while True:
                watcher[1].clear()
                yield
                try:
                    await asyncio.wait_for(watcher[1].wait(), LOOK_AGAIN)
                except TimeoutError:
                    continue
        finally:
            with self._lock:
                self._watchers[key].discard(watcher)
                if not self._watchers[key]:
                    del self._watchers[key]
