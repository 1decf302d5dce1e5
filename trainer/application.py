"""The trainer's commands: register a base, register a dataset, request and cancel a run.

Each loads the aggregates it needs, decides, and records events; a lost race is decided again. What the
worker does with a run is in worker.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from modelledger.ledger.v1 import events_pb2, ledger_pb2, registry_pb2_grpc

from ledger import manifest, strict_json
from ledger.errors import InvalidInput, InvalidName, NotFound, NotReady, Refused
from ledger.kit import catalog
from ledger.kit.aggregate import Recorded
from ledger.kit.application import Command, LedgerApplication
from ledger.kit.artifacts import ArtifactStore, scan_directory
from ledger.resource_names import BASE_ORG, DatasetName, ModelName, parse_dataset, parse_model, parse_number
from ledger.statement import Artifact
from trainer import dataset, options
from trainer.aggregate import ModelLine, Registered, TrainingRun, model_stream, run_stream
from trainer.config import TrainerConfig


class Training(LedgerApplication):
    """Commands of the trainer, recorded by the actor "trainer"."""

    def __init__(self, config: TrainerConfig) -> None:
        super().__init__("trainer", str(config.data / "keys" / "trainer.key"), config, config.key)
        self.config = config
        self.artifacts = ArtifactStore(config.data / "artifacts")
        self.registry = registry_pb2_grpc.RegistryServiceStub(self.channel)

    def catalogue(self) -> catalog.Catalogue:
        return catalog.discover(self.config.bases)

    def register_base(self, base: catalog.BaseModel, caller: events_pb2.Caller, request_id: str = "") -> int:
        """Index of the event that introduced these very bytes under this key."""
        stream = f"base-models/{base.key}"
        command = Command("RegisterBase", caller, request_id)

        def attempt() -> int:
            known = self.load(Registered, stream)
            if self.done(command, lambda earlier: _introduces(earlier, stream, base.sha256)):
                return self._index(command.event_id)
            if base.sha256 in known.event_ids:
                return self._index(known.event_ids[base.sha256])
            stored = self.artifacts.put_bytes(manifest.encode(scan_directory(base.path)))
            if stored.sha256 != base.sha256:
                raise Refused(f"{base.path} changed while it was being registered; try again when it is at rest")
            record = events_pb2.BaseModelRegistered(
                key=base.key,
                display_name=base.display_name,
                architecture=base.architecture,
                parameters=base.parameters,
                licence=base.licence or "",
                size=base.size,
                files=base.files,
            )
            known.register(record, base.sha256, command.event_id)
            return self.record(known)[0]

        return self.retried(attempt)

    def register_dataset(
        self,
        org: str,
        name: str,
        path: Path,
        report: dataset.Report,
        caller: events_pb2.Caller,
        *,
        accept_below_minimum: bool = False,
        request_id: str = "",
    ) -> int:
        """Index of the event that introduced these bytes under this name. Raises NotReady below the minimum."""
        asked = parse_dataset(DatasetName(org, name).resource, "dataset")
        if not report.examples:
            raise NotReady(f"dataset {asked} has no valid example; there is nothing to train on")
        below = report.band == "not_ready"
        if below and not accept_below_minimum:
            raise NotReady(
                f"dataset {asked} has {len(report.examples)} valid examples of {dataset.MINIMUM} needed; add some, "
                "or accept fewer with --accept-below-minimum (this is recorded)"
            )

        command = Command("CheckDataset", caller, request_id)

        def attempt() -> int:
            known = self.load(Registered, asked.stream)
            if self.done(command, lambda earlier: _introduces(earlier, asked.stream, report.sha256)):
                return self._index(command.event_id)
            if report.sha256 in known.event_ids:
                return self._index(known.event_ids[report.sha256])
            stored = self.artifacts.put_file(path)
            if stored.sha256 != report.sha256:
                raise Refused(f"dataset {asked} changed while it was being registered; try again")
            record = events_pb2.DatasetRegistered(
                org=org,
                name=name,
                form="+".join(report.forms),
                examples=len(report.examples),
                refused_lines=report.refused_lines,
                band=report.band,
                below_minimum_accepted=below,
                size=report.size,
                caller=caller,
            )
            known.register(record, report.sha256, command.event_id)
            return self.record(known)[0]

        return self.retried(attempt)

    def request_run(
        self,
        model: str,
        bases: Sequence[str],
        dataset_sha256: str,
        overrides: Mapping[str, str],
        caller: events_pb2.Caller,
        *,
        dataset_name: str = "",
        profile: str = "",
        parent_version: str = "",
        activate: bool = False,
        major: bool = False,
        request_id: str = "",
    ) -> TrainingRun:
        """Record a run for the worker to take; the same caller's same request_id gets the same run again."""
        command = Command("StartTrainingRun", caller, request_id)
        name = parse_model(model, "model")
        if name.org == BASE_ORG:
            raise InvalidName(f"model: organisation {BASE_ORG!r} stands for base models as they are; choose another")
        parsed = _parse_options(overrides)
        effective = options.effective(profile or self.config.profile, parsed)
        all_options = {key: json.dumps(value) for key, value in effective.to_mapping().items()}

        def same(earlier: Recorded) -> bool:
            was = earlier.data
            return (
                isinstance(was, events_pb2.TrainingRequested)
                and (was.org, was.model, was.parent_version) == (name.org, name.model, parent_version)
                and (was.activate, was.major) == (activate, major)
                and any(material.sha256 == dataset_sha256 for material in earlier.materials)
                and (not dataset_name or dataset_name == DatasetName(*was.dataset.split("/")).resource)
                and all(was.options.get(key) == all_options[key] for key in parsed)
                and (not bases or catalog.mean(bases, was.bases))
            )

        if earlier := self.done(command, same):
            return self.load(TrainingRun, earlier.originator_id)
        chosen = catalog.select(bases, self.catalogue(), self.config.base_models)
        data = self._dataset(dataset_sha256, name.org, dataset_name)
        parents = self._parent_adapters(name, parent_version, [base.key for base in chosen])
        for base in chosen:
            self.register_base(base, caller)
        materials = [*(Artifact(f"base-models/{base.key}", base.sha256) for base in chosen), data, *parents]
        request = events_pb2.TrainingRequested(
            org=name.org,
            model=name.model,
            bases=[base.key for base in chosen],
            dataset=data.name.removeprefix("datasets/"),
            options=all_options,
            parent_version=parent_version,
            activate=activate,
            major=major,
            caller=caller,
        )
        return self._record_run(request, materials, command, same)

    def cancel_run(self, run: str, reason: str, caller: events_pb2.Caller, request_id: str = "") -> TrainingRun:
        command = Command("CancelTrainingRun", caller, request_id)

        def same(earlier: Recorded) -> bool:
            was = earlier.data
            return isinstance(was, events_pb2.TrainingCancelled) and (was.run, was.reason) == (run, reason)

        def attempt() -> TrainingRun:
            aggregate = self.run(run)
            if self.done(command, same):
                return self.run(run)  # as it is since: it may have been read before
            aggregate.cancel(caller, reason, command.event_id)
            self.record(aggregate)
            return aggregate

        return self.retried(attempt)

    def run(self, run: str) -> TrainingRun:
        """Raises NotFound."""
        return self.load(TrainingRun, run_stream(run)).require()

    def version_of(self, run: TrainingRun) -> str:
        """The version a run made; empty when it made none."""
        if run.outcome is None:
            return ""
        number = self.load(ModelLine, model_stream(run.request.org, run.request.model)).of_run(run.request.run)
        return str(number or "")

    def _record_run(
        self,
        request: events_pb2.TrainingRequested,
        materials: Sequence[Artifact],
        command: Command,
        same: Callable[[Recorded], bool],
    ) -> TrainingRun:
        def made(run_id: str) -> TrainingRun:
            request.run = run_id
            document = strict_json.canonical(
                {
                    "materials": [{"name": m.name, "sha256": m.sha256} for m in materials],
                    "request": {
                        field.json_name: _plain(getattr(request, field.name)) for field in request.DESCRIPTOR.fields
                    },
                }
            )
            stored = self.artifacts.put_bytes(document)
            run = TrainingRun(run_stream(run_id))
            run.trigger(request, [Artifact(f"requests/{run_id}", stored.sha256)], materials, event_id=command.event_id)
            return run

        return self.begin("run", made, command, same)

    def _dataset(self, sha256: str, org: str, name: str) -> Artifact:
        """These bytes as the organisation registered them: under `name`, or under the first name it gave them."""
        self.artifacts.path_of(sha256)  # refuses what is no digest
        registrations = ledger_pb2.ListEventsRequest(kinds=["DatasetRegistered"])
        if name:
            asked = parse_dataset(name, "dataset")
            if asked.org != org:
                raise InvalidInput(f"dataset: {asked} is not of {org}, the model's organisation; register it there too")
            registrations.stream, known_as = asked.stream, f"dataset {asked}"
        else:
            registrations.stream_prefix, known_as = f"datasets/{org}/", f"a dataset of {org}"
        for registered in self.recorded(registrations):
            for subject in registered.subjects:
                if subject.sha256 == sha256:
                    return subject
        raise NotFound(
            f"sha256:{sha256} is not registered as {known_as}; register it first: "
            f"modelledger dataset check FILE --register --org {org}"
        )

    def _parent_adapters(self, name: ModelName, parent_version: str, keys: Sequence[str]) -> list[Artifact]:
        if not parent_version:
            return []
        version = self.load(ModelLine, name.stream).get(parse_number(parent_version, "parent_version"))
        chains = {adapter.base: adapter.chain for adapter in version.adapters}
        missing = [key for key in keys if key not in chains]
        if missing:
            raise InvalidInput(
                f"{name} {parent_version} was not trained on {', '.join(missing)}; it has {', '.join(sorted(chains))}"
            )
        return [Artifact(ref.name, ref.sha256) for key in keys for ref in chains[key]]

    def _index(self, identifier: str) -> int:
        found = self.find(identifier)
        if found is None:
            raise NotFound(f"event {identifier} is not in the log")
        return found[0]


def _introduces(event: Recorded, stream: str, sha256: str) -> bool:
    return event.originator_id == stream and any(subject.sha256 == sha256 for subject in event.subjects)


def _parse_options(overrides: Mapping[str, str]) -> dict[str, Any]:
    """Options come as text: JSON where it is JSON, a plain word otherwise."""
    parsed: dict[str, Any] = {}
    for key, text in overrides.items():
        name = "epochs" if key == "num_epochs" else key
        try:
            parsed[name] = strict_json.loads(text.encode())
        except ValueError:
            parsed[name] = text
    return parsed


def _plain(value: Any) -> Any:
    if isinstance(value, events_pb2.Caller):
        return {"id": value.id, "method": value.method}
    if isinstance(value, str | bool | int):
        return value
    return dict(value) if hasattr(value, "items") else list(value)


def seconds_since(moment: str) -> float:
    """Seconds from an event's time to now."""
    return max(0.0, time.time() - datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp())
