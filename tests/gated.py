"""A ledger whose writer begins when a test says so, behind gRPC, and what is sent to it over one long call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from modelledger.ledger.v1 import ledger_pb2 as pb
from modelledger.ledger.v1 import ledger_pb2_grpc

from ledger.committer import Appended, Request
from ledger.errors import ModelLedgerError
from ledger.kit.client import from_rpc_error, from_status
from ledger.kit.serve import Address, GrpcServer, Servicer
from ledger.sequencer import Sequencer
from ledger.service import LedgerServicer
from tests.logs import InProcess, Log


class Gate(InProcess):
    """A writer that begins nothing before `open` is set, and says what it is given."""

    def __init__(self, log: Log) -> None:
        super().__init__(log.committer)
        self.open = asyncio.Event()
        self.batches: list[int] = []  # requests in each
        self.broken: Exception | None = None  # raised, once, instead of committing

    async def commit(self, requests: Sequence[Request]) -> list[Appended | Exception]:
        await self.open.wait()
        self.batches.append(len(requests))
        if self.broken is not None:
            broken, self.broken = self.broken, None
            raise broken
        return await super().commit(requests)


class Served:
    """A log behind gRPC. `most`: the most events that were queued at once."""

    def __init__(self, log: Log) -> None:
        self.gate = Gate(log)
        self.sequencer = Sequencer(self.gate)
        self.servicer = LedgerServicer(log.store, self.sequencer)
        self.most = 0
        submit = self.sequencer.submit

        def counting(envelopes: Sequence[bytes]) -> asyncio.Future[Appended]:
            answer = submit(envelopes)
            self.most = max(self.most, self.queued)
            return answer

        self.sequencer.submit = counting  # type: ignore[method-assign]

    @property
    def queued(self) -> int:
        return self.sequencer._queued_events

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            await asyncio.sleep(0.005)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[grpc.aio.Channel]:
        def add(server: grpc.aio.Server) -> None:
            ledger_pb2_grpc.add_LedgerServiceServicer_to_server(self.servicer, server)

        server = GrpcServer([Servicer("modelledger.ledger.v1.LedgerService", add)], Address())
        await server.start()
        self.address = f"127.0.0.1:{server.port}"
        try:
            async with grpc.aio.insecure_channel(self.address) as channel:
                yield channel
        finally:
            self.gate.open.set()
            await server.stop()
            await self.sequencer.close()


def run(log: Log, use: Callable[[Served, Any], Awaitable[None]]) -> None:
    """`use` is given the server, and a stub for it."""

    async def whole() -> None:
        served = Served(log)
        async with served.serving() as channel:
            await asyncio.wait_for(use(served, ledger_pb2_grpc.LedgerServiceStub(channel)), 60)

    asyncio.run(whole())


def asked(requests: Sequence[Sequence[bytes]], first: int = 0) -> list[pb.AppendStreamRequest]:
    return [pb.AppendStreamRequest(number=number, envelopes=entries) for number, entries in enumerate(requests, first)]


async def answers(call: Any) -> tuple[list[pb.AppendStreamResponse], ModelLedgerError | None]:
    """All that are still to come, and the error that ended the stream."""
    found: list[pb.AppendStreamResponse] = []
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            found.append(answer)
    except grpc.aio.AioRpcError as error:
        return found, from_rpc_error(error)
    return found, None


def answers_in_thread(call: Any) -> tuple[list[pb.AppendStreamResponse], ModelLedgerError | None]:
    """The same of a call that a thread makes: one of grpc.aio may lose the status when it is sending as it ends."""
    found: list[pb.AppendStreamResponse] = []
    try:
        for answer in call:
            found.append(answer)
    except grpc.RpcError as error:
        return found, from_rpc_error(error)
    return found, None


def reasons(found: Sequence[pb.AppendStreamResponse]) -> list[str]:
    """Why each was refused; "" for what was appended."""
    return [from_status(a.refused).reason if a.WhichOneof("result") == "refused" else "" for a in found]
