"""Python values over a pipe between two processes of ours: four bytes of length, then a pickle."""

from __future__ import annotations

import os
import pickle
import select
import time
from collections.abc import Iterator
from typing import Any

PIPE = 1 << 20  # bytes; what one user's pipe may hold, pipe(7)


def frame(value: Any) -> bytes:
    """A value as it goes over the pipe."""
    data = pickle.dumps(value, protocol=5)
    return len(data).to_bytes(4, "big") + data


class Incoming:
    """Frames that come in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, data: bytes) -> Iterator[Any]:
        """What is complete with these bytes. Raises anything at all for what another release wrote."""
        self._buffer += data
        while len(self._buffer) >= (end := 4 + int.from_bytes(self._buffer[:4], "big")) > 4:
            yield pickle.loads(self._buffer[4:end])  # noqa: S301  # a process of ours wrote it
            del self._buffer[:end]


class Frames:
    """What comes over a pipe."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._incoming = Incoming()
        self._there = select.poll()
        self._there.register(file, select.POLLIN)

    def read(self) -> list[Any] | None:
        """What is complete with what is there, after waiting for something; None at the pipe's end."""
        data = os.read(self._file, PIPE)
        return list(self._incoming.add(data)) if data else None

    def watch(self, seconds: float) -> None:
        """Wait so long for something without going to sleep; whoever else wants this core has it first."""
        until = time.monotonic() + seconds
        while not self._there.poll(0) and time.monotonic() < until:
            os.sched_yield()

    def take(self, *, wait: bool) -> list[Any]:
        """Everything that is there; with `wait` one thing at least, or nothing at the pipe's end."""
        found: list[Any] = []
        while not found if wait else self._there.poll(0):
            if (more := self.read()) is None:
                break
            found += more
        return found
