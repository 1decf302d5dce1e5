"""Training runs of a house: begun, looked at, waited for."""

from __future__ import annotations

from typing import Any

from modelledger.trainer.v1 import trainer_pb2

from ledger.kit.client import call
from tests.house import House, eventually

COMPLETED, FAILED = trainer_pb2.RUN_STATE_COMPLETED, trainer_pb2.RUN_STATE_FAILED


def start(house: House, dataset: str, model: str = "bot", **more: Any) -> str:
    request = trainer_pb2.StartTrainingRunRequest(
        model=f"orgs/acme/models/{model}", bases=["tiny"], dataset_sha256=dataset, **more
    )
    return call(house.trainer.StartTrainingRun, request).run.name


def get(house: House, name: str) -> trainer_pb2.TrainingRun:
    return call(house.trainer.GetTrainingRun, trainer_pb2.GetTrainingRunRequest(name=name)).run


def ended(house: House, name: str) -> trainer_pb2.TrainingRun:
    return eventually(lambda: (run := get(house, name)).state in (COMPLETED, FAILED) and run)
