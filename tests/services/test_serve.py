"""Who may listen where, and who a server takes a caller for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from modelledger.ledger.v1 import events_pb2, ledger_pb2, ledger_pb2_grpc

from ledger.errors import InvalidConfig
from ledger.kit.application import LedgerApplication
from ledger.kit.client import Calling, connect, metadata
from ledger.kit.interceptors import caller
from ledger.kit.serve import Address, GrpcServer, Servicer
from ledger.service import LedgerServicer
from tests.authority import Authority
from tests.log_story import Story

T = TypeVar("T")


class Asked(ledger_pb2_grpc.LedgerServiceServicer):
    """Answers with who asked."""

    async def GetCheckpoint(  # noqa: N802 - gRPC names it
        self, request: Any, context: Any
    ) -> ledger_pb2.GetCheckpointResponse:
        return ledger_pb2.GetCheckpointResponse(checkpoint=caller().SerializeToString())


def asked_by(address: Address, user: str, **files: str) -> events_pb2.Caller:
    """Who the server at that address takes a caller for that says it is `user`."""

    def question(port: int) -> bytes:
        with connect(f"localhost:{port}", **files) as channel:
            method = ledger_pb2_grpc.LedgerServiceStub(channel).GetCheckpoint
            return method(ledger_pb2.GetCheckpointRequest(), metadata=metadata(user), timeout=5).checkpoint

    return events_pb2.Caller.FromString(served(Asked(), address, question))


def served(ledger: ledger_pb2_grpc.LedgerServiceServicer, address: Address, question: Callable[[int], T]) -> T:
    """The answer to a question that is given the port of a server."""

    async def main() -> T:
        servicer = Servicer(
            "modelledger.ledger.v1.LedgerService",
            lambda server: ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger, server),
        )
        server = GrpcServer([servicer], address)
        await server.start()
        try:
            return await asyncio.to_thread(question, server.port)
        finally:
            await server.stop()

    return asyncio.run(main())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def files(authority: Authority) -> dict[str, str]:
    certificate, key = authority.issue("server", "localhost", "localhost")
    return {"tls_certificate": certificate, "tls_key": key}


def test_a_public_server_knows_its_callers(files: dict[str, str], authority: Authority) -> None:
    with pytest.raises(InvalidConfig, match="tls_certificate"):
        GrpcServer([], Address("192.0.2.1"))
    for host in ("192.0.2.1", "2001:db8::1", "ledger.example"):
        with pytest.raises(InvalidConfig, match="tls_client_ca"):
            GrpcServer([], Address(host, **files))
        GrpcServer([], Address(host, **files, tls_client_ca=authority.file))
    GrpcServer([], Address("127.0.0.1"))
    GrpcServer([], Address("127.0.0.1", **files))
    with pytest.raises(InvalidConfig, match="tls_certificate"):
        GrpcServer([], Address("127.0.0.1", tls_client_ca=authority.file))


@pytest.mark.parametrize(
    ("common_name", "alternative", "expected"),
    [("bob", (), "bob"), ("bob", ("robert",), "bob"), (None, ("robert",), "robert"), (None, (), "unnamed")],
)
def test_a_certificate_says_who_calls_whatever_the_header_says(
    common_name: str | None,
    alternative: tuple[str, ...],
    expected: str,
    files: dict[str, str],
    authority: Authority,
) -> None:
    certificate, key = authority.issue("client", common_name, *alternative)
    address = Address("127.0.0.1", **files, tls_client_ca=authority.file)
    who = asked_by(address, "alice", ca_file=authority.file, cert_file=certificate, key_file=key)
    assert (who.id, who.method) == (expected, "mtls")


def test_without_a_certificate_nobody_is_let_in_where_one_is_asked_for(
    files: dict[str, str], authority: Authority
) -> None:
    address = Address("127.0.0.1", **files, tls_client_ca=authority.file)
    with pytest.raises(grpc.RpcError) as caught:
        asked_by(address, "alice", ca_file=authority.file)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_is_never_left_out_silently() -> None:
    for files in ({"cert_file": "mine.pem"}, {"key_file": "mine.key"}):
        with pytest.raises(InvalidConfig, match=r"mine\.\w+: .*--ca"):
            connect("localhost:1", **files)


@pytest.mark.parametrize("text", ["nonsense", "host:", "host:x", "host:65536", ""])
def test_an_address_that_is_none_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(InvalidConfig, match=f"http: '{text}' is not host:port"):
        Address.parse(text, "http")


def test_on_the_loopback_interface_the_header_says_who_calls(files: dict[str, str], authority: Authority) -> None:
    for who in (asked_by(Address(), "alice"), asked_by(Address(**files), "alice", ca_file=authority.file)):
        assert (who.id, who.method) == ("local:alice", "loopback")


def test_a_service_presents_its_certificate_to_the_ledger(
    files: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("client", "trainer")
    story = Story(tmp_path)

    def ask(port: int) -> int | None:
        calling = Calling(
            ledger=f"localhost:{port}", ledger_ca=authority.file, ledger_certificate=certificate, ledger_key=key
        )
        application = LedgerApplication("trainer", str(tmp_path / "keys" / "trainer.key"), calling)
        try:
            assert application.find("nobody's") is None
            return application.recorder.max_notification_id()
        finally:
            application.close()

    address = Address("127.0.0.1", **files, tls_client_ca=authority.file)
    assert served(LedgerServicer(story.store, story.sequencer), address, ask) == story.store.head.size
