"""Faults happen on every database: most fixtures are in tests/databases.py."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from modelledger.demo.settings import DATASET
from modelledger.trainer.v1 import trainer_pb2

from ledger.kit import work
from ledger.kit.client import upload
from tests import acting
from tests.databases import postgresql, postgresql_stores, sqlite_stores, store_factory
from tests.faults.ledger_process import Ledger, ledger_process
from tests.faults.strace import strace_works
from tests.house import House

__all__ = ["postgresql", "postgresql_stores", "sqlite_stores", "store_factory", "strace_works"]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A process that is this test's alone."""
    with ledger_process(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """All services, and a base model of a few bytes, `tiny`: what would train on it acts a part (tests/acting.py)."""
    folder = tmp_path_factory.mktemp("house")
    base = folder / "models" / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (base / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (base / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with closing(House(folder / "data", folder / "models")) as house:
        yield house


@pytest.fixture(scope="module")
def dataset(house: House) -> str:
    header = trainer_pb2.DatasetHeader(org="acme", dataset="help", register=True)
    pieces = [
        trainer_pb2.CheckDatasetRequest(header=header),
        trainer_pb2.CheckDatasetRequest(chunk=DATASET.read_bytes()),
    ]
    return upload(house.trainer.CheckDataset, iter(pieces)).sha256


@pytest.fixture
def act(house: House, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Training processes play this part from now on."""
    monkeypatch.setattr(work, "AGAIN_AFTER", 0.2)
    return partial(acting.act, house, monkeypatch)
