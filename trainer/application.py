"""The trainer's commands: register a base, register a dataset, request and cancel a run.

Each loads the aggregates it needs, decides, and records events; a lost race is decided again. What the
worker does with a run is in worker.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eventsourcing.persistence import IntegrityError
from modelledger.ledger.v1 import events_pb2, registry_pb2, registry_pb2_grpc

from ledger import manifest, strict_json
from ledger.errors import InvalidInput, InvalidName, NotFound, NotReady, Refused
from ledger.kit import catalog
from ledger.kit.application import LedgerApplication, event_id
from ledger.kit.artifacts import ArtifactStore, scan_directory
from ledger.kit.client import call
from ledger.resource_names import BASE_ORG, ModelName, parse_model, parse_number
from ledger.statement import Artifact
from trainer import dataset, options
from trainer.aggregate import ModelLine, Registered, TrainingRun, model_stream, run_stream
from trainer.config import TrainerConfig

MAX_RUNS_A_SECOND = 100


class Training(LedgerApplication):
    """Commands of the trainer, recorded by the actor "trainer"."""

    def __init__(self, config: TrainerConfig) -> None:
        super().__init__("trainer", str(config.data / "keys" / "trainer.key"), config.ledger, config.ledger_ca)
        self.config = config
        self.artifacts = ArtifactStore(config.data / "artifacts")
        self.registry = registry_pb2_grpc.RegistryServiceStub(self.channel)

    def catalogue(self) -> catalog.Catalogue:
        return catalog.discover(self.config.bases)

    def register_base(self, base: catalog.BaseModel, request_id: str = "") -> int:
        """Index of the event that introduced these very bytes under this key."""
        stream = f"base-models/{base.key}"

        def attempt() -> int:
            known = self.load(Registered, stream)
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
            known.register(record, base.sha256, event_id("RegisterBase", request_id))
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
        below = report.band == "not_ready"
        if below and not accept_below_minimum:
            raise NotReady(
                f"{len(report.examples)} valid examples; a training needs at least {dataset.MINIMUM}. Add examples, "
                "or accept fewer explicitly (recorded with the dataset)"
            )
        model = ModelName(org, name)  # the same two parts, the same limits
        parse_model(model.resource, "dataset")
        stream = f"datasets/{org}/{name}"

        def attempt() -> int:
            known = self.load(Registered, stream)
            if report.sha256 in known.event_ids:
                return self._index(known.event_ids[report.sha256])
            stored = self.artifacts.put_file(path)
            if stored.sha256 != report.sha256:
                raise Refused(f"{path} changed while it was being registered; try again")
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
            known.register(record, report.sha256, event_id("CheckDataset", request_id))
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
        profile: str = "",
        parent_version: str = "",
        activate: bool = False,
        major: bool = False,
        request_id: str = "",
    ) -> TrainingRun:
        """Record a run for the worker to take; the same request_id gets the same run again."""
        command = event_id("StartTrainingRun", request_id)
        if request_id and (earlier := self.find(command)):
            return self.load(TrainingRun, earlier[1].originator_id)
        name = parse_model(model, "model")
        if name.org == BASE_ORG:
            raise InvalidName(f"model: organisation {BASE_ORG!r} stands for base models as they are; choose another")
        effective = options.effective(profile or self.config.profile, _parse_options(overrides))
        chosen = catalog.select(bases, self.catalogue(), self.config.base_models)
        data = self._dataset(dataset_sha256, name.org)
        parents = self._parent_adapters(name, parent_version, [base.key for base in chosen])
        for base in chosen:
            self.register_base(base)
        materials = [*(Artifact(f"base-models/{base.key}", base.sha256) for base in chosen), data, *parents]
        request = events_pb2.TrainingRequested(
            org=name.org,
            model=name.model,
            bases=[base.key for base in chosen],
            dataset=data.name.removeprefix("datasets/"),
            options={key: json.dumps(value) for key, value in effective.to_mapping().items()},
            parent_version=parent_version,
            activate=activate,
            major=major,
            caller=caller,
        )
        return self._record_run(request, materials, command)

    def cancel_run(self, run: str, reason: str, caller: events_pb2.Caller, request_id: str = "") -> TrainingRun:
        command = event_id("CancelTrainingRun", request_id)

        def attempt() -> TrainingRun:
            aggregate = self.run(run)
            if request_id and self.find(command):
                return aggregate
            aggregate.cancel(caller, reason, command)
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
        self, request: events_pb2.TrainingRequested, materials: Sequence[Artifact], command: str
    ) -> TrainingRun:
        """Run ids are the second they start in; -2, -3 … only when that second has a run already."""
        second = datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S")
        for number in range(1, MAX_RUNS_A_SECOND):
            request.run = second if number == 1 else f"{second}-{number}"
            document = strict_json.canonical(
                {
                    "materials": [{"name": m.name, "sha256": m.sha256} for m in materials],
                    "request": {
                        field.json_name: _plain(getattr(request, field.name)) for field in request.DESCRIPTOR.fields
                    },
                }
            )
            stored = self.artifacts.put_bytes(document)
            run = TrainingRun(run_stream(request.run))
            run.trigger(request, [Artifact(f"requests/{request.run}", stored.sha256)], materials, event_id=command)
            try:
                self.record(run)
            except IntegrityError:
                continue
            return run
        raise Refused(f"{MAX_RUNS_A_SECOND} runs were started in one second; try again")

    def _dataset(self, sha256: str, org: str) -> Artifact:
        self.artifacts.path_of(sha256)  # refuses what is no digest
        lineage = call(self.registry.GetLineage, registry_pb2.GetLineageRequest(name=sha256))
        node = lineage.nodes[0]
        recorded = self.event_at(node.event_index)
        if not isinstance(recorded.data, events_pb2.DatasetRegistered) or recorded.data.org != org:
            raise NotFound(f"sha256:{sha256} is not a dataset of {org}; register it first: modelledger dataset check")
        if recorded.data.band == "not_ready" and not recorded.data.below_minimum_accepted:
            raise NotReady(f"{node.name} has {recorded.data.examples} examples; {dataset.MINIMUM} are the minimum")
        return Artifact(node.name, sha256)

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
