"""A ledger without the other services, for tests of the command line."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from modelledger import cli

from ledger.config import LedgerConfig
from ledger.kit.serve import GrpcServer
from ledger.wiring import LedgerPart
from tests import loops
from tests.certified import Certified
from tests.house import Running

Run = Callable[..., tuple[int, str, str]]


@contextmanager
def serving(world: Certified, folder: Path) -> Iterator[str]:
    """Address of a ledger without the other services, on the log that `world` wrote."""
    world.store.close()
    shutil.copy(folder / "log.vkey", folder / "keys" / "log.vkey")
    config = LedgerConfig(data=folder, listen="127.0.0.1:0", origin="test.log")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Running:
        part = LedgerPart(config)
        running = Running(part, GrpcServer(part.servicers, config.address()), [])
        await running.start()
        return running

    running = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        yield f"127.0.0.1:{running.server.port}"
    finally:
        asyncio.run_coroutine_threadsafe(running.stop(), loop).result(60)
        loops.end(loop, thread)


def commands(address: str, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)"""
        capsys.readouterr()
        code = cli.run(["--server", address, *arguments])
        return (code, *capsys.readouterr())

    return run
