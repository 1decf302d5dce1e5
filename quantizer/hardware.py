"""The machine as the kernel describes it; nothing is assumed."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def describe() -> dict[str, str]:
    """CPU model, cores this process may use, memory in bytes, all as text; what cannot be read is absent."""
    facts = {"cores": str(len(os.sched_getaffinity(0))), "memory_bytes": str(_meminfo("MemTotal"))}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return {"cpu": value.strip(), **facts}
    return facts


def available_memory() -> int:
    """Bytes this process could take without swapping, under its container's limit if it has one."""
    available = _meminfo("MemAvailable")
    limit = CGROUP / "memory.max"  # cgroup v2: a number of bytes, or the word "max"
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        available = min(available, int(text) - int((CGROUP / "memory.current").read_text()))
    return available


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/meminfo has no {field}")
