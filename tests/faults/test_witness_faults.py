"""kill -9 of a witness at every point of a request: it never forgets what it may have cosigned."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ledger.witness.serving import open_witness
from tests.databases import log_signer
from tests.witnesses import TinyLog


def asked(folder: Path, body: bytes, point: str = "") -> tuple[int, bytes]:
    """(exit code, "status body") of one request to a witness process that dies at `point`."""
    command = [sys.executable, "-m", "tests.faults.witness_process", str(folder), point]
    done = subprocess.run(command, input=body, capture_output=True, timeout=60)
    return done.returncode, done.stdout


@pytest.mark.parametrize("old", [0, 5])
def test_killed_before_it_remembers_nothing_happened(tmp_path: Path, old: int) -> None:
    log, fork = TinyLog(log_signer()), TinyLog(log_signer(), "fork")
    if old:
        assert asked(tmp_path, log.request(0, old))[1].startswith(b"200 ")
        fork = log
    assert asked(tmp_path, log.request(old, 7), "before_persist") == (-signal.SIGKILL, b"")
    assert asked(tmp_path, fork.request(old, 8))[1].startswith(b"200 ")


@pytest.mark.parametrize("old", [0, 5])
def test_killed_before_it_answers_nothing_is_lost(tmp_path: Path, old: int) -> None:
    log, fork = TinyLog(log_signer()), TinyLog(log_signer(), "fork")
    if old:
        assert asked(tmp_path, log.request(0, old))[1].startswith(b"200 ")
    assert asked(tmp_path, log.request(old, 7), "after_persist_before_answer") == (-signal.SIGKILL, b"")
    assert asked(tmp_path, fork.request(old, 7)) == (0, b"409 7\n")
    assert asked(tmp_path, fork.request(7, 7))[1].startswith(b"422 ")
    assert asked(tmp_path, log.request(7, 7))[1].startswith(b"200 ")
    assert asked(tmp_path, log.request(7, 9))[1].startswith(b"200 ")


def test_the_memory_itself_refuses_to_go_back(tmp_path: Path) -> None:
    log = TinyLog(log_signer())
    witness, state = open_witness(tmp_path, "w", [log.signer.verifier])
    assert witness.add_checkpoint(log.request(0, 5)).status == 200
    for statement in (
        "DELETE FROM witnessed",
        "UPDATE witnessed SET size = 4",
        "UPDATE witnessed SET root = x'00'",
        "UPDATE witnessed SET origin_sha256 = 'x'",
    ):
        with pytest.raises(DBAPIError, match="witness"), state._writer.begin() as connection:
            connection.execute(text(statement))
    assert witness.add_checkpoint(log.request(0, 6)).body == b"5\n"
