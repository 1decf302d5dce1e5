"""What every child process does first: keep stdout for its messages, and end when nobody is left to read them."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h

Report = Callable[[Mapping[str, Any]], None]


def signal_name(number: int) -> str:
    """Also of those that have none, signal(7)."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def claim_stdout() -> Report:
    """Keep the real stdout for messages, one JSON object a line; whatever else prints to it, in Python or in C, lands
    on stderr. The answer sends one message; it raises BrokenPipeError when nobody listens any more."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def report(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message, allow_nan=False).encode() + b"\n")
        channel.flush()

    return report


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends, prctl(2). `parent`: the process id that
    the parent gave; without it one that ended before this call goes unnoticed."""
    parent = os.getppid() if parent is None else parent
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)  # it ended before the lines above
