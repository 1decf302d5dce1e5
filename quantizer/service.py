"""QuantizerService: messages to the quantizer's command and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from modelledger.quantizer.v1 import quantizer_pb2, quantizer_pb2_grpc

from ledger.errors import InvalidName
from ledger.kit.interceptors import caller
from ledger.kit.listing import page_size
from ledger.kit.live import Changes
from ledger.kit.threads import in_thread
from quantizer.aggregate import Quantization
from quantizer.application import Quantizing
from quantizer.worker import QuantizationJob

Context = Any  # grpc.aio.ServicerContext; the handlers use nothing of it


class QuantizerServicer(quantizer_pb2_grpc.QuantizerServiceServicer):
    """The quantizer over gRPC. Commands run in threads; watches live on the event loop."""

    def __init__(self, quantizing: Quantizing, job: QuantizationJob, changes: Changes) -> None:
        self._quantizing = quantizing
        self._job = job
        self._changes = changes

    async def StartQuantization(
        self, request: quantizer_pb2.StartQuantizationRequest, context: Context
    ) -> quantizer_pb2.StartQuantizationResponse:
        quantization = await in_thread(
            self._quantizing.request, request.source, request.types, request.base, caller(), request.request_id
        )
        return quantizer_pb2.StartQuantizationResponse(quantization=self._message(quantization))

    async def GetQuantization(
        self, request: quantizer_pb2.GetQuantizationRequest, context: Context
    ) -> quantizer_pb2.GetQuantizationResponse:
        found = await in_thread(self._quantizing.quantization, _identifier(request.name))
        return quantizer_pb2.GetQuantizationResponse(quantization=self._message(found))

    async def ListQuantizations(
        self, request: quantizer_pb2.ListQuantizationsRequest, context: Context
    ) -> quantizer_pb2.ListQuantizationsResponse:
        def read() -> tuple[list[quantizer_pb2.Quantization], str]:
            size = page_size(request.page_size)
            streams, token = self._quantizing.newest(QuantizationJob.requested, size, request.page_token)
            return [self._message(self._quantizing.load(Quantization, stream)) for stream in streams], token

        found, token = await in_thread(read)
        return quantizer_pb2.ListQuantizationsResponse(quantizations=found, next_page_token=token)

    async def WatchQuantization(
        self, request: quantizer_pb2.WatchQuantizationRequest, context: Context
    ) -> AsyncIterator[quantizer_pb2.WatchQuantizationResponse]:
        identifier = _identifier(request.name)
        last = None
        with self._changes.watching(request.name) as changed:
            while True:
                found = await in_thread(self._quantizing.quantization, identifier)
                message = self._message(found)
                if message != last:
                    yield quantizer_pb2.WatchQuantizationResponse(quantization=message)
                    last = message
                if found.over:
                    return
                await changed()

    def _message(self, quantization: Quantization) -> quantizer_pb2.Quantization:
        return quantizer_pb2.Quantization(
            name=quantization.id,
            state=quantization.state,
            request=quantization.request,
            outcome=quantization.outcome,
            reason=quantization.reason,
            create_time=quantization.create_time,
            live=self._job.live.get(quantization.id),
            attempts=quantization.attempts,
        )


def _identifier(name: str) -> str:
    prefix, _, identifier = name.rpartition("/")
    if prefix != "quantizations" or not identifier:
        raise InvalidName(f"name: {name[:100]!r} does not have the form quantizations/{{quantization}}")
    return identifier
