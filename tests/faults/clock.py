"""A wall clock of some processes that a test sets forward and back while they run (set_clock.c)."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Clock:
    """Processes with `environment` have it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.set(0)
        library = folder / "set_clock.so"
        source = Path(__file__).with_name("set_clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)
        self.environment = {"LD_PRELOAD": str(library), "SET_CLOCK": str(self._file)}

    def set(self, seconds: int) -> None:
        """So many seconds from the machine's own clock."""
        with open(self._file, "r+b" if self._file.exists() else "wb") as file:  # in place: they have it mapped
            file.write(seconds.to_bytes(8, "little", signed=True))
