"""What happens around every call of every service: identity -> handler -> errors -> log.

An error of our tree becomes a google.rpc.Status with an ErrorInfo (reason, domain "modelledger.dev"), for rule
violations a BadRequest that lists them all, and a RetryInfo where it is known when to try again. Anything else
becomes INTERNAL with an error id; its text goes to the log only.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from modelledger.ledger.v1 import events_pb2

from ledger.errors import InvalidInput, ModelLedgerError, Violation

DOMAIN = "modelledger.dev"
USER_HEADER = "modelledger-user"
REQUEST_HEADER = "modelledger-request-id"

# A status travels in the trailers of a call, and more than 8 KiB of these some peers refuse: gRPC's own default. There
# they hold the message twice, percent-encoded and, with the details, in base64.
MAX_STATUS_MESSAGE = 1_500  # bytes, percent-encoded
MAX_VIOLATIONS = 2_800  # bytes

log = logging.getLogger("modelledger.calls")

# Of the peer's certificate, best first: https://grpc.github.io/grpc/core/md_doc_server_side_auth.html
_CERTIFICATE_NAMES = ("x509_common_name", "x509_subject_alternative_name", "x509_subject")
_USER = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_call: ContextVar[grpc.aio.ServicerContext[Any, Any]] = ContextVar("call")


def caller() -> events_pb2.Caller:
    """Who made the call that is being handled. Ask before leaving the handler's own thread.

    Whoever presented a certificate is whom it names; the header counts only without one, which a server allows on the
    loopback interface alone.
    """
    context = _call.get()
    peer = context.auth_context()
    if peer.get("x509_pem_cert"):
        names = (name for field in _CERTIFICATE_NAMES for name in peer.get(field) or () if name)
        return events_pb2.Caller(id=next(names, b"unnamed").decode(errors="replace"), method="mtls")
    user = _header(context, USER_HEADER)
    return events_pb2.Caller(id=f"local:{user if _USER.fullmatch(user) else 'unknown'}", method="loopback")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, once; the only interceptor there is."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        method = str(details.method)
        if method not in self._wrapped:
            handler = await continuation(details)
            if handler is None:
                return None  # an unknown method: grpc answers UNIMPLEMENTED
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Any) -> Any:
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else _unary_stream
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrapped: Any = _stream(method, inner)
        else:
            make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else _unary_unary
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            wrapped = _unary(method, inner)
        return make(wrapped, _readable(handler.request_deserializer), handler.response_serializer)


class _Unreadable:
    """In the place of a request that is not a message; grpc itself would answer with the text of the exception."""


def _readable(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Unreadable()

    return read


def _checked(request: Any) -> Any:
    """The request of a handler: a message, or a stream of them. Raises InvalidInput; a stream does later."""
    if isinstance(request, _Unreadable):
        raise InvalidInput(
            "the request is not a message of this method: its bytes are damaged or of another type, or a text in it is "
            "not UTF-8"
        )
    return _each_checked(request) if isinstance(request, AsyncIterable) else request


async def _each_checked(requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


_unary_unary = grpc.unary_unary_rpc_method_handler
_unary_stream = grpc.unary_stream_rpc_method_handler


def _unary(method: str, inner: Any) -> Any:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        _call.set(context)
        started = time.perf_counter()
        try:
            return await inner(_checked(request), context)
        except Exception as error:
            await _abort(context, method, error)
        finally:
            _log_call(method, context, started)

    return handle


def _stream(method: str, inner: Any) -> Any:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        _call.set(context)
        started = time.perf_counter()
        try:
            responses = inner(_checked(request), context)
            if inspect.isawaitable(responses):
                await responses  # it writes to the context by itself
            else:
                async for response in responses:
                    yield response
        except Exception as error:
            await _abort(context, method, error)
        finally:
            _log_call(method, context, started)

    return handle


def _log_call(method: str, context: grpc.aio.ServicerContext[Any, Any], started: float) -> None:
    if log.isEnabledFor(logging.DEBUG):
        record = {
            "method": method,
            "code": getattr(context.code(), "name", None) or "OK",
            "ms": round(1000 * (time.perf_counter() - started), 2),
            "caller": caller().id,
            "request_id": _header(context, REQUEST_HEADER),
        }
        log.debug("%s", json.dumps(record))


def _header(context: grpc.aio.ServicerContext[Any, Any], name: str) -> str:
    return next((str(value) for key, value in context.invocation_metadata() or () if key == name), "")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError):
        raise error
    await context.abort_with_status(rpc_status.to_status(told(method, error)))


def told(method: str, error: Exception) -> status_pb2.Status:
    """What a caller is told of an error: all of one of our tree, of any other only where the log has its details."""
    if not isinstance(error, ModelLedgerError):
        error_id = uuid.uuid4().hex[:12]
        log.error("%s failed, error id %s", method, error_id, exc_info=error)
        error = ModelLedgerError(f"unexpected failure; the service's log has the details under error id {error_id}")
    return to_status(error)


def to_status(error: ModelLedgerError) -> status_pb2.Status:
    """An error of our tree as google.rpc.Status, cut to what a call's trailers can carry."""
    message = _shortened(error.message)
    packed = [_pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))]
    if error.violations:
        packed.append(_pack(_bad_request(error.violations)))
    if error.retry_after > 0:
        delay = Duration(seconds=int(error.retry_after), nanos=int(error.retry_after % 1 * 1e9))
        packed.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=message, details=packed)


def _shortened(message: str) -> str:
    # The message travels percent-encoded: a character is up to twelve bytes. A path may hold what is no character.
    kept = message[:MAX_STATUS_MESSAGE].encode(errors="replace").decode()
    while len(quote(kept)) > MAX_STATUS_MESSAGE:
        kept = kept[: len(kept) * 3 // 4]
    return kept if len(kept) == len(message) else kept + "…"


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for number, violation in enumerate(violations):
        bad.field_violations.add(
            field=violation.field[:200], reason=violation.reason, description=violation.description[:500]
        )
        if bad.ByteSize() > MAX_VIOLATIONS:
            del bad.field_violations[number:]
            more = f"{len(violations) - number} more are not listed"
            bad.field_violations.add(field="", reason=violation.reason, description=more)
            break
    return bad


def _pack(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
