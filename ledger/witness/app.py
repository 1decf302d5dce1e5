"""A witness over HTTP (C2SP tlog-witness).

POST /add-checkpoint                             see witness.py for the answers
GET  /<hex SHA-256 of the origin>/checkpoint     the newest cosigned checkpoint of a log
"""

from __future__ import annotations

import asyncio
import logging

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ledger.add_checkpoint import MAX_BODY
from ledger.errors import ModelLedgerError
from ledger.witness.witness import PLAIN, Answer, Witness

log = logging.getLogger("modelledger.witness")

BODY_SECONDS = 10.0  # a request that is not here by then holds no memory any longer


def create_app(witness: Witness) -> Starlette:
    """The two resources of one witness."""

    async def add_checkpoint(request: Request) -> Response:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(request)
        except (TimeoutError, ClientDisconnect):
            return PlainTextResponse("the request did not arrive in time\n", 408)
        if body is None:
            return PlainTextResponse(f"a request has at most {MAX_BODY} bytes\n", 413)
        answer = await asyncio.to_thread(_answer, body)
        # As a header: Starlette would add a charset to a media type, and clients compare text/x.tlog.size as it is.
        return Response(answer.body, answer.status, {"content-type": answer.content_type})

    def _answer(body: bytes) -> Answer:
        try:
            return witness.add_checkpoint(body)
        except ModelLedgerError as error:  # the disk, the database
            log.error("%s", error.message)
            return Answer(503, b"this witness cannot remember anything at the moment; retry later\n")

    async def checkpoint(request: Request) -> Response:
        note = await asyncio.to_thread(witness.checkpoint, request.path_params["origin"])
        if note is None:
            return PlainTextResponse("no checkpoint of such a log was cosigned\n", 404)
        return Response(note, media_type=PLAIN, headers={"cache-control": "public, max-age=1"})

    return Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/{origin:str}/checkpoint", checkpoint),
        ]
    )


async def _body(request: Request) -> bytes | None:
    """None when it is larger than any request needs to be; the rest of it is not read."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            return None
    return bytes(body)
