"""What the trainer knows of the streams it writes: runs, model lines, base models, datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from modelledger.ledger.v1 import events_pb2
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import NotFound, Refused
from ledger.kit.aggregate import LedgerAggregate, Recorded
from ledger.resource_names import ModelName, Number
from ledger.statement import Artifact

QUEUED = trainer_pb2.RUN_STATE_QUEUED
RUNNING = trainer_pb2.RUN_STATE_RUNNING
COMPLETED = trainer_pb2.RUN_STATE_COMPLETED
FAILED = trainer_pb2.RUN_STATE_FAILED
CANCELLED = trainer_pb2.RUN_STATE_CANCELLED

MAX_REASON = 2_000  # characters


class TrainingRun(LedgerAggregate):
    """One run: training-runs/{run}. Ends completed, failed or cancelled, and never changes after that."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.state = trainer_pb2.RUN_STATE_UNSPECIFIED
        self.request = events_pb2.TrainingRequested()
        self.document = Artifact("", "")
        self.materials: tuple[Artifact, ...] = ()
        self.epochs: list[events_pb2.EpochCompleted] = []
        self.outcome: events_pb2.TrainingCompleted | None = None
        self.worker = ""
        self.attempts = 0
        self.fruitless = 0  # attempts since the last epoch
        self.reason = ""
        self.create_time = self.start_time = ""
        self.requested_event = ""

    @property
    def over(self) -> bool:
        return self.state in (COMPLETED, FAILED, CANCELLED)

    def require(self) -> TrainingRun:
        """Raises NotFound when the stream has no run."""
        if not self.version:
            raise NotFound(f"there is no training run {self.id.removeprefix('training-runs/')}")
        return self

    def base_material(self, key: str) -> Artifact:
        return next(m for m in self.materials if m.name == f"base-models/{key}")

    def dataset_material(self) -> Artifact:
        return next(m for m in self.materials if m.name.startswith("datasets/"))

    def parent_adapters(self) -> list[Artifact]:
        return [m for m in self.materials if m.name.startswith("adapters/")]

    def started(self, worker: str) -> None:
        self.trigger(
            events_pb2.TrainingStarted(run=self.request.run, worker=worker, attempt=self.attempts + 1), [self.document]
        )

    def epoch(self, epoch: events_pb2.EpochCompleted) -> None:
        """Record an epoch, unless an earlier attempt already did."""
        if not self.over and not any(e.base == epoch.base and e.epoch == epoch.epoch for e in self.epochs):
            self.trigger(epoch, [self.document])

    def completed(self, outcome: events_pb2.TrainingCompleted) -> None:
        adapters = [Artifact(base.adapter.name, base.adapter.sha256) for base in outcome.trained]
        trained = {base.key for base in outcome.trained}
        used = [
            m
            for m in self.materials
            if not m.name.startswith("base-models/") or m.name.removeprefix("base-models/") in trained
        ]
        self.trigger(outcome, adapters, used, causation=self.requested_event)

    def failed(self, reason: str, bases: Sequence[events_pb2.FailedBase] = ()) -> None:
        for base in bases:  # an event has a limit; the process's own log has all of it
            base.reason = base.reason[: MAX_REASON // len(bases)]
        event = events_pb2.TrainingFailed(run=self.request.run, reason=reason[:MAX_REASON], failed=bases)
        self.trigger(event, [self.document])

    def cancel(self, caller: events_pb2.Caller, reason: str, event_id: str) -> None:
        if self.over:
            raise Refused(f"run {self.request.run} has ended already; only a queued or running one can be cancelled")
        event = events_pb2.TrainingCancelled(run=self.request.run, caller=caller, reason=reason)
        self.trigger(event, [self.document], event_id=event_id)

    def on_TrainingRequested(self, event: Recorded) -> None:
        data = cast(events_pb2.TrainingRequested, event.data)
        self.state, self.request, self.create_time = QUEUED, data, event.time
        self.document, self.materials = event.subjects[0], event.materials
        self.requested_event = event.event_id

    def on_TrainingStarted(self, event: Recorded) -> None:
        data = cast(events_pb2.TrainingStarted, event.data)
        self.state, self.worker, self.attempts = RUNNING, data.worker, data.attempt
        self.fruitless += 1
        self.start_time = self.start_time or event.time

    def on_EpochCompleted(self, event: Recorded) -> None:
        data = cast(events_pb2.EpochCompleted, event.data)
        self.epochs.append(data)
        self.fruitless = 0

    def on_TrainingCompleted(self, event: Recorded) -> None:
        data = cast(events_pb2.TrainingCompleted, event.data)
        self.state, self.outcome = COMPLETED, data

    def on_TrainingFailed(self, event: Recorded) -> None:
        data = cast(events_pb2.TrainingFailed, event.data)
        self.state, self.reason = FAILED, data.reason

    def on_TrainingCancelled(self, event: Recorded) -> None:
        data = cast(events_pb2.TrainingCancelled, event.data)
        self.state, self.reason = CANCELLED, data.reason or f"cancelled by {data.caller.id}"


class ModelLine(LedgerAggregate):
    """The versions of one model: models/{org}/{model}."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.versions: dict[Number, events_pb2.VersionCreated] = {}
        self._created: dict[str, int] = {}  # run -> where in the stream its version was made
        self._activated = 0  # where in the stream the newest activation stands

    def activated_since(self, run: str) -> bool:
        """Whether any version was made active after this run made its own."""
        return self._activated > self._created[run]

    def next_number(self, *, major: bool) -> Number:
        """v1.0 first, then v1.1 … v1.9, v1.10; a major bump only on request."""
        if not self.versions:
            return Number(1, 0)
        newest = max(self.versions)
        return Number(newest.major + 1, 0) if major else Number(newest.major, newest.minor + 1)

    def of_run(self, run: str) -> Number | None:
        return next((number for number, version in self.versions.items() if version.run == run), None)

    def get(self, number: Number) -> events_pb2.VersionCreated:
        if number not in self.versions:
            raise NotFound(f"{self.id.removeprefix('models/')} has no version {number}")
        return self.versions[number]

    def create(self, run: TrainingRun, outcome: events_pb2.TrainingCompleted) -> Number:
        """The version a completed run makes: for each trained base the parent's chain and the new adapter."""
        request = run.request
        number = self.next_number(major=request.major)
        earlier = {a.sha256: a for a in run.parent_adapters()}
        chains: dict[str, list[events_pb2.ArtifactRef]] = {}
        if request.parent_version:
            from_number = Number(*map(int, request.parent_version.removeprefix("v").split(".")))
            chains = {adapter.base: list(adapter.chain) for adapter in self.get(from_number).adapters}
        version = events_pb2.VersionCreated(
            org=request.org,
            model=request.model,
            major=number.major,
            minor=number.minor,
            run=request.run,
            parent_version=request.parent_version,
            adapters=[
                events_pb2.VersionAdapter(
                    base=base.key,
                    base_sha256=base.base_sha256,
                    chain=[*chains.get(base.key, []), base.adapter],
                    weight=outcome.weights[base.key],
                )
                for base in outcome.trained
            ],
        )
        materials = [run.base_material(base.key) for base in outcome.trained]
        materials += [run.dataset_material(), *earlier.values()]
        subjects = [Artifact(base.adapter.name, base.adapter.sha256) for base in outcome.trained]
        self.trigger(version, subjects, materials, causation=run.requested_event)
        return number

    def on_VersionCreated(self, event: Recorded) -> None:
        data = cast(events_pb2.VersionCreated, event.data)
        self.versions[Number(data.major, data.minor)] = data
        self._created[data.run] = event.originator_version

    def on_VersionActivated(self, event: Recorded) -> None:
        self._activated = event.originator_version


class Registered(LedgerAggregate):
    """What was registered under one name: base-models/{key} or datasets/{org}/{name}."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.event_ids: dict[str, str] = {}

    def register(
        self, record: events_pb2.BaseModelRegistered | events_pb2.DatasetRegistered, sha256: str, event_id: str
    ) -> None:
        self.trigger(record, [Artifact(self.id, sha256)], event_id=event_id)

    def on_BaseModelRegistered(self, event: Recorded) -> None:
        self.event_ids[event.subjects[0].sha256] = event.event_id

    def on_DatasetRegistered(self, event: Recorded) -> None:
        self.event_ids[event.subjects[0].sha256] = event.event_id

    def on_BaseModelWithdrawn(self, event: Recorded) -> None:
        for subject in event.subjects:
            self.event_ids.pop(subject.sha256, None)


def run_stream(run: str) -> str:
    return f"training-runs/{run}"


def model_stream(org: str, model: str) -> str:
    return ModelName(org, model).stream
