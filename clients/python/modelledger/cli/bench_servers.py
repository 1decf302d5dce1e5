"""The servers of `modelledger bench append` and `bench watch`, each a process of its own on a free port.

    python -m modelledger.cli.bench_servers ledger DATA [DATABASE]
                                                            the ledger, without the other services
    python -m modelledger.cli.bench_servers echo            sends back what it gets: the floor of append
    python -m modelledger.cli.bench_servers stream FILE     sends the messages of a file: the floor of watch

They serve until SIGTERM and write their address to stdout as JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

SERVICE = "modelledger.bench.Floor"
ECHO, STREAM = f"/{SERVICE}/Echo", f"/{SERVICE}/Stream"
_LENGTH = 4  # bytes in front of each message of a file

Context = grpc.aio.ServicerContext[bytes, bytes]


async def _echo(request: bytes, context: Context) -> bytes:
    return request


def write_messages(path: Path, messages: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(len(message).to_bytes(_LENGTH, "big") + message for message in messages))


def _read_messages(path: Path) -> list[bytes]:
    messages, content = [], path.read_bytes()
    while content:
        end = _LENGTH + int.from_bytes(content[:_LENGTH], "big")
        messages.append(content[_LENGTH:end])
        content = content[end:]
    return messages


async def serve_floor(messages: Sequence[bytes] = ()) -> None:
    async def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    _ready(port)
    await stopped.wait()
    await server.stop(None)


def serve_ledger(data: Path, database: str = "") -> None:
    from ledger.config import LedgerConfig
    from ledger.kit.process import run, serve
    from ledger.wiring import LedgerPart

    config = LedgerConfig(data=data, database=database, listen="127.0.0.1:0", http="127.0.0.1:0")

    async def ledger() -> None:
        await run([LedgerPart(config)], config.address(), lambda server, web: _ready(server.port))

    serve(ledger())


def _ready(port: int) -> None:
    print(json.dumps({"grpc": f"127.0.0.1:{port}"}), flush=True)


if __name__ == "__main__":
    what, *where = sys.argv[1:]
    if what == "ledger":
        serve_ledger(Path(where[0]), *where[1:])
    else:
        asyncio.run(serve_floor(_read_messages(Path(where[0])) if what == "stream" else []))
