"""A service process: start its parts behind one gRPC server, wait for a signal, stop in order.

A `Part` is what a service brings: gRPC servicers, HTTP apps, and work to start once the server answers. One part is a
service of its own (`python -m trainer`); `modelledger up` puts all four into one process.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import uvloop

from ledger.errors import ModelLedgerError
from ledger.kit import config
from ledger.kit.serve import Address, GrpcServer, HttpServer, Servicer


class ServiceSettings(Protocol):
    """What every service's configuration has."""

    def address(self) -> Address: ...


Settings = TypeVar("Settings", bound=ServiceSettings)


class Part(Protocol):
    """One service inside a process."""

    servicers: Sequence[Servicer]
    http: Sequence[tuple[Any, Address]]

    async def start(self) -> None:
        """Called when the gRPC server answers: start workers and subscriptions."""

    async def stop(self) -> None:
        """Called while the servers still answer: end work and subscriptions."""

    async def close(self) -> None:
        """Called when no call can come any more: close files."""


async def run(parts: Sequence[Part], listen: Address, ready: Callable[[GrpcServer, list[HttpServer]], None]) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    running: list[GrpcServer | HttpServer] = []
    started: list[Part] = []
    try:
        await asyncio.sleep(0)  # Ctrl-C while the parts were made ends it here: gRPC cannot be started and cancelled
        grpc_server = GrpcServer([servicer for part in parts for servicer in part.servicers], listen)
        web = [HttpServer(app, address) for part in parts for app, address in part.http]
        servers: list[GrpcServer | HttpServer] = [grpc_server, *web]
        for server in servers:
            await server.start()
            running.append(server)
        for part in parts:
            started.append(part)
            await part.start()
        gc.freeze()  # what has started stays, and is not looked through; no rarer than ever: see kit/collecting.py
        ready(grpc_server, web)
        await stopped.wait()
    finally:
        for part in reversed(started):
            await part.stop()
        for server in reversed(running):
            await server.stop()
        for part in reversed(parts):
            await part.close()


def serve(running: Coroutine[Any, Any, None]) -> None:
    """What `run` gives, to its end. On uvloop gRPC answers a tenth more calls a second than on asyncio's own loop."""
    uvloop.run(running)


def main(start: Callable[[], None]) -> None:
    """Run a process's main function: an error of our tree is one line on stderr and exit 1."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        start()
    except ModelLedgerError as error:
        sys.exit(f"error: {error.message}")


def serve_section(name: str, kind: type[Settings], build: Callable[[Settings], Part]) -> None:
    """`python -m <name> [CONFIG.toml]`: read the section, build the service, serve it on its own."""
    usage, given = f"usage: python -m {name} [CONFIG.toml]", sys.argv[1:]
    if given in (["--help"], ["-h"]):
        print(f"{usage}\n\nServe with its section [{name}]; MODELLEDGER_{name.upper()}_<FIELD> wins over the file.")
        return
    if len(given) > 1 or (given and given[0].startswith("-")):
        sys.exit(usage)
    path = Path(given[0]) if given else None
    settings = config.section(kind, name, config.read_file(path), os.environ, str(path or ""))
    serve(run([build(settings)], settings.address(), announce(name)))


def announce(name: str) -> Callable[[GrpcServer, list[HttpServer]], None]:
    """Say on stderr that the service answers, and where."""

    def ready(grpc_server: GrpcServer, web: list[HttpServer]) -> None:
        addresses = ", ".join(f"http://{server.address.host}:{server.port}" for server in web)
        logging.getLogger("modelledger").info(
            "%s is ready: gRPC on %s:%s%s",
            name,
            grpc_server.address.host,
            grpc_server.port,
            f", {addresses}" if web else "",
        )

    return ready
