"""What the quantizer knows of the streams it reads and writes: quantisations, and the base models behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from modelledger.ledger.v1 import events_pb2
from modelledger.quantizer.v1 import quantizer_pb2

from ledger.errors import NotFound
from ledger.kit.aggregate import LedgerAggregate, Recorded
from ledger.statement import Artifact

QUEUED = quantizer_pb2.QUANTIZATION_STATE_QUEUED
RUNNING = quantizer_pb2.QUANTIZATION_STATE_RUNNING
COMPLETED = quantizer_pb2.QUANTIZATION_STATE_COMPLETED
FAILED = quantizer_pb2.QUANTIZATION_STATE_FAILED

MAX_REASON = 2_000  # characters; an event has a limit


class Quantization(LedgerAggregate):
    """One quantisation: quantizations/{id}. Ends completed or failed, and never changes after that."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.state = quantizer_pb2.QUANTIZATION_STATE_UNSPECIFIED
        self.request = events_pb2.QuantizationRequested()
        self.document = Artifact("", "")
        self.materials: tuple[Artifact, ...] = ()
        self.outcome: events_pb2.QuantizationCompleted | None = None
        self.worker = ""
        self.attempts = 0
        self.reason = ""
        self.create_time = ""
        self.requested_event = ""

    @property
    def over(self) -> bool:
        return self.state in (COMPLETED, FAILED)

    def require(self) -> Quantization:
        """Raises NotFound when the stream has no quantisation."""
        if not self.version:
            raise NotFound(f"there is no quantisation {self.id.removeprefix('quantizations/')}")
        return self

    def base_material(self) -> Artifact:
        return next(m for m in self.materials if m.name.startswith("base-models/"))

    def adapters(self) -> list[Artifact]:
        """The chain, in the order it applies."""
        return [m for m in self.materials if m.name.startswith("adapters/")]

    def started(self, worker: str) -> None:
        event = events_pb2.QuantizationStarted(
            quantization=self.request.quantization, worker=worker, attempt=self.attempts + 1
        )
        self.trigger(event, [self.document])

    def completed(self, outcome: events_pb2.QuantizationCompleted) -> None:
        made: list[events_pb2.ArtifactRef] = []
        for file in outcome.files:
            made += [file.file, *([file.modelfile] if file.HasField("modelfile") else [])]
        if outcome.HasField("licence"):
            made.append(outcome.licence)
        subjects = [Artifact(ref.name, ref.sha256) for ref in made]
        self.trigger(outcome, subjects, self.materials, causation=self.requested_event)

    def failed(self, reason: str) -> None:
        event = events_pb2.QuantizationFailed(quantization=self.request.quantization, reason=reason[:MAX_REASON])
        self.trigger(event, [self.document])

    def on_QuantizationRequested(self, event: Recorded) -> None:
        data = cast(events_pb2.QuantizationRequested, event.data)
        self.state, self.request, self.create_time = QUEUED, data, event.time
        self.document, self.materials = event.subjects[0], event.materials
        self.requested_event = event.event_id

    def on_QuantizationStarted(self, event: Recorded) -> None:
        data = cast(events_pb2.QuantizationStarted, event.data)
        self.state, self.worker, self.attempts = RUNNING, data.worker, data.attempt

    def on_QuantizationCompleted(self, event: Recorded) -> None:
        self.state, self.outcome = COMPLETED, cast(events_pb2.QuantizationCompleted, event.data)

    def on_QuantizationFailed(self, event: Recorded) -> None:
        data = cast(events_pb2.QuantizationFailed, event.data)
        self.state, self.reason = FAILED, data.reason


class RegisteredBase(LedgerAggregate):
    """The digests under which a base model is registered now: base-models/{key}, only read here."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.digests: set[str] = set()

    def on_BaseModelRegistered(self, event: Recorded) -> None:
        self.digests.update(_digests(event.subjects))

    def on_BaseModelWithdrawn(self, event: Recorded) -> None:
        self.digests.difference_update(_digests(event.subjects))


def quantization_stream(quantization: str) -> str:
    return f"quantizations/{quantization}"


def _digests(subjects: Sequence[Artifact]) -> set[str]:
    return {subject.sha256 for subject in subjects}
