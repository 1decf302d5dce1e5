"""A process that serves: what it refused it does not keep."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import grpc.aio
import pytest
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from ledger.config import LedgerConfig
from ledger.kit.process import run, serve_section
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


def test_ctrl_c_while_the_parts_were_made_starts_nothing(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cancels the task that makes them, and gRPC's server cannot be cancelled while it starts."""
    part, closed = _Part(log), []

    async def close() -> None:
        closed.append(part)

    monkeypatch.setattr(part, "close", close)
    monkeypatch.setattr("ledger.kit.process.GrpcServer", lambda *_: pytest.fail("it was started"))

    async def interrupted() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await run([part], Address(), lambda *_: None)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert closed == [part]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--nonsense"], "usage: python -m trainer"), (["a.toml", "more"], "usage: python -m trainer")],
)
def test_what_is_no_configuration_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.setattr("sys.argv", ["trainer", *arguments])
    with pytest.raises(SystemExit, match=told):
        serve_section("trainer", LedgerConfig, lambda settings: pytest.fail("it is built"))


def test_a_service_says_how_it_is_called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["trainer", "--help"])
    serve_section("trainer", LedgerConfig, lambda settings: pytest.fail("it is built"))
    assert "MODELLEDGER_TRAINER_<FIELD>" in capsys.readouterr().out


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
