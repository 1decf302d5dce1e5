"""Calling a service: channels, deadlines, request ids, and google.rpc.Status back into our exceptions."""

from __future__ import annotations

import getpass
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from ledger.errors import (
    BY_REASON,
    InvalidConfig,
    InvalidInput,
    ModelLedgerError,
    NotFound,
    Overloaded,
    Unreachable,
    Violation,
)
from ledger.kit.interceptors import DOMAIN, REQUEST_HEADER, USER_HEADER

DEADLINE = 30.0  # seconds, unless a call says otherwise
MAX_MESSAGE = 16 << 20
RETRY_FOR, AGAIN_AFTER = 30.0, 0.2  # seconds, while a service restarts
MAX_PAUSE = 10.0  # seconds, whatever a service asks for
RECONNECTING = 5.0  # seconds; a channel that has met a closed port tries again after two at the latest

Request = TypeVar("Request")
Response = TypeVar("Response")
Sent = TypeVar("Sent", contravariant=True)

_BY_CODE: dict[int, type[ModelLedgerError]] = {
    code_pb2.UNAVAILABLE: Unreachable,
    code_pb2.DEADLINE_EXCEEDED: Unreachable,
    code_pb2.CANCELLED: Unreachable,
    code_pb2.RESOURCE_EXHAUSTED: Overloaded,
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.UNIMPLEMENTED: InvalidConfig,
}


@dataclass(frozen=True, kw_only=True)
class Calling:
    """The fields that every service's configuration has for its calls to the ledger.

    ledger: host:port; ledger_ca: PEM file of the authority that signed the ledger's certificate, empty for no TLS;
    ledger_certificate, ledger_key: PEM files that say who calls, where the ledger has a tls_client_ca.
    """

    ledger: str = "127.0.0.1:50051"
    ledger_ca: str = ""
    ledger_certificate: str = ""
    ledger_key: str = ""


def connect(address: str, *, ca_file: str = "", cert_file: str = "", key_file: str = "") -> grpc.Channel:
    """A channel to host:port; TLS when `ca_file` is given. Connects lazily. Raises InvalidConfig for a file that
    cannot be read."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        # Reconnect soon after a restart instead of backing off for up to two minutes.
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A peer that vanishes without a word is noticed; whoever follows the log must know when it does not.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if not ca_file:
        if cert_file or key_file:
            raise InvalidConfig(
                f"{cert_file or key_file}: a certificate and its key are sent over TLS only; name the authority that "
                "signed the server's certificate too (--ca, or ledger_ca in the configuration)"
            )
        return grpc.insecure_channel(address, options=options)
    try:
        authority, key, certificate = (
            Path(file).read_bytes() if file else None for file in (ca_file, key_file, cert_file)
        )
    except OSError as error:
        raise InvalidConfig(f"TLS file: {error}") from None
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.secure_channel(address, credentials, options=options)


def call(
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    *,
    timeout: float = DEADLINE,
    user: str = "",
) -> Response:
    """One call. Raises an error of our tree."""
    try:
        return method(request, timeout=timeout, metadata=metadata(user))
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


def begin(
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    *,
    timeout: float = DEADLINE,
    user: str = "",
) -> tuple[Callable[[], bool], Callable[[], Response]]:
    """One call that another thread may end: what cancels it, and what waits for the answer. That raises an error of
    our tree."""
    running = method.future(request, timeout=timeout, metadata=metadata(user))

    def answer() -> Response:
        try:
            return running.result()
        except grpc.FutureCancelledError:
            raise Unreachable("the call was cancelled") from None
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    return running.cancel, answer


def upload(
    method: grpc.StreamUnaryMultiCallable[Request, Response],
    requests: Iterator[Request],
    *,
    timeout: float = 600.0,
    user: str = "",
) -> Response:
    """One call that sends a stream. Raises an error of our tree."""
    try:
        return method(requests, timeout=timeout, metadata=metadata(user))
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


class Streaming(Protocol[Sent, Response]):
    """A method of a stub that answers with a stream, to a request or to a stream of them."""

    def __call__(
        self, request: Sent, /, *, timeout: float | None, metadata: tuple[tuple[str, str], ...]
    ) -> grpc._CallIterator[Response]: ...  # a name of the stubs only


def stream(
    method: Streaming[Sent, Response], request: Sent, *, timeout: float | None = None, user: str = ""
) -> tuple[Callable[[], bool], Iterator[Response]]:
    """A call that answers with a stream: what cancels it, and the responses. They raise an error of our tree."""
    running = method(request, timeout=timeout, metadata=metadata(user))

    def responses() -> Iterator[Response]:
        try:
            yield from running
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    return running.cancel, responses()


def patiently(ask: Callable[[], Response], seconds: float = RETRY_FOR) -> Response:
    """Ask again for a while when the service is away or has too much to do. For what may be done twice.

    Between two tries is the time that the service asked for, within AGAIN_AFTER and MAX_PAUSE.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (Unreachable, Overloaded) as error:
            if time.monotonic() > deadline:
                raise
            time.sleep(min(max(error.retry_after, AGAIN_AFTER), MAX_PAUSE))


def asked(method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
    """What a service asks another one that may have started anew a moment ago. For reading."""
    return patiently(lambda: call(method, request), RECONNECTING)


def metadata(user: str = "") -> tuple[tuple[str, str], ...]:
    """Who calls, and an id for the call."""
    return ((USER_HEADER, user or _user()), (REQUEST_HEADER, uuid.uuid4().hex))


def from_rpc_error(error: grpc.RpcError) -> ModelLedgerError:
    """The exception that the service raised, or the nearest one when it did not come from a service of ours."""
    code, message = error.code().value[0], str(error.details() or error.code().name)
    status = rpc_status.from_call(error) or status_pb2.Status(code=code, message=message)
    if not _info(status).reason:
        if _BY_CODE.get(code) is Unreachable:
            status.message = f"no answer from the service ({message}); is it running? start it with: modelledger up"
        # gRPC's own words, and trying again would not help; who else answers this code is busy.
        if code == code_pb2.RESOURCE_EXHAUSTED and "larger than max" in message:
            return InvalidInput(f"the message is too large for one call ({message}); send or ask for less at once")
        if code == code_pb2.UNIMPLEMENTED:
            status.message = (
                f"this address does not serve it ({message}); when a service runs on its own, give its address with "
                "--trainer, --quantizer or --inference, or MODELLEDGER_TRAINER and so on"
            )
    return from_status(status)


def from_status(status: status_pb2.Status) -> ModelLedgerError:
    """The exception that the service raised, from what it told of it."""
    info, violations, retry_after = _info(status), [], 0.0
    for detail in status.details:
        bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Is(bad.DESCRIPTOR) and detail.Unpack(bad):
            violations = [Violation(v.field, v.reason, v.description) for v in bad.field_violations]
        elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    kind = BY_REASON.get(info.reason) or _BY_CODE.get(status.code, ModelLedgerError)
    return kind(status.message, violations=violations, metadata=dict(info.metadata), retry_after=retry_after)


def _info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    """What a service of ours says of the error; empty when none did."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return error_details_pb2.ErrorInfo()


def _user() -> str:
    try:
        return os.environ.get("MODELLEDGER_USER") or getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
