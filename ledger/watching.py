"""Following the log: every event from a position on, in order, for as long as somebody reads.

    page N is being sent ──► page N+1 is read meanwhile ──► caught up: wait for the next commit

What one watcher may hold is bounded: one page that it has not taken yet and one that was read ahead, each about
MAX_PAGE_BYTES. A watcher that takes nothing for `stall_seconds` is ended with Overloaded and the index to go on
from; so is one too many at the start. Nothing is lost by that: the log is still there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio
from modelledger.ledger.v1 import ledger_pb2

from ledger.errors import Overloaded
from ledger.event_messages import fill, read_page
from ledger.kit.live import Changes
from ledger.store import Store
from ledger.writing import Head

BATCH = 500  # events in one message
MAX_PAGE_BYTES = 1 << 20

_LOG = "log"  # the only thing that changes here


@dataclass(frozen=True)
class WatchLimits:
    """watchers: at the same time in this process; stall_seconds: how long one may take nothing."""

    watchers: int = 256
    stall_seconds: float = 60.0


@dataclass(frozen=True)
class Wanted:
    """Where a watcher begins, and which events it wants; everything when nothing is said."""

    start: int = 0
    stream_prefix: str = ""
    kinds: Sequence[str] = ()


class Call(Protocol):
    """What is needed of a grpc.aio.ServicerContext."""

    def write(self, message: ledger_pb2.WatchEventsResponse) -> Awaitable[None]: ...
    def add_done_callback(self, callback: Callable[[Any], None]) -> None: ...


class Watchers:
    """Everybody who follows the log through this process."""

    def __init__(self, store: Store, limits: WatchLimits | None = None) -> None:
        self._store = store
        self._limits = limits or WatchLimits()
        self._changes = Changes()
        self._running = 0
        store.listeners.add(self._committed)

    async def follow(self, wanted: Wanted, call: Call) -> None:
        """Send pages until the call is cancelled. Raises Overloaded: too many watchers, or this one is too slow."""
        self._admit(call)
        with suppress(grpc.aio.InternalError):  # the caller went away while it was being sent something
            await self._send_pages(wanted, call)

    async def _send_pages(self, wanted: Wanted, call: Call) -> None:
        with self._changes.watching(_LOG) as changed:
            page = await self._read(wanted, wanted.start)
            while True:
                while not page.caught_up:
                    following = asyncio.create_task(self._read(wanted, page.next_index))
                    try:
                        await self._send(call, page)
                        page = await following
                    finally:
                        following.cancel()
                await self._send(call, page)
                while self._store.head.size <= page.next_index:
                    await changed()
                page = await self._read(wanted, page.next_index)

    def _admit(self, call: Call) -> None:
        if self._running >= self._limits.watchers:
            raise Overloaded(
                f"{self._running} watchers follow the log through this process, and more are not allowed; "
                "retry in a while, or raise max_watchers in the [ledger] section"
            )
        self._running += 1
        # Not when `follow` ends: what a slow reader was sent is held until its call is over.
        call.add_done_callback(self._left)

    def _left(self, call: object) -> None:
        self._running -= 1

    async def _send(self, call: Call, page: ledger_pb2.WatchEventsResponse) -> None:
        try:
            # Not wait_for: in Python 3.11 that forgets a cancellation which comes in the moment of the answer.
            async with asyncio.timeout(self._limits.stall_seconds):
                await call.write(page)
        except TimeoutError:
            first = page.events[0].index if page.events else page.next_index
            raise Overloaded(
                f"nothing was read for {self._limits.stall_seconds:g} seconds; go on from next_index of the last "
                f"message that was read, or from index {first}",
                metadata={"next_index": str(first)},
            ) from None

    async def _read(self, wanted: Wanted, position: int) -> ledger_pb2.WatchEventsResponse:
        return await asyncio.to_thread(self._page, wanted, position)

    def _page(self, wanted: Wanted, position: int) -> ledger_pb2.WatchEventsResponse:
        size = self._store.head.size
        rows, position = read_page(
            self._store, position, size, wanted.stream_prefix, wanted.kinds, BATCH, MAX_PAGE_BYTES
        )
        page = ledger_pb2.WatchEventsResponse(next_index=position, caught_up=position >= size)
        fill(page.events, rows)
        return page

    def _committed(self, head: Head) -> None:
        self._changes.publish(_LOG)
