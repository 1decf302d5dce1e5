"""Where a service waits for another one. The event loop's own threads are left to work that waits for nobody.

With all services in one process, callers that wait for the ledger in the loop's few threads would keep the ledger from
the threads it needs to answer them.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_waiting = ThreadPoolExecutor(max_workers=32, thread_name_prefix="waiting")


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that may wait for another service in a thread. As asyncio.to_thread, but not in its threads."""
    work = partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_waiting, work)
