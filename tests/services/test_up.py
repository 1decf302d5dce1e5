"""`modelledger up` where it cannot start: one line that says why, exit 1, nothing of C++ or Python around it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

FREE = {
    "MODELLEDGER_LEDGER_LISTEN": "127.0.0.1:0",
    "MODELLEDGER_LEDGER_HTTP": "127.0.0.1:0",
    "MODELLEDGER_INFERENCE_HTTP": "127.0.0.1:0",
}


def _up(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Exit code, and the lines on stderr without those of the log."""
    done = subprocess.run(
        [sys.executable, "-m", "modelledger.cli", "up", *arguments],
        env={**os.environ, **FREE, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, [line for line in done.stderr.splitlines() if " INFO " not in line]


@pytest.mark.parametrize("listener", FREE)
def test_a_port_in_use_is_named(listener: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, lines = _up("--data", str(tmp_path / "data"), **{listener: address})
    assert code == 1
    assert lines == [
        f"error: cannot listen on {address}: the port is in use or not allowed; stop the other process or configure "
        "another port"
    ]


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for data in (file, file / "data"):
        code, [line] = _up(MODELLEDGER_LEDGER_DATA=str(data))
        assert code == 1
        assert line.startswith(f"error: {data}: ")


def test_a_misspelt_variable_is_named(tmp_path: Path) -> None:
    code, [line] = _up("--data", str(tmp_path / "data"), MODELLEDGER_TRAINER_PROFIL="laptop")
    assert code == 1
    assert line.startswith("error: environment: MODELLEDGER_TRAINER_PROFIL: unknown field; known are ")
    assert not (tmp_path / "data").exists()


def test_a_second_start_on_the_same_port_after_a_stop_is_not_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for _ in range(2):
        up = subprocess.Popen(
            [sys.executable, "-m", "modelledger.cli", "up", "--data", str(tmp_path / "data"), "--json"],
            env={**os.environ, **FREE, "MODELLEDGER_LEDGER_LISTEN": address},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert up.stdout is not None
        assert address.encode() in up.stdout.readline()
        up.send_signal(signal.SIGTERM)
        assert up.wait(30) == 0
        up.stdout.close()
