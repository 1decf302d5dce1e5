"""A process that serves: what it refused it does not keep."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import grpc.aio
import pytest
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from ledger.kit.process import run
from ledger.kit.serve import Address, GrpcServer, Servicer
from ledger.service import LedgerServicer
from tests.logs import Log

CALLS = 100


@pytest.fixture
def log(log: Log) -> Iterator[Log]:
    yield log
    gc.unfreeze()  # the process that was served in is that of the tests


class _Part:
    http = ()

    def __init__(self, log: Log) -> None:
        self._servicer = LedgerServicer(log.store, log.sequencer)
        self.servicers = [Servicer("modelledger.ledger.v1.LedgerService", self._add)]

    def _add(self, server: grpc.aio.Server) -> None:
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def close(self) -> None: ...


def test_requests_that_were_refused_are_not_kept(log: Log) -> None:
    """gRPC's own handler leaves each in a cycle with its error, and a request may have 4 MiB."""

    async def use() -> int:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def ready(server: GrpcServer, web: object) -> None:
            port.set_result(server.port)

        serving = asyncio.create_task(run([_Part(log)], Address(), ready))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await port}") as channel:
            stub, request = ledger_pb2_grpc.LedgerServiceStub(channel), ledger_pb2.AppendEventsRequest()
            for _ in range(CALLS):
                with pytest.raises(grpc.aio.AioRpcError, match="a request appends 1 to"):
                    await stub.AppendEvents(request)
        kept = sum(isinstance(each, ledger_pb2.AppendEventsRequest) for each in gc.get_objects())
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        return kept

    assert asyncio.run(use()) < CALLS / 2
