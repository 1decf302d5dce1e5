"""What happens around every call of every service: identity -> handler -> errors -> log.

An error of our tree becomes a google.rpc.Status with an ErrorInfo (reason, domain "modelledger.dev") and, for
rule violations, a BadRequest that lists them all. Anything else becomes INTERNAL with an error id; its text
goes to the log only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from modelledger.ledger.v1 import events_pb2

from ledger.errors import ModelLedgerError

DOMAIN = "modelledger.dev"
USER_HEADER = "modelledger-user"
REQUEST_HEADER = "modelledger-request-id"

log = logging.getLogger("modelledger.calls")

_USER = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_caller: ContextVar[events_pb2.Caller] = ContextVar("caller")


def caller() -> events_pb2.Caller:
    """Who made the call that is being handled."""
    return _caller.get()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler; the only interceptor there is."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None  # an unknown method: grpc answers UNIMPLEMENTED
        method = str(details.method)
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else _unary_stream
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrapped: Any = _stream(method, inner)
        else:
            make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else _unary_unary
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            wrapped = _unary(method, inner)
        return make(wrapped, handler.request_deserializer, handler.response_serializer)


_unary_unary = grpc.unary_unary_rpc_method_handler
_unary_stream = grpc.unary_stream_rpc_method_handler


def _unary(method: str, inner: Any) -> Any:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with _logged(method, context):
            try:
                return await inner(request, context)
            except Exception as error:
                await _abort(context, method, error)

    return handle


def _stream(method: str, inner: Any) -> Any:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        with _logged(method, context):
            try:
                async for response in inner(request, context):
                    yield response
            except Exception as error:
                await _abort(context, method, error)

    return handle


@contextlib.contextmanager
def _logged(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
    metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
    _caller.set(_identify(context, metadata))
    started = time.perf_counter()
    try:
        yield
    finally:
        code = context.code()
        record = {
            "method": method,
            "code": getattr(code, "name", None) or "OK",
            "ms": round(1000 * (time.perf_counter() - started), 2),
            "caller": _caller.get().id,
            "request_id": str(metadata.get(REQUEST_HEADER, "")),
        }
        log.debug("%s", json.dumps(record))


def _identify(context: grpc.aio.ServicerContext[Any, Any], metadata: dict[str, Any]) -> events_pb2.Caller:
    names = context.auth_context().get("x509_common_name")
    for name in names or ():
        return events_pb2.Caller(id=name.decode(errors="replace"), method="mtls")
    user = str(metadata.get(USER_HEADER, ""))
    return events_pb2.Caller(id=f"local:{user if _USER.fullmatch(user) else 'unknown'}", method="loopback")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError):
        raise error
    if not isinstance(error, ModelLedgerError):
        error_id = uuid.uuid4().hex[:12]
        log.error("%s failed, error id %s", method, error_id, exc_info=error)
        error = ModelLedgerError(f"unexpected failure; the service's log has the details under error id {error_id}")
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


def to_status(error: ModelLedgerError) -> status_pb2.Status:
    """An error of our tree as google.rpc.Status."""
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    packed = [_pack(detail) for detail in details]
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations[:100]:
            bad.field_violations.add(
                field=violation.field, reason=violation.reason, description=violation.description[:500]
            )
        packed.append(_pack(bad))
    code = code_pb2.Code.Value(error.code)
    # A status travels in HTTP/2 trailers, which peers bound to a few KiB.
    return status_pb2.Status(code=code, message=error.message[:2_000], details=packed)


def _pack(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
