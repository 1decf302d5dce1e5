"""Fixtures that several kinds of test need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# For every child process a test starts: our packages, no network, one thread (others may be at work too).
os.environ.update(
    PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")]),
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: of two workers neither is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish() -> None:
    """End what a whole run shares. Not at the exit of its process: a worker's is killed when it takes ten seconds."""
    if databases := sys.modules.get("tests.databases"):
        databases.shared.close()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real base model of the demo's shape, trained for so few steps that it knows next to nothing."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-base"
    command = [sys.executable, "-m", "modelledger.demo.base", str(folder), "--steps", "5", "--threads", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder
