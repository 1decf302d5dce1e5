"""Logs that are read over a network: sources of an audit (`ledger/audit_source.py`).

StaticLog("https://log.example/")       C2SP tlog-tiles: /checkpoint, /tile/..., as any cache serves them
RemoteLog(client, "127.0.0.1:50051")    the ledger's gRPC API; events with their columns, no tiles
"""

from __future__ import annotations

import http.client
import ssl
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Self
from urllib.parse import urlsplit

from ledger.audit_source import Bundle, Columns, cuts, fault
from ledger.errors import InvalidInput, NotFound, Unreachable
from ledger.kit.bounded_http import BoundedConnection, Endless
from ledger.merkle import HASH_SIZE, TILE_WIDTH, Tile, tile_width
from ledger.note import MAX_NOTE_SIZE
from ledger.tiles import MAX_ENTRY, bundle_path, decode_bundle, tile_path
from modelledger.client import Client

CONNECTIONS = 4
AHEAD = 8  # bundles that are fetched before they are asked for
ATTEMPTS = 4
TIMEOUT = 30.0  # seconds for each piece of an answer, twice that for all of it
MAX_BUNDLE = TILE_WIDTH * (2 + MAX_ENTRY)
PAGE = 1_000


class StaticLog:
    """The log below one URL."""

    def __init__(self, url: str, ca_file: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{url}: not the http or https address of a log")
        self.name = url
        self._host, self._prefix = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
        self._tls = ssl.create_default_context(cafile=ca_file or None) if parts.scheme == "https" else None
        self._of_thread = threading.local()
        self._opened: list[BoundedConnection] = []
        self._fetchers = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._fetchers.shutdown(cancel_futures=True)
        for connection in self._opened:
            connection.close()

    def checkpoint(self) -> bytes:
        note = self._get("checkpoint", MAX_NOTE_SIZE)
        if note is None:
            raise NotFound(f"{self.name}: there is no /checkpoint, or the log is empty")
        return note

    def bundles(self, start: int, stop: int) -> Iterator[Bundle]:
        waiting: deque[Future[Bundle]] = deque()
        try:
            for first, end in cuts(start, stop):
                waiting.append(self._fetchers.submit(self._bundle, first, end))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def tile(self, tile: Tile) -> bytes | None:
        hashes = self._get(tile_path(tile), HASH_SIZE * TILE_WIDTH)
        if hashes is None and tile.width < TILE_WIDTH:
            # A log may delete a partial tile once the full one exists (tlog-tiles, "Partial Tiles").
            full = self._get(tile_path(Tile(tile.level, tile.index, TILE_WIDTH)), HASH_SIZE * TILE_WIDTH)
            return (full or b"")[: HASH_SIZE * tile.width]
        return hashes or b""

    def finish(self, size: int) -> None:
        """What else such a server serves belongs to later checkpoints."""

    def _bundle(self, first: int, end: int) -> Bundle:
        index, skipped = divmod(first, TILE_WIDTH)
        width = tile_width(0, index, end)
        data = self._get(bundle_path(index, width), MAX_BUNDLE)
        if data is None and width < TILE_WIDTH:
            data = self._get(bundle_path(index), MAX_BUNDLE)
        if data is None:
            raise fault(first, f"event {first} is missing: there is no {bundle_path(index, width)}")
        try:
            entries = decode_bundle(data)
        except ValueError as error:
            raise fault(first, f"event {first}: {bundle_path(index, width)}: {error}") from None
        if len(entries) not in (width, TILE_WIDTH):
            missing = min(first + len(entries), end)
            what = f"{bundle_path(index, width)} holds {len(entries)} entries"
            raise fault(missing, f"event {missing}: {what}")
        return Bundle(first, entries[skipped:width])

    def _get(self, path: str, limit: int) -> bytes | None:
        """A resource, None when there is none. Raises Unreachable after some attempts."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(0.2 * 2**attempt)
            try:
                answer = self._connection().ask("GET", f"{self._prefix}/{path}", limit, {"accept-encoding": "gzip"})
            except Endless as error:
                problem = str(error)
                break
            except (OSError, http.client.HTTPException) as error:
                problem = str(error) or type(error).__name__
                continue
            if not answer.complete:
                raise fault(path, f"{self.name}/{path}: longer than {limit} bytes")
            if answer.status == 200:
                gzipped = answer.headers.get("content-encoding", "").lower() == "gzip"
                return self._unzip(path, answer.body, limit) if gzipped else answer.body
            if answer.status in (404, 410):
                return None
            problem = f"HTTP status {answer.status}"
            if answer.status < 500 and answer.status != 429:
                break
        raise Unreachable(f"{self.name}/{path}: {problem}")

    def _unzip(self, path: str, data: bytes, limit: int) -> bytes:
        unzip = zlib.decompressobj(wbits=31)
        try:
            plain = unzip.decompress(data, limit + 1)
        except zlib.error as error:
            raise fault(path, f"{self.name}/{path}: not gzip: {error}") from None
        if len(plain) > limit or not unzip.eof:
            raise fault(path, f"{self.name}/{path}: cut off, or longer than {limit} bytes")
        return plain

    def _connection(self) -> BoundedConnection:
        """This thread's, kept open between requests."""
        connection: BoundedConnection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = BoundedConnection(self._host, None, self._tls, TIMEOUT)
            self._of_thread.connection = connection
            self._opened.append(connection)
        return connection


class RemoteLog:
    """The log of a running ledger."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client

    def checkpoint(self) -> bytes:
        note = self._client.checkpoint().checkpoint
        if not note:
            raise NotFound(f"{self.name}: the log is empty")
        return note

    def bundles(self, start: int, stop: int) -> Iterator[Bundle]:
        events = self._client.events(start_index=start, page_size=PAGE)
        for first, end in cuts(start, stop):
            some = list(islice(events, end - first))
            for position, event in enumerate(some, first):
                if event.index != position:
                    raise fault(position, f"event {position} is missing; the ledger sent event {event.index}")
            if some:
                ids, streams, versions, kinds, entries = zip(
                    *[(e.id, e.stream, e.version, e.kind, e.envelope) for e in some], strict=True
                )
                yield Bundle(first, list(entries), Columns(ids, streams, versions, kinds))
            if len(some) != end - first:
                return

    def tile(self, tile: Tile) -> bytes | None:
        return None

    def finish(self, size: int) -> None:
        """Events behind the checkpoint belong to the next one."""
