"""The training job: what a worker does with a requested run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelledger.ledger.v1 import events_pb2, registry_pb2
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import ArtifactMismatch, ModelLedgerError, NotFound, WrongStreamVersion
from ledger.kit.client import call
from ledger.kit.live import Changes
from ledger.kit.work import MAX_ATTEMPTS, PASSING, Ended, Task
from ledger.resource_names import ModelName
from trainer.aggregate import COMPLETED, ModelLine, TrainingRun, model_stream
from trainer.application import Training, seconds_since

log = logging.getLogger("modelledger.trainer")

# The event names so many of the lines a training skipped, over all bases, and how many there were.
SKIPPED_NAMED, MAX_SKIP_REASON = 20, 120


class TrainingJob:
    """Implements ledger.kit.work.Job.

    live:      the newest step of each run; shown, not recorded
    finishing: runs whose outcome is recorded and whose activation is still to come; shown as running
    """

    group = "trainer-training-runs"
    requested = "TrainingRequested"
    cancelled: Sequence[str] = ("TrainingCancelled",)

    def __init__(self, training: Training, changes: Changes) -> None:
        self._training = training
        self._changes = changes
        self._messages: dict[str, list[dict[str, Any]]] = {}
        self._attempts: dict[str, int] = {}  # of the run in hand: the newest one when it was this worker's
        self.live: dict[str, trainer_pb2.LiveStep] = {}
        self.finishing: set[str] = set()

    def claim(self, stream: str, worker: str) -> Task | None:
        run = self._training.load(TrainingRun, stream)
        if run.state == COMPLETED:
            self._activate(run)  # asked for, and perhaps not reached before a crash
        if run.over:
            return None
        self._attempts[stream] = run.attempts
        if run.fruitless >= MAX_ATTEMPTS:
            run.failed(f"the worker was stopped {run.fruitless} times before the run finished another epoch")
            self._training.record(run)
            return None
        folder = self._folder(run)
        spec = self._spec(run, folder)
        run.started(worker)
        self._training.record(run)
        self._attempts[stream] = run.attempts
        self._messages[stream] = []
        self._changes.publish(stream)
        return Task("trainer.run", spec, folder)

    def message(self, stream: str, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "step":
            self.live[stream] = trainer_pb2.LiveStep(
                base=message["base"], step=message["step"], steps=message["steps"], loss=message.get("loss")
            )
            self._changes.publish(stream)
        elif kind == "epoch":
            self._epochs(stream, [message])
        elif kind == "base_started":
            self._epochs(stream, message.get("earlier_epochs", []))
        else:
            self._messages[stream].append(message)

    def ended(self, stream: str, ended: Ended) -> None:
        messages = self._messages.pop(stream, [])
        self.live.pop(stream, None)
        run = self._own(stream)
        if run.over:
            return
        failed = [
            events_pb2.FailedBase(key=m["base"], reason=m["reason"]) for m in messages if m["type"] == "base_failed"
        ]
        trained = []
        for message in (m for m in messages if m["type"] == "base_completed"):
            if changed := _changed(run, message):
                failed.append(events_pb2.FailedBase(key=message["base"], reason=changed))
            else:
                trained.append(message)
        finished = next((m for m in messages if m["type"] == "finished"), None)
        if ended.well and trained and finished:
            self._complete(run, trained, failed)
        else:
            reasons = [f"{base.key}: {base.reason}" for base in failed]
            whole = (finished or {}).get("reason")
            run.failed(ended.problem or whole or "; ".join(reasons) or ended.reason, failed)
            self._training.record(run)
        self._changes.publish(stream)

    def refused(self, stream: str, reason: str) -> None:
        run = self._own(stream)
        if not run.over:
            run.failed(reason)
            self._training.record(run)

    def forget(self, stream: str) -> None:
        self._attempts.pop(stream, None)
        self._messages.pop(stream, None)
        self.live.pop(stream, None)
        self._changes.publish(stream)

    def _own(self, stream: str) -> TrainingRun:
        """The run as it is now. Raises WrongStreamVersion when another worker has begun it since this one did."""
        run = self._training.load(TrainingRun, stream)
        if not run.over and run.attempts != self._attempts.get(stream, run.attempts):
            raise WrongStreamVersion(f"{run.worker} has begun {stream} since; what was done here does not count")
        return run

    def _epochs(self, stream: str, messages: Sequence[dict[str, Any]]) -> None:
        if not messages:
            return
        run = self._own(stream)
        for message in messages:
            names = ("train_loss", "validation_loss", "learning_rate", "seconds")
            measured = {name: message[name] for name in names if name in message}
            run.epoch(
                events_pb2.EpochCompleted(
                    run=run.request.run,
                    base=message["base"],
                    epoch=message["epoch"],
                    epochs=message["epochs"],
                    **measured,
                )
            )
        self._training.record(run)
        self._changes.publish(stream)

    def _complete(
        self, run: TrainingRun, trained: Sequence[dict[str, Any]], failed: Sequence[events_pb2.FailedBase]
    ) -> None:
        """Adapters into the store, then the outcome and the version in one append: both or none."""

        def attempt() -> None:
            current = self._own(run.id)
            if current.over:
                return
            line = self._training.load(ModelLine, model_stream(run.request.org, run.request.model))
            current.completed(outcome)
            line.create(current, outcome)
            self._training.record(current, line)

        self.finishing.add(run.id)
        try:
            outcome = events_pb2.TrainingCompleted(
                run=run.request.run,
                trained=[self._trained(run, message, SKIPPED_NAMED // len(trained)) for message in trained],
                failed=failed,
                dataset_sha256=run.dataset_material().sha256,
                seconds=round(seconds_since(run.start_time), 3),
                weights={message["base"]: 1 / len(trained) for message in trained},
            )
            self._training.retried(attempt)
            shutil.rmtree(self._folder(run), ignore_errors=True)  # everything that counts is in the store
            self._activate(self._training.load(TrainingRun, run.id))
        except PASSING:
            raise
        except (ModelLedgerError, OSError) as error:
            # For example a base withdrawn meanwhile, or a full disk: what was made is not vouched for.
            log.warning("%s: the result could not be kept: %s", run.id, error)
            self.refused(run.id, f"the result could not be kept: {error}")
        finally:
            self.finishing.discard(run.id)

    def _trained(self, run: TrainingRun, message: dict[str, Any], named: int) -> events_pb2.TrainedBase:
        stored = self._training.artifacts.put_directory(Path(message["adapter"]))
        name = f"adapters/{run.request.run}/{message['base']}"
        return events_pb2.TrainedBase(
            key=message["base"],
            base_sha256=run.base_material(message["base"]).sha256,
            adapter=events_pb2.ArtifactRef(name=name, sha256=stored.sha256, size=stored.size),
            epochs=message["epochs"],
            train_loss=message.get("train_loss"),
            validation_loss=message.get("validation_loss"),
            trainable_parameters=message["trainable_parameters"],
            seconds=message["seconds"],
            train_examples=message["train_examples"],
            validation_examples=message["validation_examples"],
            skipped=[
                events_pb2.SkippedLine(line=skipped["line"], reason=skipped["reason"][:MAX_SKIP_REASON])
                for skipped in message["skipped"][:named]
            ],
            skipped_lines=message["skipped_lines"],
            environment={key: str(value) for key, value in message["environment"].items()},
        )

    def _activate(self, run: TrainingRun) -> None:
        if not run.request.activate or run.state != COMPLETED:
            return
        name = ModelName(run.request.org, run.request.model)
        if self._training.load(ModelLine, name.stream).activated_since(run.request.run):
            return  # it was done before, or somebody chose a version later: that is not to be undone
        request = registry_pb2.ActivateVersionRequest(
            name=f"{name.resource}/versions/{self._training.version_of(run)}",
            reason=f"asked for with {run.request.run}",
            request_id=f"activate/{run.request.run}",
        )
        try:
            call(self._training.registry.ActivateVersion, request, user=run.request.caller.id.removeprefix("local:"))
        except PASSING:
            raise
        except ModelLedgerError as error:  # the version stands; only the activation is missing
            log.error("%s: the version was made but not activated: %s", run.id, error.message)

    def _spec(self, run: TrainingRun, folder: Path) -> dict[str, Any]:
        """The child's input, every file checked against its digest. Raises when something changed since."""
        models = self._training.catalogue().models
        bases = []
        for key in run.request.bases:
            material = run.base_material(key)
            if key not in models:
                raise NotFound(f"base model {key} is not in the configured folders any more")
            if models[key].sha256 != material.sha256:
                raise ArtifactMismatch(
                    f"{models[key].path} has changed since the run was requested: it now hashes to "
                    f"{models[key].sha256}, the request names {material.sha256}"
                )
            adapters = [
                self._checkout(folder / "parents" / artifact.sha256, artifact.sha256)
                for artifact in run.parent_adapters()
                if artifact.name.endswith(f"/{key}")
            ]
            bases.append({"key": key, "path": str(models[key].path.resolve()), "adapters": adapters})
        return {
            "run_id": run.request.run,
            "workdir": str((folder / "training").resolve()),
            "bases": bases,
            "dataset": str(self._training.artifacts.get(run.dataset_material().sha256).resolve()),
            "options": _options(run.request),
        }

    def _checkout(self, target: Path, sha256: str) -> str:
        shutil.rmtree(target, ignore_errors=True)  # an earlier attempt's; its bytes may have been changed since
        return str(self._training.artifacts.checkout(sha256, target).resolve())

    def _folder(self, run: TrainingRun) -> Path:
        return self._training.config.work_folder / run.request.run


def _changed(run: TrainingRun, message: dict[str, Any]) -> str:
    """What the child says it trained, if that is not what the run asks for."""
    for what, measured, material in (
        ("the base model's folder", message["base_sha256"], run.base_material(message["base"])),
        ("the dataset", message["dataset_sha256"], run.dataset_material()),
    ):
        if measured != material.sha256:
            return (
                f"{what} changed while the run was under way: it hashed to {measured} when it was read, "
                f"the run was requested with {material.sha256}"
            )
    return ""


def _options(request: events_pb2.TrainingRequested) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in request.options.items()}
