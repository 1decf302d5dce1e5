"""The four services as processes of their own on PostgreSQL, as in docker-compose.yml. Slow: it trains for real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelledger.demo.settings import DATASET

from ledger.kit.health import serving
from tests.databases import shared_cluster
from tests.house import eventually
from tests.two_ledgers import free_address

SERVICES = ("ledger", "trainer", "quantizer", "inference")


@pytest.fixture
def environment(tmp_path: Path, tiny_base: Path) -> Iterator[dict[str, str]]:
    """The services run, each healthy; the environment is that of a user who knows where they are."""
    shutil.copytree(tiny_base, tmp_path / "models" / "tiny")
    address = {service: free_address() for service in SERVICES}
    environment = {
        **os.environ,
        "MODELLEDGER_LEDGER_DATABASE": shared_cluster().new_url(),
        "MODELLEDGER_LEDGER_HTTP": free_address(),
        "MODELLEDGER_INFERENCE_HTTP": free_address(),
    }
    for service in SERVICES:
        prefix = f"MODELLEDGER_{service.upper()}"
        environment |= {f"{prefix}_DATA": str(tmp_path / "data"), f"{prefix}_LISTEN": address[service]}
        if service != "ledger":
            environment[f"{prefix}_LEDGER"] = address["ledger"]
        if service in ("trainer", "quantizer"):
            environment[f"{prefix}_BASES"] = str(tmp_path / "models")
    running = []
    try:
        for service in SERVICES:
            with (tmp_path / f"{service}.log").open("wb") as log:
                command = [sys.executable, "-m", service]
                running.append(subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=log))
            eventually(lambda name=service: serving(address[name]), 30)
        where = {f"MODELLEDGER_{service.upper()}": address[service] for service in SERVICES[1:]}
        yield {**environment, **where, "MODELLEDGER_SERVER": address["ledger"]}
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0


@pytest.mark.slow
def test_a_model_s_life_over_four_processes_and_postgresql(environment: dict[str, str], tmp_path: Path) -> None:
    train = f"train acme/assistant --base tiny --data {DATASET} --epochs 1 --batch-size 16 --activate"
    for line in (
        "doctor",
        train,
        "quantize acme/assistant latest",
        "deploy enable acme/assistant",
        "ask acme/assistant hello --max-tokens 8",
        "certify acme/assistant --out certificate",
        "log verify",
    ):
        command = [sys.executable, "-m", "modelledger.cli", *line.split()]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
