"""Static reads of the log (C2SP tlog-tiles): auditors, mirrors and caches need no API.

/checkpoint                      the newest signed checkpoint, with the cosignatures that have arrived for it
/checkpoint.cosigned             the newest one that a quorum of the witnesses has cosigned; 404 before the first
/tile/<L>/<N>[.p/<W>]            hashes of a full or partial tile
/tile/entries/<N>[.p/<W>]        entries, each with a two-byte length
"""

from __future__ import annotations

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ledger.cosigned import Checkpoints, PlainCheckpoints
from ledger.errors import NotReady
from ledger.merkle import TILE_WIDTH
from ledger.store import Store
from ledger.tiles import encode_bundle, parse_bundle_path, parse_tile_path

# A tile of a given width never changes (tlog-tiles, "Merkle Tree"); a checkpoint does.
IMMUTABLE = {"cache-control": "public, max-age=31536000, immutable"}
SHORT = {"cache-control": "public, max-age=1"}


def create_app(store: Store, checkpoints: Checkpoints | None = None) -> Starlette:
    """The static reads of one store."""
    published = checkpoints or PlainCheckpoints(store)

    async def checkpoint(request: Request) -> Response:
        note = (await asyncio.to_thread(published.newest)).note
        return PlainTextResponse(note, headers=SHORT) if note else PlainTextResponse("empty log\n", 404)

    async def cosigned(request: Request) -> Response:
        try:
            return PlainTextResponse((await asyncio.to_thread(published.agreed)).note, headers=SHORT)
        except NotReady as error:
            return PlainTextResponse(f"{error.message}\n", 404)

    async def tile(request: Request) -> Response:
        path = "tile/" + request.path_params["path"]
        head = store.head
        try:
            if path.startswith("tile/entries/"):
                index, width = parse_bundle_path(path)
                start = index * TILE_WIDTH
                if start + width > head.size:
                    raise ValueError("beyond the tree")
                body = encode_bundle(await asyncio.to_thread(store.entries, start, start + width))
            else:
                [body] = await asyncio.to_thread(store.tiles(head).read_tiles, [parse_tile_path(path)])
        except ValueError as error:
            return PlainTextResponse(f"no such tile: {error}\n", 404)
        return Response(body, media_type="application/octet-stream", headers=IMMUTABLE)

    return Starlette(
        routes=[
            Route("/checkpoint", checkpoint),
            Route("/checkpoint.cosigned", cosigned),
            Route("/tile/{path:path}", tile),
        ]
    )
