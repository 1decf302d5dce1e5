"""Training processes of a house that act a part, for tests in which nothing depends on what they would learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ledger.kit import work
from tests.house import House
from trainer import worker


def act(house: House, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Training processes play this part from now on, on the base `tiny`."""
    sha256 = house.register_base("tiny")

    def task(module: str, spec: dict[str, Any], folder: Path) -> work.Task:
        return work.Task("tests.faults.scripted_training", spec, folder, {"SCRIPT": part, "BASE_SHA256": sha256})

    monkeypatch.setattr(worker, "Task", task)
