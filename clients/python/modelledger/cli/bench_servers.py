"""The two servers of `modelledger bench append`, each a process of its own on a free port.

    python -m modelledger.cli.bench_servers ledger DATA     the ledger, without the other services
    python -m modelledger.cli.bench_servers echo            sends back what it gets: the floor

Both serve until SIGTERM and write their address to stdout as JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio


async def _echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return request


async def serve_echo() -> None:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("modelledger.bench.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    _ready(port)
    await stopped.wait()
    await server.stop(None)


async def serve_ledger(data: Path) -> None:
    from ledger.config import LedgerConfig
    from ledger.kit.process import run
    from ledger.wiring import LedgerPart

    config = LedgerConfig(data=data, listen="127.0.0.1:0", http="127.0.0.1:0")
    await run([LedgerPart(config)], config.address(), lambda server, web: _ready(server.port))


def _ready(port: int) -> None:
    print(json.dumps({"grpc": f"127.0.0.1:{port}"}), flush=True)


if __name__ == "__main__":
    asyncio.run(serve_ledger(Path(sys.argv[2])) if sys.argv[1] == "ledger" else serve_echo())
