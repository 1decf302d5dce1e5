"""One certified model and its bundle, which many tests change copies of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger.report import Report
from ledger.verify import verify_bundle
from tests.certified import Certified


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    world = Certified(tmp_path_factory.mktemp("log"))
    world.issue()
    return world


@pytest.fixture(scope="module")
def original(certified: Certified, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certified.download(certified.certificate.name, tmp_path_factory.mktemp("download") / "bundle")


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def audit(certified: Certified) -> Callable[..., Report]:
    return lambda path, *artifacts: verify_bundle(path, [certified.store.signer.vkey()], artifacts)
