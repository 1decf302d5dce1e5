"""What the quantizer process is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelledger.quantizer.v1 import quantizer_pb2_grpc

from ledger.kit.live import Changes
from ledger.kit.serve import Address, Servicer
from ledger.kit.threads import in_thread
from ledger.kit.work import Worker
from quantizer.application import Quantizing
from quantizer.config import QuantizerConfig
from quantizer.service import QuantizerServicer
from quantizer.worker import QuantizationJob


class QuantizerPart:
    """The quantizer's commands, its worker, and their servicer."""

    def __init__(self, config: QuantizerConfig) -> None:
        changes = Changes()
        self._quantizing = Quantizing(config)
        self._config = config
        self._job = QuantizationJob(self._quantizing, changes)
        servicer = QuantizerServicer(self._quantizing, self._job, changes)
        self.servicers: Sequence[Servicer] = [
            Servicer(
                "modelledger.quantizer.v1.QuantizerService",
                lambda server: quantizer_pb2_grpc.add_QuantizerServiceServicer_to_server(servicer, server),
            )
        ]
        self.http: Sequence[tuple[Any, Address]] = ()
        self._worker: Worker | None = None

    async def start(self) -> None:
        self._worker = Worker(self._job, self._quantizing, self._config.work_folder)
        self._worker.start()

    async def stop(self) -> None:
        if self._worker:
            await in_thread(self._worker.stop)

    async def close(self) -> None:
        self._quantizing.close()
