"""What the trainer process is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelledger.trainer.v1 import trainer_pb2_grpc

from ledger.kit.live import Changes
from ledger.kit.serve import Address, Servicer
from ledger.kit.threads import in_thread
from ledger.kit.work import Worker
from trainer.application import Training
from trainer.config import TrainerConfig
from trainer.service import TrainerServicer
from trainer.worker import TrainingJob


class TrainerPart:
    """The trainer's commands, its worker, and their servicer."""

    def __init__(self, config: TrainerConfig) -> None:
        changes = Changes()
        self._training = Training(config)
        self._config = config
        self._job = TrainingJob(self._training, changes)
        servicer = TrainerServicer(self._training, self._job, changes)
        self.servicers: Sequence[Servicer] = [
            Servicer(
                "modelledger.trainer.v1.TrainerService",
                lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
            )
        ]
        self.http: Sequence[tuple[Any, Address]] = ()
        self._worker: Worker | None = None

    async def start(self) -> None:
        self._worker = Worker(self._job, self._training, self._config.work_folder)
        self._worker.start()

    async def stop(self) -> None:
        if self._worker:
            await in_thread(self._worker.stop)

    async def close(self) -> None:
        self._training.close()
