"""`make demo` and `make bench`: the whole demo with exit 0, and a benchmark whose proofs were verified.

Slow: the demo trains a base model and fine-tunes it for real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from modelledger.cli.bench_load import WARM_UP
from modelledger.demo import settings

COMMAND = [sys.executable, "-m", "modelledger.cli"]


def _run(*arguments: str, timeout: float, tmp: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMPDIR": str(tmp)}
    return subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_lives_a_whole_life_and_leaves_the_certificate(tmp_path: Path) -> None:
    done = _run("demo", timeout=600, tmp=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"fine-tuned {len(json.loads(settings.HELD_OUT.read_bytes()))} of " in done.stdout
    assert "NOT VALID" in done.stdout  # of the file with the changed byte

    [folder] = tmp_path.glob("modelledger-demo-*")
    said = dict(line.split(":", 1) for line in done.stdout.splitlines()[-4:])
    bundle, key = said["the certificate"].strip(), said["the log's key"].strip()
    assert Path(bundle) == folder / "certificate"
    assert said["remove it all"].strip() == f"rm -r {folder}"
    audit = _run("verify", bundle, "--trust", key, timeout=60, tmp=tmp_path)
    assert audit.returncode == 0, audit.stdout
    assert audit.stdout.splitlines()[-1].startswith("VALID: ")


def test_the_benchmark_of_appending_verifies_every_proof(tmp_path: Path) -> None:
    done = _run("bench", "append", "--events", "100", "--rounds", "1", "--json", timeout=120, tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert set(measured) == {"name", "value", "floor", "ratio", "unit", "conditions"}
    assert (measured["name"], measured["unit"]) == ("append", "events/s")
    assert measured["ratio"] == pytest.approx(measured["value"] / measured["floor"], rel=0.01)
    conditions = measured["conditions"]
    assert (conditions["events_per_round"], conditions["rounds"]) == (100, 1)
    assert conditions["proofs_verified"] == WARM_UP + 100
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_of_growth_compares_two_sizes(tmp_path: Path) -> None:
    done = _run("bench", "growth", "--sizes", "1000,2000", "--calls", "100", "--json", timeout=120, tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["conditions"]["sizes"] == [1_000, 2_000]
    assert measured["growth"]["proof_cold"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["help", "up"])
def test_a_benchmark_of_starting_prints_one_object(name: str, tmp_path: Path) -> None:
    done = _run("bench", name, "--rounds", "1", "--json", timeout=120, tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert (measured["name"], measured["unit"], measured["conditions"]["rounds"]) == (name, "s", 1)
    assert measured["value"] > measured["floor"] > 0
