"""All four services of one house on one data directory, each behind its own server, in one thread of the test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from modelledger.inference.v1 import inference_pb2_grpc
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc, registry_pb2_grpc
from modelledger.quantizer.v1 import quantizer_pb2_grpc
from modelledger.trainer.v1 import trainer_pb2, trainer_pb2_grpc

from inference.config import InferenceConfig
from inference.wiring import InferencePart
from ledger.config import LedgerConfig
from ledger.kit.aggregate import Recorded
from ledger.kit.client import call, connect
from ledger.kit.process import Part
from ledger.kit.recorder import read
from ledger.kit.serve import Address, GrpcServer, HttpServer
from ledger.wiring import LedgerPart
from quantizer.config import QuantizerConfig
from quantizer.wiring import QuantizerPart
from tests import loops
from trainer.config import TrainerConfig
from trainer.wiring import TrainerPart

SERVICES = ("ledger", "trainer", "quantizer", "inference")
T = TypeVar("T")


@dataclass
class Running:
    """One service as it runs now, started and stopped in the order of ledger/kit/process.py."""

    part: Part
    server: GrpcServer
    web: list[HttpServer]
    idle: bool = False

    async def start(self) -> None:
        await self.server.start()
        for web in self.web:
            await web.start()
        if not self.idle:
            await self.part.start()

    async def stop(self) -> None:
        await self.part.stop()
        for web in self.web:
            await web.stop()
        await self.server.stop()
        await self.part.close()


class House:
    """`addresses`: service -> host:port of its gRPC; `http`: the same of its web server. Ports stay over restarts.

    `settings`: service -> more fields of its configuration, in force from its next start on.

    `origin`: the name of a log that is there already. `working` False: what is requested is never begun.
    """

    def __init__(self, data: Path, *bases: Path, origin: str = "", working: bool = True) -> None:
        self.data = data
        self.bases = bases
        self.origin = origin
        self.working = working
        self.addresses = dict.fromkeys(SERVICES, "127.0.0.1:0")
        self.http = {"ledger": "127.0.0.1:0", "inference": "127.0.0.1:0"}
        self.settings: dict[str, dict[str, Any]] = {service: {} for service in SERVICES}
        self._running: dict[str, Running] = {}
        self._channels: list[grpc.Channel] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        for service in SERVICES:
            self.start(service)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(self.channel("ledger"))
        self.registry = registry_pb2_grpc.RegistryServiceStub(self.channel("ledger"))
        self.trainer = trainer_pb2_grpc.TrainerServiceStub(self.channel("trainer"))
        self.quantizer = quantizer_pb2_grpc.QuantizerServiceStub(self.channel("quantizer"))
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel("inference"))

    def start(self, service: str) -> None:
        running = self._run(self._make(service))
        self._running[service] = running
        self.addresses[service] = f"127.0.0.1:{running.server.port}"
        for web in running.web:
            self.http[service] = f"127.0.0.1:{web.port}"

    def stop(self, service: str) -> None:
        self._run(self._running.pop(service).stop())

    def restart(self, service: str) -> None:
        self.stop(service)
        self.start(service)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        for service in reversed(SERVICES):
            if service in self._running:
                self.stop(service)
        loops.end(self._loop, self._thread)

    def channel(self, service: str) -> grpc.Channel:
        channel = connect(self.addresses[service])
        self._channels.append(channel)
        return channel

    def part(self, service: str) -> Any:
        return self._running[service].part

    def events(self, stream: str = "", *kinds: str) -> list[Recorded]:
        """Events in the log, oldest first."""
        request = ledger_pb2.ListEventsRequest(stream=stream, kinds=kinds, page_size=1_000)
        return [read(event.envelope) for event in call(self.ledger.ListEvents, request).events]

    def register_base(self, name: str) -> str:
        """Digest of the base model's folder."""
        return call(self.trainer.RegisterBase, trainer_pb2.RegisterBaseRequest(base=name)).base.sha256

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    async def _make(self, service: str) -> Running:
        part = self._part(service)
        server = GrpcServer(part.servicers, Address.parse(self.addresses[service], service))
        idle = not self.working and service in ("trainer", "quantizer")
        running = Running(part, server, [HttpServer(app, address) for app, address in part.http], idle)
        await running.start()
        return running

    def _part(self, service: str) -> Part:
        common = {"data": self.data, "listen": self.addresses[service], **self.settings[service]}
        if service == "ledger":
            return LedgerPart(LedgerConfig(http=self.http[service], origin=self.origin, **common))
        common["ledger"] = self.addresses["ledger"]
        if service == "trainer":
            return TrainerPart(TrainerConfig(bases=self.bases, **common))
        if service == "quantizer":
            return QuantizerPart(QuantizerConfig(bases=self.bases, **common))
        return InferencePart(InferenceConfig(http=self.http[service], **common))


def eventually(condition: Callable[[], T], seconds: float = 60.0) -> T:
    """The first true answer of `condition`, which is asked less often the longer it takes. Fails after `seconds`."""
    began = time.monotonic()
    while not (answer := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, "it did not happen"
        time.sleep(min(max(0.02, waited / 20), 0.25))  # asking takes the time of what is waited for
    return answer
