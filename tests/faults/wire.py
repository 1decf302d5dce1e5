"""The wire between callers and a ledger, which can be held and cut: a TCP proxy in a thread of its own.

with wire_to(ledger.address) as wire:          # callers connect to wire.address
    wire.hold()                                # requests pass, answers wait
    wire.cut()                                 # every connection ends; those that follow are whole again
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests import loops

PIECE = 1 << 16  # bytes


class Lane:
    """One direction."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.whole()

    def whole(self) -> None:
        self.open.set()
        self.left: int | None = None  # bytes that still pass before the wire is cut


class Wire:
    """What a test does to it; from any thread but its own."""

    def __init__(self, address: str, loop: asyncio.AbstractEventLoop) -> None:
        self._to = address.rsplit(":", 1)
        self._loop = loop
        self._requests, self._answers = Lane(), Lane()
        self._ends: set[asyncio.StreamWriter] = set()
        self._lanes: set[asyncio.Task[None]] = set()
        self.address = ""

    def hold(self) -> None:
        self._do(self._answers.open.clear)

    def cut(self) -> None:
        self._do(self._cut)

    def cut_after(self, *, requests: int | None = None, answers: int | None = None) -> None:
        """Cut it after so many bytes in one direction."""
        self._do(lambda: (setattr(self._requests, "left", requests), setattr(self._answers, "left", answers)))

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        self._cut()
        await asyncio.gather(*self._lanes, return_exceptions=True)

    async def _connect(self, caller: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        ledger, requests = await asyncio.open_connection(*self._to)
        self._ends |= {answers, requests}
        for source, sink, lane in ((caller, requests, self._requests), (ledger, answers, self._answers)):
            task = asyncio.create_task(self._pass_on(source, sink, lane))
            self._lanes.add(task)
            task.add_done_callback(self._lanes.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, lane: Lane) -> None:
        try:
            while data := await source.read(PIECE):
                await lane.open.wait()
                sink.write(data[: lane.left])
                await sink.drain()
                if lane.left is not None:
                    lane.left -= len(data[: lane.left])
                    if not lane.left:
                        self._cut()
        except ConnectionError:
            pass
        finally:
            sink.close()

    def _cut(self) -> None:
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()
        self._requests.whole()
        self._answers.whole()

    def _do(self, what: Callable[[], object]) -> None:
        async def now() -> None:
            what()

        asyncio.run_coroutine_threadsafe(now(), self._loop).result(10)


@contextmanager
def wire_to(address: str) -> Iterator[Wire]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    wire = Wire(address, loop)
    try:
        asyncio.run_coroutine_threadsafe(wire.open(), loop).result(10)
        yield wire
        asyncio.run_coroutine_threadsafe(wire.close(), loop).result(10)
    finally:
        loops.end(loop, thread)
