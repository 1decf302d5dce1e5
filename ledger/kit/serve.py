"""One gRPC server and one HTTP server, set up the same way for every service.

gRPC: interceptor, health, reflection, no port sharing, message limits, graceful stop. HTTP: a Starlette app in the
same event loop. A bind beyond the loopback interface is refused without TLS, and for gRPC also without an authority
whose client certificates say who calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ledger.errors import InvalidConfig, Refused
from ledger.kit.interceptors import CallInterceptor

MAX_MESSAGE = 4 << 20
STOP_GRACE = 2.0  # seconds that running calls get

AddServicer = Callable[[Any], None]


@dataclass(frozen=True)
class Servicer:
    """A servicer, how to add it, and its full service name for health and reflection."""

    name: str
    add: AddServicer


@dataclass(frozen=True)
class Address:
    """Where to listen. Port 0 takes a free one. tls_*: PEM files."""

    host: str = "127.0.0.1"
    port: int = 0
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""

    @classmethod
    def parse(cls, text: str, field: str, **tls: str) -> Address:
        """`field`: what the text is the value of. Raises InvalidConfig."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise InvalidConfig(f"{field}: {text!r} is not host:port")
        return cls(host.strip("[]"), int(port), **tls)

    def check(self) -> None:
        """Raises InvalidConfig for a public bind without TLS."""
        if not self.tls_certificate and not _is_loopback(self.host):
            raise InvalidConfig(
                f"{self.host}:{self.port} can be reached from other machines; configure tls_certificate and "
                "tls_key, or listen on 127.0.0.1"
            )

    def check_callers(self) -> None:
        """Raises InvalidConfig for a bind where everybody could call under any name."""
        if self.tls_client_ca and not self.tls_certificate:
            raise InvalidConfig(
                "tls_client_ca checks the callers' certificates only together with tls_certificate and tls_key; "
                "configure them too"
            )
        if not self.tls_client_ca and not _is_loopback(self.host):
            raise InvalidConfig(
                f"{self.host}:{self.port} can be reached from other machines; configure tls_client_ca, the authority "
                "that signed the callers' certificates, or listen on 127.0.0.1"
            )

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Listening:
    """The fields that every service's configuration has for its gRPC server.

    listen: host:port; tls_*: PEM files, needed to listen beyond the loopback interface. tls_client_ca: the authority
    that signed the callers' certificates.
    """

    listen: str
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""

    def address(self) -> Address:
        return Address.parse(
            self.listen,
            "listen",
            tls_certificate=self.tls_certificate,
            tls_key=self.tls_key,
            tls_client_ca=self.tls_client_ca,
        )


class GrpcServer:
    """A running gRPC server. `port` is known after `start`."""

    def __init__(self, servicers: Sequence[Servicer], address: Address) -> None:
        address.check()
        address.check_callers()
        self.address = address
        self.port = 0
        self._servicers = servicers
        self._health = health.aio.HealthServicer()

    async def start(self) -> None:
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor()],
            options=[
                ("grpc.so_reuseport", 0),  # a second server on the port is an error, not half of the calls
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # clients ping, see client.py
                # A caller that vanished or was stopped is noticed, so that what its streams hold is given back.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        for servicer in self._servicers:
            servicer.add(_ByName(self._server))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, _ByName(self._server))
        names = [servicer.name for servicer in self._servicers]
        # This one looks at the server's class to know that it answers in an event loop.
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        # gRPC core writes a stack of C++ lines to stderr about a port it cannot have, so we are the first to try.
        _listen(self.address).close()
        try:
            if self.address.tls_certificate:
                self.port = self._server.add_secure_port(str(self.address), _credentials(self.address))
            else:
                self.port = self._server.add_insecure_port(str(self.address))
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise _in_use(self.address)
        await self._server.start()
        for name in ["", *names]:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Refuse new calls, let running ones end, then close."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(STOP_GRACE)


class _ByName:
    """A server as generated code knows it, whose methods are found by name only.

    Generated code also registers each method; grpc.aio (1.85) then waits for all of them anew at every call, which
    with our forty methods was a fifth of the event loop's time under load.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """They are among the generic ones, too."""


class HttpServer:
    """A running HTTP server for an ASGI app. `port` is known after `start`."""

    def __init__(self, app: Any, address: Address) -> None:
        address.check()
        self.address = address
        self.port = 0
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=int(STOP_GRACE),
                ssl_certfile=address.tls_certificate or None,
                ssl_keyfile=address.tls_key or None,
            )
        )

    async def start(self) -> None:
        listener = _listen(self.address)
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._server.should_exit = True
        await self._task


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to the process, not to one of its servers


def _credentials(address: Address) -> grpc.ServerCredentials:
    try:
        pair = (Path(address.tls_key).read_bytes(), Path(address.tls_certificate).read_bytes())
        ca = Path(address.tls_client_ca).read_bytes() if address.tls_client_ca else None
    except OSError as error:
        raise InvalidConfig(f"TLS file: {error}") from None
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family)
    except OSError:
        raise _in_use(address) from None
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, which these do not; without it
    # an answer's body waits 40 ms for the caller to acknowledge its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _in_use(address: Address) -> Refused:
    return Refused(
        f"cannot listen on {address}: the port is in use or not allowed; stop the other process or configure "
        "another port"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
