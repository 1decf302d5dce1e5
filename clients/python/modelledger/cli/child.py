"""A child process of ours that says when it is ready, as one JSON line on stdout."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledger.errors import Unreachable

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
_FREE_PORTS = {
    "MODELLEDGER_LEDGER_LISTEN": "127.0.0.1:0",
    "MODELLEDGER_LEDGER_HTTP": "127.0.0.1:0",
    "MODELLEDGER_INFERENCE_HTTP": "127.0.0.1:0",
}

_KEPT = ("MODELLEDGER_CACHE", "MODELLEDGER_LLAMA_CPP_ARCHIVE", "MODELLEDGER_USER")


def environment(**more: str) -> dict[str, str]:
    """This process's, with what makes a child find the same packages; settings of the user's ledger left out."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("MODELLEDGER_") or key in _KEPT}
    return {**own, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


class Child:
    """Started and ready, or an exception with its last words. Leaving the `with` stops it."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=dict(env))
        try:
            self.ready: dict[str, Any] = json.loads(self._first_line())
        except BaseException:
            self.stop()
            raise

    @classmethod
    def up(cls, data: Path, log: Path, *arguments: str) -> Child:
        """`modelledger up` on free ports; `ready` has the addresses "grpc", "log" and "openai"."""
        command = [sys.executable, "-m", "modelledger.cli", "up", "--data", str(data), "--json", *arguments]
        return cls(command, log, environment(**_FREE_PORTS))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def _first_line(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        deadline = time.monotonic() + READY_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if selector.select(max(0.0, deadline - time.monotonic())):
                line = self._process.stdout.readline()
                if line:
                    return line
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise Unreachable(f"the services did not start: {last[0]} (log: {self.log})")
