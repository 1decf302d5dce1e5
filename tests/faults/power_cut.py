"""What is left of some files after a power cut: what was flushed, and any of what was not.

The strictest disk that is allowed: a write is in memory until a flush of its file succeeds, and what a failed flush
did not write is never written, although everybody goes on reading it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.strace import Call


@dataclass
class Disk:
    """Some files as the disk has them; `apply` is told every system call that was made on them."""

    flushed: dict[str, bytearray]
    waiting: dict[str, list[Call]] = field(default_factory=dict)
    failed_flushes: int = 0

    @classmethod
    def holding(cls, *files: Path) -> Disk:
        return cls({str(file): bytearray(file.read_bytes() if file.exists() else b"") for file in files})

    def apply(self, call: Call) -> None:
        if call.path not in self.flushed:
            return
        waiting = self.waiting.setdefault(call.path, [])
        if call.name in ("fdatasync", "fsync"):
            if call.result == 0:
                _write(self.flushed[call.path], waiting)
            else:
                self.failed_flushes += 1
            waiting.clear()
        elif call.name == "unlink":
            self.flushed[call.path].clear()
            waiting.clear()
        elif call.result >= 0:
            assert call.name in ("pwrite64", "ftruncate"), f"not foreseen: {call}"
            waiting.append(call)

    def after_a_power_cut(self, chances: random.Random) -> Mapping[str, bytes]:
        """Everything that was flushed, and as chance has it of what was not."""
        left = {}
        for path, content in self.flushed.items():
            on_disk = bytearray(content)
            _write(on_disk, [call for call in self.waiting.get(path, ()) if chances.random() < 0.5])
            left[path] = bytes(on_disk)
        return left


def _write(content: bytearray, writes: list[Call]) -> None:
    for call in writes:
        if call.name == "ftruncate":
            del content[call.offset :]
            content.extend(bytes(call.offset - len(content)))
            continue
        content.extend(bytes(max(0, call.offset - len(content))))
        content[call.offset : call.offset + call.result] = call.content[: call.result]
