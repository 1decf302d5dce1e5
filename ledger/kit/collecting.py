"""How often Python looks for objects that only refer to each other."""

from __future__ import annotations

import gc

COLLECTED = 100_000  # objects more than before; a bundle that is audited has 15,000, and a batch that is written 10,000


def collect_rarely() -> None:
    """For a child process that has started: what is there stays and is not looked through, and work leaves few cycles.

    Python's own 700 objects are a tenth of what appending costs, the more the more modules are loaded. Not for a
    process that answers gRPC calls: each one that is refused leaves a cycle of 50 objects with its request, of up to
    4 MiB, in it.
    """
    gc.freeze()
    gc.set_threshold(COLLECTED)
