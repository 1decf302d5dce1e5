"""Logs as auditors meet them: every static file of a store, served over HTTP or handed to the reader as they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from modelledger.audit_sources import StaticLog

from ledger.audit_source import Bundle, cuts
from ledger.http import create_app
from ledger.kit.serve import Address, HttpServer
from ledger.merkle import TILE_WIDTH, Tile, tile_width
from ledger.store import Store
from ledger.tiles import bundle_path, encode_bundle, tile_path


@contextmanager
def serving(store: Store) -> Iterator[str]:
    """The URL under which the ledger's own HTTP server serves a store."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = HttpServer(create_app(store), Address.parse("127.0.0.1:0"))
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


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
