"""The README's own lines, run as a user would type them: a model's whole life through the command line.

Slow (about a minute): it trains, converts, quantises and serves for real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelledger.demo import settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
TOUR = re.search(r"```sh tour\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder as the README describes it, with `modelledger up` running on free ports; and the environment."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(tiny_base, folder / "models" / "tiny")
    shutil.copy(settings.DATASET, folder / "examples.jsonl")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MODELLEDGER_LEDGER_LISTEN": "127.0.0.1:0",
        "MODELLEDGER_LEDGER_HTTP": "127.0.0.1:0",
        "MODELLEDGER_INFERENCE_HTTP": "127.0.0.1:0",
        "COLUMNS": "200",
    }
    with (folder / "up.log").open("wb") as log:
        up = subprocess.Popen(
            ["modelledger", "up", "--data", "data", "--base-root", "models", "--json"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert up.stdout is not None
        ready = json.loads(up.stdout.readline() or b"{}")
        assert ready, (folder / "up.log").read_text()
        yield folder, {**environment, "MODELLEDGER_SERVER": ready["grpc"]}
    finally:
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=30) == 0, (folder / "up.log").read_text()


def run(line: str, world: tuple[Path, dict[str, str]]) -> subprocess.CompletedProcess[str]:
    folder, environment = world
    started = time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    print(f"$ {line}   [{time.perf_counter() - started:.1f} s, exit {done.returncode}]\n{done.stdout}{done.stderr}")
    return done


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_line_of_the_tour_works_and_a_flipped_byte_is_named(world: tuple[Path, dict[str, str]]) -> None:
    assert TOUR is not None
    for line in TOUR.group(1).strip().splitlines():
        done = run(line, world)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

    folder, _ = world
    assert "cert-20" in (folder / "acme-assistant" / "MODEL_LOG.md").read_text()
    active = json.loads(run("modelledger versions active acme/assistant --json", world).stdout)
    assert active["version"] == "v1.0"

    gguf = next((folder / "certificate").rglob("*.gguf"))
    gguf.chmod(0o644)
    data = bytearray(gguf.read_bytes())
    data[len(data) // 2] ^= 1
    gguf.write_bytes(data)
    bad = run("modelledger verify certificate --trust trusted.vkey", world)
    assert bad.returncode == 1
    assert gguf.name in bad.stdout

    assert run("modelledger versions set-active acme/assistant v7.3 --reason no", world).returncode == 1
    unserved = run("modelledger ask acme/nobody hello", world)
    assert unserved.returncode == 1
    assert "modelledger deploy enable acme/nobody" in unserved.stderr
    assert run("modelledger train", world).returncode == 2
    assert run("modelledger log verify", world).returncode == 0
