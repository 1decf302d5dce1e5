"""The worker loop: whatever goes wrong, a run ends as it should, or with the reason; it is never left lying."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelledger.ledger.v1 import events_pb2, registry_pb2
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import Refused, Unreachable
from ledger.kit import client, work
from ledger.kit.client import call
from ledger.local_actor import LocalActor
from ledger.signers import actor_signers
from ledger.statement import Artifact
from tests.faults.training_runs import COMPLETED, FAILED, ended, get, start
from tests.house import House, eventually
from trainer import worker


@pytest.mark.parametrize("patience", [30.0, 0.0])  # of the recorder; without any the worker itself has to try again
def test_a_ledger_that_was_away_leaves_no_run_lying(
    house: House, dataset: str, act: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    act("slow")
    name = start(house, dataset)
    eventually(lambda: get(house, name).epochs)
    monkeypatch.setattr(client, "RETRY_FOR", patience)
    house.stop("ledger")
    time.sleep(1.5)
    house.start("ledger")
    monkeypatch.setattr(client, "RETRY_FOR", 30.0)  # for the questions of this test
    run = ended(house, name)
    assert run.state == COMPLETED, run.reason
    assert [epoch.epoch for epoch in run.epochs] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("long line", "more than 1048576 bytes"),
        ("no message", "cannot be read: NaN"),
        ("half a line", "SIGABRT"),
        ("other base", "the base model's folder changed while"),
        ("other dataset", "the dataset changed while"),
    ],
)
def test_a_child_that_misbehaves_fails_its_run_with_the_reason(
    house: House, dataset: str, act: Callable[[str], None], part: str, reason: str
) -> None:
    act(part)
    run = ended(house, start(house, dataset))
    assert run.state == FAILED
    assert reason in run.reason
    assert run.attempts == 1


def test_a_training_that_skipped_many_lines_is_recorded(house: House, dataset: str, act: Callable[[str], None]) -> None:
    act("many skipped")
    run = ended(house, start(house, dataset))
    assert run.state == COMPLETED, run.reason
    [trained] = run.outcome.trained
    assert (trained.skipped_lines, len(trained.skipped)) == (100, 20)


def test_a_disk_that_is_full_fails_the_run(
    house: House, dataset: str, act: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    act("quick")
    monkeypatch.setattr(house.part("trainer")._training.artifacts, "put_directory", full)
    run = ended(house, start(house, dataset))
    assert run.state == FAILED
    assert "No space left on device" in run.reason


def test_progress_gives_a_stopped_run_new_attempts(
    house: House, dataset: str, act: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    act("slow")
    monkeypatch.setattr(worker, "MAX_ATTEMPTS", 2)
    name = start(house, dataset)
    for _ in range(3):
        known = len(get(house, name).epochs)
        eventually(lambda known=known: len(get(house, name).epochs) > known)
        house.restart("trainer")
    run = ended(house, name)
    assert run.state == COMPLETED, run.reason
    assert run.attempts == 4


@pytest.mark.parametrize("when", ["it runs", "it begins"])
def test_a_cancelled_run_ends_its_child_although_that_says_nothing(
    house: House, dataset: str, act: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    act("silent")
    claim = worker.TrainingJob.claim

    def cancel(stream: str) -> None:
        call(house.trainer.CancelTrainingRun, trainer_pb2.CancelTrainingRunRequest(name=stream))

    def claim_and_cancel(job: worker.TrainingJob, stream: str, name: str) -> work.Task | None:
        task = claim(job, stream, name)
        cancel(stream)
        return task

    if when == "it begins":
        monkeypatch.setattr(worker.TrainingJob, "claim", claim_and_cancel)
    name = start(house, dataset)
    eventually(lambda: get(house, name).attempts)
    if when == "it runs":
        hold = house.part("trainer")._worker._hold
        eventually(lambda: hold._child)
        cancel(name)
    eventually(lambda: get(house, name).state == trainer_pb2.RUN_STATE_CANCELLED)
    monkeypatch.setattr(worker.TrainingJob, "claim", claim)
    act("quick")
    assert ended(house, start(house, dataset)).state == COMPLETED, "the worker is free again"
    assert [event.kind for event in house.events(name)][-1] == "TrainingCancelled"


def activated(house: House, model: str) -> list[str]:
    return [event.data.version for event in house.events(f"models/acme/{model}", "VersionActivated")]


def test_a_registry_that_was_away_activates_the_version_when_it_is_back(
    house: House, dataset: str, act: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    act("quick")
    away = [Unreachable("the registry is away")] * 3

    def sometimes(*arguments: Any, **more: Any) -> Any:
        if away:
            raise away.pop()
        return call(*arguments, **more)

    monkeypatch.setattr(worker, "call", sometimes)
    assert ended(house, start(house, dataset, "patient", activate=True)).version == "v1.0"
    eventually(lambda: activated(house, "patient"))
    assert not away


def test_an_activation_that_failed_does_not_undo_a_later_one(
    house: House, dataset: str, act: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    act("quick")
    job = house.part("trainer")._job

    def refuse(*_: Any, **__: Any) -> None:
        raise Refused("not today")

    with monkeypatch.context() as during:
        during.setattr(worker, "call", refuse)
        first = start(house, dataset, "chosen", activate=True)
        assert ended(house, first).version == "v1.0"
        eventually(lambda: not job.finishing)
    assert ended(house, start(house, dataset, "chosen")).version == "v1.1"
    chosen = "orgs/acme/models/chosen/versions/v1.1"
    call(house.registry.ActivateVersion, registry_pb2.ActivateVersionRequest(name=chosen, reason="better"))
    assert job.claim(first, "whoever it is delivered to again") is None
    assert activated(house, "chosen") == ["v1.1"]


def test_what_an_earlier_attempt_checked_out_is_not_trusted(house: House, tmp_path: Path) -> None:
    source = tmp_path / "adapter"
    source.mkdir()
    (source / "weights").write_text("recorded")
    job = house.part("trainer")._job
    sha256 = house.part("trainer")._training.artifacts.put_directory(source).sha256
    target = tmp_path / "work" / sha256
    job._checkout(target, sha256)
    (target / "weights").write_text("changed")
    job._checkout(target, sha256)
    assert (target / "weights").read_text() == "recorded"


# --- last: after this the base is gone


def test_a_base_that_is_withdrawn_meanwhile_fails_the_run(
    house: House, dataset: str, act: Callable[[str], None]
) -> None:
    act("slow")
    name = start(house, dataset)
    eventually(lambda: get(house, name).epochs)
    ledger = house.part("ledger")
    actor = LocalActor("registry", actor_signers(house.data / "keys")["registry"], ledger.store, ledger.sequencer)
    [registered] = house.events("base-models/tiny", "BaseModelRegistered")
    withdrawn = events_pb2.BaseModelWithdrawn(key="tiny", reason="licence")
    subjects = [Artifact(subject.name, subject.sha256) for subject in registered.subjects]
    house._run(actor.record(withdrawn, "base-models/tiny", actor.next_version("base-models/tiny"), subjects))
    run = ended(house, name)
    assert run.state == FAILED
    assert "the result could not be kept" in run.reason
