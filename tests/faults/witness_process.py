"""A witness that kills itself at a named point, run as a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from ledger.witness.serving import open_witness
from tests.databases import log_signer

if __name__ == "__main__":
    folder, point = Path(sys.argv[1]), sys.argv[2]

    def at(reached: str) -> None:
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    witness, _ = open_witness(folder, "witness.example/w1", [log_signer().verifier])
    witness._at = at
    answer = witness.add_checkpoint(sys.stdin.buffer.read())
    sys.stdout.buffer.write(b"%d %s" % (answer.status, answer.body))
