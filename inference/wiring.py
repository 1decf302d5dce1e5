"""What the inference process is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelledger.inference.v1 import inference_pb2_grpc

from inference.answering import Answering
from inference.application import Deployments
from inference.config import InferenceConfig
from inference.engines import Engines
from inference.gate import Gate
from inference.journal import Journal
from inference.openai_http import create_app
from inference.service import InferenceServicer
from inference.serving_config import Serving, ServingConfig, write
from inference.upkeep import Upkeep
from ledger.kit.serve import Address, Servicer
from ledger.kit.threads import in_thread


class InferencePart:
    """The gate, the engines, and the two ways to ask them."""

    def __init__(self, config: InferenceConfig) -> None:
        if not config.serving_file.exists():  # first run: nothing is served until a name is enabled
            write(config.serving_file, Serving())
        serving = ServingConfig(config.serving_file)
        self._deployments = Deployments(config)
        self._journal = Journal(self._deployments)
        self._gate = Gate(
            self._deployments.ledger,
            self._deployments.registry,
            self._deployments.artifacts,
            on_change=lambda: self._upkeep.look(),
        )
        self._engines = Engines(lambda: serving.current().engine, self._journal)
        answering = Answering(serving, self._gate, self._engines)
        self._upkeep = Upkeep(serving, answering, self._engines, self._deployments)
        servicer = InferenceServicer(serving, answering, self._engines, self._upkeep)
        self.servicers: Sequence[Servicer] = [
            Servicer(
                "modelledger.inference.v1.InferenceService",
                lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server),
            )
        ]
        self.http: Sequence[tuple[Any, Address]] = [(create_app(answering), Address.parse(config.http, "http"))]

    async def start(self) -> None:
        self._journal.start()
        self._gate.start()
        self._upkeep.start()

    async def stop(self) -> None:
        await self._upkeep.stop()
        await self._engines.close()
        await in_thread(self._gate.stop)
        await in_thread(self._journal.close)

    async def close(self) -> None:
        self._deployments.close()
