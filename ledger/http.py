"""Static reads of the log (C2SP tlog-tiles): auditors, mirrors and caches need no API.

/checkpoint                      the newest signed checkpoint, with the cosignatures that have arrived for it
/checkpoint.cosigned             the newest one that a quorum of the witnesses has cosigned; 404 before the first
/tile/<L>/<N>[.p/<W>]            hashes of a full or partial tile
/tile/entries/<N>[.p/<W>]        entries, each with a two-byte length; gzipped for who accepts that

Every width that a published checkpoint ever implied is served for ever, also of tiles that are full by now.
"""

from __future__ import annotations

import asyncio
import gzip
from functools import lru_cache

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ledger.cosigned import Checkpoints, PlainCheckpoints
from ledger.errors import Damaged, ModelLedgerError, NotReady
from ledger.merkle import TILE_WIDTH
from ledger.store import Store
from ledger.tiles import encode_bundle, parse_bundle_path, parse_tile_path

# A tile of a given width never changes (tlog-tiles, "Merkle Tree"); a checkpoint does, and so does what is missing.
IMMUTABLE = {"cache-control": "public, max-age=31536000, immutable"}
SHORT = {"cache-control": "public, max-age=1"}
NEVER = {"cache-control": "no-store"}
FULL_BUNDLES_CACHED = 16  # at most 16 MiB each, some 200 KiB in practice
GZIP_LEVEL = 1  # signatures and digests hardly compress: higher levels take four times as long for 3 % less


def create_app(store: Store, checkpoints: Checkpoints | None = None) -> Starlette:
    """The static reads of one store."""
    published = checkpoints or PlainCheckpoints(store)

    def read_bundle(index: int, width: int) -> bytes:
        start = index * TILE_WIDTH
        entries = store.entries(start, start + width)
        if len(entries) != width:
            raise Damaged(f"of the events {start} to {start + width - 1} only {len(entries)} are there")
        return encode_bundle(entries)

    @lru_cache(FULL_BUNDLES_CACHED)
    def full_bundle(index: int, gzipped: bool) -> bytes:
        if gzipped:
            return gzip.compress(full_bundle(index, False), GZIP_LEVEL, mtime=0)
        return read_bundle(index, TILE_WIDTH)

    def bundle(index: int, width: int, gzipped: bool) -> bytes:
        if width == TILE_WIDTH:
            return full_bundle(index, gzipped)
        plain = read_bundle(index, width)
        return gzip.compress(plain, GZIP_LEVEL, mtime=0) if gzipped else plain

    async def checkpoint(request: Request) -> Response:
        note = (await asyncio.to_thread(published.newest)).note
        if request.scope["path"] != "/checkpoint":
            return _missing("not the path of a checkpoint")
        return PlainTextResponse(note, headers=SHORT) if note else _missing("the log is empty")

    async def cosigned(request: Request) -> Response:
        if request.scope["path"] != "/checkpoint.cosigned":
            return _missing("not the path of a checkpoint")
        try:
            return PlainTextResponse((await asyncio.to_thread(published.agreed)).note, headers=SHORT)
        except NotReady as error:
            return _missing(error.message)

    async def tile(request: Request) -> Response:
        path = request.scope["path"].removeprefix("/")
        head, headers = store.head, IMMUTABLE
        try:
            if path.startswith("tile/entries/"):
                index, width = parse_bundle_path(path)
                if index * TILE_WIDTH + width > head.size:
                    raise ValueError(f"beyond a tree of {head.size} leaves")
                gzipped = _accepts_gzip(request)
                body = await asyncio.to_thread(bundle, index, width, gzipped)
                encoding = {"content-encoding": "gzip"} if gzipped else {}
                headers = {**IMMUTABLE, "vary": "accept-encoding", **encoding}
            else:
                [body] = await asyncio.to_thread(store.tiles(head).read_tiles, [parse_tile_path(path)])
        except ValueError as error:
            return _missing(str(error))
        return Response(body, media_type="application/octet-stream", headers=headers)

    async def unreadable(request: Request, error: Exception) -> Response:
        """What the store says of itself is a sentence for callers; anything else stays in the ledger's own log."""
        message = error.message if isinstance(error, ModelLedgerError) else "internal error"
        return PlainTextResponse(f"{message}\n", 500 if isinstance(error, Damaged) else 503, headers=NEVER)

    # The handlers look at the path themselves: a route's pattern ends in $, which lets one newline through.
    app = Starlette(
        routes=[
            Route("/checkpoint", checkpoint),
            Route("/checkpoint.cosigned", cosigned),
            Route("/tile/{path:path}", tile),
        ],
        exception_handlers={ModelLedgerError: unreadable},
    )
    app.router.redirect_slashes = False  # every resource has one name
    return app


def _missing(reason: str) -> Response:
    return PlainTextResponse(f"not found: {reason}\n", 404, headers=NEVER)


def _accepts_gzip(request: Request) -> bool:
    """RFC 9110, section 12.5.3, as far as clients use it: gzip, else *, unless its weight is 0."""
    accepted = {}
    for item in request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, parameters = item.partition(";")
        weight = parameters.replace(" ", "").removeprefix("q=")
        accepted[coding.strip()] = weight.rstrip("0").rstrip(".") not in ("", "0") if parameters else True
    return accepted.get("gzip", accepted.get("*", False))
