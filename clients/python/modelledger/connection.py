"""The way to the services: a channel for each address, a stub for each service, and how calls are made with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from ledger.errors import Damaged
from ledger.kit.client import DEADLINE, Streaming, call, connect, stream
from modelledger.inference.v1 import inference_pb2_grpc
from modelledger.ledger.v1 import (
    actors_pb2_grpc,
    certification_pb2_grpc,
    ledger_pb2_grpc,
    registry_pb2_grpc,
    subscription_pb2_grpc,
)
from modelledger.quantizer.v1 import quantizer_pb2_grpc
from modelledger.trainer.v1 import trainer_pb2_grpc

DEFAULT_SERVER = "127.0.0.1:50051"
CHUNK = 1 << 20  # bytes of a file in one message
PAGE = 100
MAX_EMPTY = 10_000  # pages on end: a filter that matches next to nothing gets some

Request = TypeVar("Request")
Response = TypeVar("Response")
Progress = Callable[[int], None]


class Connection:
    """`channels`: service -> channel; services at the same address share one. Connects on the first call."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        trainer: str = "",
        quantizer: str = "",
        inference: str = "",
        user: str = "",
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
    ) -> None:
        self._user = user
        addresses = {
            "ledger": server,
            "trainer": trainer or server,
            "quantizer": quantizer or server,
            "inference": inference or server,
        }
        opened = {
            address: connect(address, ca_file=ca_file, cert_file=cert_file, key_file=key_file)
            for address in set(addresses.values())
        }
        self.channels = {service: opened[address] for service, address in addresses.items()}
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(self.channels["ledger"])
        self._registry = registry_pb2_grpc.RegistryServiceStub(self.channels["ledger"])
        self._actors = actors_pb2_grpc.ActorServiceStub(self.channels["ledger"])
        self._certification = certification_pb2_grpc.CertificationServiceStub(self.channels["ledger"])
        self._subscriptions = subscription_pb2_grpc.SubscriptionServiceStub(self.channels["ledger"])
        self._trainer = trainer_pb2_grpc.TrainerServiceStub(self.channels["trainer"])
        self._quantizer = quantizer_pb2_grpc.QuantizerServiceStub(self.channels["quantizer"])
        self._inference = inference_pb2_grpc.InferenceServiceStub(self.channels["inference"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for channel in set(self.channels.values()):
            channel.close()

    def _call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: float = DEADLINE
    ) -> Response:
        return call(method, request, timeout=timeout, user=self._user)

    def _stream(self, method: Streaming[Request, Response], request: Request) -> Iterator[Response]:
        cancel, responses = stream(method, request, user=self._user)
        try:
            yield from responses
        finally:
            cancel()

    def _pages(self, method: Any, request: Any, field: str) -> Iterator[Any]:
        request.page_size = request.page_size or PAGE
        empty = 0
        while empty < MAX_EMPTY:
            response = self._call(method, request)
            page = getattr(response, field)
            yield from page
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token
            empty = 0 if page else empty + 1
        raise Damaged(f"the service sent {MAX_EMPTY} pages without anything, and says that there are more")


def chunks(path: Path, progress: Progress) -> Iterator[bytes]:
    """A file in pieces as a message takes them; `progress` gets the bytes of each once it is on its way."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            progress(len(chunk))
