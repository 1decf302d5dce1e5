"""The OpenAI HTTP API over any backend: models, chat completions, completions, streamed or whole.

    GET  /v1/models   /v1/models/{id}      POST /v1/chat/completions   /v1/completions      GET /healthz

`create_app(backend)` knows nothing of ledgers or engines: a `Backend` resolves a name to a model it may serve and
answers with pieces of text. Every answer says which bytes made it, in headers and in a `modelledger` object.
Errors are OpenAI error objects with the HTTP status of their gRPC code (google/rpc/code.proto). The first piece is
awaited before the response begins, so whatever fails early has a status of its own; a failure after that is an SSE
`error` event without [DONE]. A client that goes away cancels its generation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from inference.generation import Done, Piece
from inference.openai_request import Delivery, GenerateCall, parse_chat, parse_completion
from inference.serving_config import not_served
from ledger.errors import ModelLedgerError, NotFound

log = logging.getLogger(__name__)
MAX_BODY = 1 << 20
# The HTTP mapping of google/rpc/code.proto.
_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNAVAILABLE": 503,
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
T = TypeVar("T")


@dataclass(frozen=True)
class ModelCard:
    """One served model. `created`: Unix seconds. `ready`: loaded now; otherwise the first request loads it."""

    id: str
    created: int
    owned_by: str
    ready: bool


@dataclass(frozen=True)
class Provenance:
    """What made an answer: the model's name and version, the GGUF's SHA-256 (hex), and the ledger event (its index)
    that vouches for these bytes."""

    model: str
    version: str
    sha256: str
    event_index: int


@dataclass(frozen=True)
class Answer:
    """An answer on its way: `items` yields Piece, Piece, ..., Done; closing it early cancels the generation."""

    provenance: Provenance
    items: AsyncGenerator[Piece | Done, None]


class Backend(Protocol):
    """What the HTTP side needs. Each method raises ModelLedgerErrors, whose messages reach the caller."""

    async def identify(self, token: str | None) -> str:
        """Who calls, from the bearer token (None: no Authorization header)."""
        ...

    async def models(self, caller: str) -> Sequence[ModelCard]:
        """What this caller may ask."""
        ...

    async def generate(self, call: GenerateCall) -> Answer:
        """Raises NotFound for an unknown or disabled model."""
        ...


@dataclass(frozen=True)
class Shape:
    """What differs between chat completions and completions on the wire."""

    prefix: str
    whole: str
    chunk: str
    whole_choice: Callable[[str], dict[str, Any]]
    chunk_choice: Callable[[str | None], dict[str, Any]]
    opening: dict[str, Any] | None


CHAT = Shape(
    prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    whole_choice=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    chunk_choice=lambda text: {"delta": {} if text is None else {"content": text}},
    opening={"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = Shape(
    prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    whole_choice=lambda text: {"text": text},
    chunk_choice=lambda text: {"text": text or ""},
    opening=None,
)


def create_app(backend: Backend) -> Starlette:
    """The ASGI application."""

    async def models(request: Request) -> Response:
        caller = await backend.identify(_token(request))
        cards = [_card(card) for card in await backend.models(caller)]
        return JSONResponse({"object": "list", "data": cards})

    async def model(request: Request) -> Response:
        caller, wanted = await backend.identify(_token(request)), request.path_params["id"]
        for card in await backend.models(caller):
            if card.id == wanted:
                return JSONResponse(_card(card))
        raise not_served(wanted)

    async def chat(request: Request) -> Response:
        caller = await backend.identify(_token(request))
        return await answer(request, CHAT, *parse_chat(await _body(request), caller))

    async def completion(request: Request) -> Response:
        caller = await backend.identify(_token(request))
        return await answer(request, COMPLETION, *parse_completion(await _body(request), caller))

    async def answer(request: Request, shape: Shape, call: GenerateCall, delivery: Delivery) -> Response:
        if delivery.stream:
            started = await _unless_gone(request.receive, _begin(backend, call))
            if started is None:
                return Response(status_code=499)
            return EventStream(shape, *started, include_usage=delivery.include_usage)
        whole = await _unless_gone(request.receive, _collect(backend, call, shape))
        return Response(status_code=499) if whole is None else whole

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{id:path}", model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completion, methods=["POST"]),
            Route("/healthz", healthz),
        ],
        exception_handlers={
            ModelLedgerError: _on_known_error,
            HTTPException: _on_http_error,
            Exception: _on_unexpected_error,
        },
    )


async def _begin(backend: Backend, call: GenerateCall) -> tuple[Answer, Piece | Done]:
    answer = await backend.generate(call)
    try:
        return answer, await anext(answer.items)
    except BaseException:
        await answer.items.aclose()
        raise


async def _collect(backend: Backend, call: GenerateCall, shape: Shape) -> Response:
    text: list[str] = []
    answer = await backend.generate(call)
    async with aclosing(answer.items):
        async for item in answer.items:
            if isinstance(item, Piece):
                text.append(item.text)
                continue
            choice = {"index": 0, **shape.whole_choice("".join(text)), "logprobs": None}
            body = {
                **_envelope(shape.prefix, shape.whole, answer.provenance),
                "choices": [{**choice, "finish_reason": item.finish_reason}],
                "usage": _usage(item),
                "modelledger": asdict(answer.provenance),
            }
            return JSONResponse(body, headers=_headers(answer.provenance))
    raise RuntimeError("the answer ended without Done")


class EventStream(Response):
    """An answer as server-sent events (html.spec.whatwg.org, "Server-sent events"), one JSON object each."""

    media_type = "text/event-stream"

    def __init__(self, shape: Shape, answer: Answer, first: Piece | Done, *, include_usage: bool) -> None:
        super().__init__(headers={**_headers(answer.provenance), "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._shape, self._answer, self._first, self._include_usage = shape, answer, first, include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._answer.items):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> bool:
        async def event(data: str) -> None:
            body = f"data: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            async for chunk in self._chunks():
                await event(json.dumps(chunk))
        except Exception as error:
            _, body = _error_object(error)
            await event(json.dumps(body))
        else:
            await event("[DONE]")
        await send({"type": "http.response.body", "body": b""})
        return True

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        shape, provenance = self._shape, self._answer.provenance
        common = _envelope(shape.prefix, shape.chunk, provenance)
        # With include_usage every chunk but the last says `"usage": null`.
        usage: dict[str, Any] = {"usage": None} if self._include_usage else {}

        def chunk(choice: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, **choice, "logprobs": None, "finish_reason": finish_reason}
            return {**common, "choices": [choice], **usage}

        if shape.opening:
            yield chunk(shape.opening)
        item = self._first
        while isinstance(item, Piece):
            yield chunk(shape.chunk_choice(item.text))
            item = await anext(self._answer.items)
        yield {**chunk(shape.chunk_choice(None), item.finish_reason), "modelledger": asdict(provenance)}
        if self._include_usage:
            yield {**common, "choices": [], "usage": _usage(item)}


async def _unless_gone(receive: Receive, work: Awaitable[T]) -> T | None:
    """The result of `work`; None, and `work` cancelled, when the client goes away first."""
    working = asyncio.ensure_future(work)
    listening = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
    return bytes(body)


def _token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _card(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
        "ready": card.ready,
    }


def _envelope(prefix: str, kind: str, provenance: Provenance) -> dict[str, Any]:
    return {
        "id": prefix + secrets.token_hex(12),
        "object": kind,
        "created": int(time.time()),
        "model": provenance.model,
    }


def _usage(done: Done) -> dict[str, int]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    }


def _headers(provenance: Provenance) -> dict[str, str]:
    return {
        "x-modelledger-version": provenance.version,
        "x-modelledger-sha256": provenance.sha256,
        "x-modelledger-event": str(provenance.event_index),
    }


def _error_object(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and body. The text of an unexpected exception stays in the log, under the id the caller gets."""
    if not isinstance(error, ModelLedgerError):
        error_id = secrets.token_hex(8)
        log.error("error %s", error_id, exc_info=error)
        return 500, _body_of(500, f"internal error {error_id}; it is in the server's log", None, "internal_error")
    status = _STATUS[error.code]
    field, code = error.metadata.get("field"), error.metadata.get("code", error.reason.lower())
    if isinstance(error, NotFound):
        field, code = "model", "model_not_found"
    return status, _body_of(status, error.message, field, code)


def _body_of(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _on_known_error(_: Request, error: Exception) -> Response:
    status, body = _error_object(error)
    return JSONResponse(body, status)


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(_body_of(error.status_code, message, None, None), error.status_code, error.headers)


async def _on_unexpected_error(_: Request, error: Exception) -> Response:
    status, body = _error_object(error)
    return JSONResponse(body, status)
