"""Logs as auditors meet them: every static file of a store, served over HTTP or handed to the reader as they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from modelledger.audit_sources import StaticLog
from modelledger.client import Client
from modelledger.ledger.v1 import ledger_pb2_grpc

from ledger.audit_source import Bundle, cuts
from ledger.checkpoint import sign_checkpoint
from ledger.http import create_app
from ledger.kit.serve import Address, GrpcServer, HttpServer, Servicer
from ledger.merkle import TILE_WIDTH, Tile, leaf_hash, root, tile_width
from ledger.note import LogSigner
from ledger.service import LedgerServicer
from ledger.store import Store
from ledger.tiles import bundle_path, encode_bundle, tile_path
from tests import loops
from tests.logs import Log

Server = TypeVar("Server", GrpcServer, HttpServer)


@contextmanager
def serving(store: Store) -> Iterator[str]:
    """The URL under which the ledger's own HTTP server serves a store."""
    with serving_app(create_app(store)) as url:
        yield url


@contextmanager
def serving_app(app: Any) -> Iterator[str]:
    """The URL under which that server serves an ASGI app."""
    with _started(lambda: HttpServer(app, Address())) as server:
        yield f"http://127.0.0.1:{server.port}"


@contextmanager
def grpc_client(log: Log) -> Iterator[Client]:
    """A client of a ledger's own gRPC server."""

    def make() -> GrpcServer:
        servicer = LedgerServicer(log.store, log.sequencer)
        add = partial(ledger_pb2_grpc.add_LedgerServiceServicer_to_server, servicer)
        return GrpcServer([Servicer("modelledger.ledger.v1.LedgerService", add)], Address())

    with _started(make, log.sequencer.close) as server, Client(f"127.0.0.1:{server.port}") as client:
        yield client


@contextmanager
def _started(make: Callable[[], Server], *closing: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[Server]:
    """A server on an event loop in a thread of its own, and what to do there when it has stopped."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        server = make()
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield server
    finally:
        for stop in (server.stop, *closing):
            asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loops.end(loop, thread)


def tiles_of(size: int) -> list[Tile]:
    """All tiles of a tree, full and partial."""
    return [
        Tile(level, index, tile_width(level, index, size))
        for level in range(8)
        for index in range(-(-(size >> 8 * level) // TILE_WIDTH))
    ]


def files_of(store: Store) -> dict[str, bytes]:
    """Path -> bytes of everything that a reader of the newest checkpoint fetches."""
    size = store.head.size
    files = {"checkpoint": store.head.checkpoint}
    for tile in tiles_of(size):
        [files[tile_path(tile)]] = store.tiles().read_tiles([tile])
        if tile.level == 0:
            start = TILE_WIDTH * tile.index
            files[bundle_path(tile.index, tile.width)] = encode_bundle(store.entries(start, start + tile.width))
    return files


class FileLog(StaticLog):
    """The reader of static files over files that are already here."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__("http://files.invalid")
        self.files = files

    def bundles(self, start: int, stop: int) -> Iterator[Bundle]:
        return (self._bundle(*cut) for cut in cuts(start, stop))  # nothing to wait for

    def _get(self, path: str, limit: int) -> bytes | None:
        return self.files.get(path)


class EntryLog:
    """Any entries, right or wrong, under a checkpoint that the log's key really signed."""

    name = "the entries"

    def __init__(self, entries: Sequence[bytes], signer: LogSigner) -> None:
        self._entries = entries
        self._note = sign_checkpoint(signer, len(entries), root([leaf_hash(entry) for entry in entries]))

    def checkpoint(self) -> bytes:
        return self._note

    def bundles(self, start: int, stop: int) -> Iterator[Bundle]:
        return (Bundle(first, list(self._entries[first:end])) for first, end in cuts(start, stop))

    def tile(self, tile: Tile) -> bytes | None:
        return None

    def finish(self, size: int) -> None:
        """There is nothing else."""
