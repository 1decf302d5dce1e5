"""The end of an event loop that a test ran in a thread of its own."""

from __future__ import annotations

import asyncio
import threading


def end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """As asyncio.run ends one. What a server's last calls left behind is thrown away now, and not within another test,
    in whose stderr grpc would say so."""
    asyncio.run_coroutine_threadsafe(_cancel_the_rest(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
