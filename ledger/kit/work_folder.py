"""A worker's folder: one process at a time works in it, and its name lasts.

lock        held with flock(2) while the worker lives; the kernel lets go of it however the process ends
worker-id   the name in the worker's claims, so that after a crash it knows which of them were its own
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from pathlib import Path

from ledger.errors import Refused
from ledger.kit.artifacts import sync_directory

_NAME = re.compile(r"worker-[0-9a-f]{12}")


class WorkFolder:
    """Made anew when missing. Raises Refused when another process works in it."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise Refused(
                f"another process works in {path}; stop it first, or configure a folder for this one: work = …"
            ) from None
        self.worker = _name(path / "worker-id")

    def release(self) -> None:
        self._lock.close()


def _name(path: Path) -> str:
    name = path.read_text(errors="replace").strip() if path.exists() else ""
    if _NAME.fullmatch(name):
        return name
    # Anything else is what a power cut left of it: claims under that name could not be told from others' anyway.
    name = f"worker-{uuid.uuid4().hex[:12]}"
    temporary = path.with_name("worker-id.tmp")
    with temporary.open("w") as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)
    return name
