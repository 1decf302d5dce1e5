"""Telling watchers inside this process that something changed, from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

# Another process may have written the change; looking again after this long finds it too.
LOOK_AGAIN = 1.0  # seconds


class Changes:
    """`publish(key)` wakes everybody in `watching(key)`. Losing a watcher changes nothing.

    with changes.watching(key) as changed:
        while True:
            look()
            await changed()
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = defaultdict(set)

    def publish(self, key: str) -> None:
        with self._lock:
            watchers = list(self._watchers.get(key, ()))
        for loop, event in watchers:
            loop.call_soon_threadsafe(event.set)

    @contextmanager
    def watching(self, key: str) -> Iterator[Callable[[], Awaitable[None]]]:
        """What waits for a change since it last did, and now and then ends without one.

        Not an asynchronous generator: one that waits cannot be closed when its event loop has ended.
        """
        event = asyncio.Event()
        watcher = (asyncio.get_running_loop(), event)

        async def changed() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await event.wait()
            event.clear()

        with self._lock:
            self._watchers[key].add(watcher)
        try:
            yield changed
        finally:
            with self._lock:
                self._watchers[key].discard(watcher)
                if not self._watchers[key]:
                    del self._watchers[key]
