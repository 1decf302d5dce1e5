"""The worker loop: whatever goes wrong, a command ends as it should, or with the reason; it is never left lying."""

from __future__ import annotations

import json
import os
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from modelledger.demo.settings import DATASET
from modelledger.ledger.v1 import events_pb2, registry_pb2, subscription_pb2, subscription_pb2_grpc
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import DamagedLog, Refused, Unreachable, WrongStreamVersion
from ledger.kit import client, commands, recorder, work
from ledger.kit.client import call, stream, upload
from ledger.kit.live import Changes
from ledger.kit.work_folder import WorkFolder
from ledger.local_actor import LocalActor
from ledger.signers import actor_signers
from ledger.statement import Artifact
from tests import acting
from tests.house import House, eventually
from trainer import worker

COMPLETED, FAILED = trainer_pb2.RUN_STATE_COMPLETED, trainer_pb2.RUN_STATE_FAILED


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    base = folder / "models" / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (base / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (base / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with closing(House(folder / "data", folder / "models")) as house:
        yield house


@pytest.fixture(scope="module")
def dataset(house: House) -> str:
    header = trainer_pb2.DatasetHeader(org="acme", dataset="help", register=True)
    pieces = [
        trainer_pb2.CheckDatasetRequest(header=header),
        trainer_pb2.CheckDatasetRequest(chunk=DATASET.read_bytes()),
    ]
    return upload(house.trainer.CheckDataset, iter(pieces)).sha256


@pytest.fixture
def act(house: House, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Training processes play this part from now on."""
    monkeypatch.setattr(work, "AGAIN_AFTER", 0.2)
    return partial(acting.act, house, monkeypatch)


def start(house: House, dataset: str, model: str = "bot", **more: Any) -> str:
    request = trainer_pb2.StartTrainingRunRequest(
        model=f"orgs/acme/models/{model}", bases=["tiny"], dataset_sha256=dataset, **more
    )
    return call(house.trainer.StartTrainingRun, request).run.name


def get(house: House, name: str) -> trainer_pb2.TrainingRun:
    return call(house.trainer.GetTrainingRun, trainer_pb2.GetTrainingRunRequest(name=name)).run


def group(house: House, name: str = worker.TrainingJob.group) -> subscription_pb2.Group:
    stub = subscription_pb2_grpc.SubscriptionServiceStub(house.channel("ledger"))
    return call(stub.GetGroup, subscription_pb2.GetGroupRequest(name=f"groups/{name}")).group


def ended(house: House, name: str) -> trainer_pb2.TrainingRun:
    return eventually(lambda: (run := get(house, name)).state in (COMPLETED, FAILED) and run)


# --- the ledger, the child, the log


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


def test_a_restarted_worker_does_not_look_at_what_is_done(
    house: House, dataset: str, act: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    act("quick")
    done = start(house, dataset)
    eventually(lambda: ended(house, done) and group(house).leased == 0)
    looked_at: list[str] = []
    claim = worker.TrainingJob.claim

    def seen(job: worker.TrainingJob, stream: str, name: str) -> work.Task | None:
        looked_at.append(stream)
        return claim(job, stream, name)

    monkeypatch.setattr(worker.TrainingJob, "claim", seen)
    house.restart("trainer")
    new = start(house, dataset)
    assert ended(house, new).state == COMPLETED
    assert looked_at == [new]


def test_a_stopped_worker_gives_its_run_back_and_no_attempt_of_the_group_is_lost(
    house: House, dataset: str, act: Callable[[str], None]
) -> None:
    act("slow")
    before = group(house).acked
    name = start(house, dataset)
    eventually(lambda: get(house, name).epochs)
    house.stop("trainer")
    given_back = group(house)
    assert (given_back.leased, given_back.waiting, given_back.acked) == (0, 1, before)
    house.start("trainer")
    claimed = eventually(lambda: house.part("trainer")._worker._hold)
    assert (claimed.stream, claimed.delivery.attempt) == (name, 1)
    assert ended(house, name).state == COMPLETED
    eventually(lambda: group(house).acked == before + 1)


def test_the_lease_of_a_run_does_not_end_while_its_worker_lives(
    house: House, dataset: str, act: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    act("slow")
    monkeypatch.setattr(commands, "LEASE", 0.6)
    house.restart("trainer")
    training = house.part("trainer")._training
    other = work.Worker(worker.TrainingJob(training, Changes()), training, tmp_path)
    name = start(house, dataset)
    eventually(lambda: get(house, name).epochs)
    other.start()
    run = ended(house, name)
    other.stop()
    assert (run.state, run.attempts) == (COMPLETED, 1), run.reason


def test_a_run_that_another_worker_has_begun_since_is_not_this_ones_to_end(
    house: House, dataset: str, act: Callable[[str], None], tmp_path: Path
) -> None:
    act("quick")
    training = house.part("trainer")._training
    house.part("trainer")._worker.stop()
    name = start(house, dataset)
    late, next_one = worker.TrainingJob(training, Changes()), worker.TrainingJob(training, Changes())
    assert late.claim(name, "worker-a")
    assert next_one.claim(name, "worker-b")
    epoch = {"type": "epoch", "base": "tiny", "epoch": 1, "epochs": 6, "train_loss": 1.0}
    for act_late in (
        lambda: late.message(name, epoch),
        lambda: late.refused(name, "the base is gone here"),
        lambda: late.ended(name, work.Ended(0, "")),
    ):
        with pytest.raises(WrongStreamVersion, match="worker-b has begun"):
            act_late()
    next_one.message(name, epoch)
    next_one.ended(name, work.Ended(1, "as it is"))
    assert [event.kind for event in house.events(name)] == [
        "TrainingRequested",
        "TrainingStarted",
        "TrainingStarted",
        "EpochCompleted",
        "TrainingFailed",
    ]
    late.ended(name, work.Ended(0, ""))  # it is over: nothing more to say
    house.restart("trainer")


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


def test_the_log_is_followed_again_whatever_ended_the_watch(
    house: House, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: list[Exception] = [DamagedLog("for now"), RuntimeError("unforeseen")]

    def sometimes(*arguments: Any) -> Any:
        if broken:
            raise broken.pop()
        return stream(*arguments)

    monkeypatch.setattr(recorder, "stream", sometimes)
    with house.part("trainer")._training.recorder.subscribe(topics=["DatasetRegistered"]) as subscription:
        assert next(subscription).topic == "DatasetRegistered"
    assert not broken


# --- a job of which only the errors matter


@dataclass
class Troubled:
    """claim raises `errors`, one after another; what happens is written down."""

    errors: list[Exception]
    claims: int = 0
    reasons: list[str] = field(default_factory=list)
    group: str = field(default_factory=lambda: f"troubled-{uuid.uuid4().hex}")
    requested = "DatasetRegistered"
    cancelled = ()

    def claim(self, stream: str, worker: str) -> work.Task | None:
        self.claims += 1
        if self.errors:
            raise self.errors.pop()
        return None

    def message(self, stream: str, message: dict[str, Any]) -> None: ...

    def ended(self, stream: str, ended: work.Ended) -> None: ...

    def refused(self, stream: str, reason: str) -> None:
        self.reasons.append(reason)

    def forget(self, stream: str) -> None: ...


@pytest.mark.parametrize(
    ("errors", "claims", "reasons"),
    [
        ([Unreachable("away")] * 5, 6, []),  # says nothing about the command: never refused for it
        ([KeyError("secret")] * 2, 3, []),
        ([KeyError("secret")] * 9, 3, ["could not go on with it 3 times: an unexpected KeyError"]),
        ([KeyError("secret")] * 2 + [Unreachable("away")], 4, []),
        ([Refused("not like that")], 1, ["not like that"]),
    ],
)
def test_a_command_is_taken_up_again_or_refused(
    house: House,
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    errors: list[Exception],
    claims: int,
    reasons: list[str],
) -> None:
    monkeypatch.setattr(work, "AGAIN_AFTER", 0.05)
    job = Troubled(list(errors))
    running = work.Worker(job, house.part("trainer")._training, tmp_path)
    running.start()
    eventually(lambda: job.claims >= claims and len(job.reasons) >= len(reasons))
    time.sleep(0.3)
    running.stop()
    assert job.claims == claims
    assert len(job.reasons) == len(reasons)
    assert all(expected in said for expected, said in zip(reasons, job.reasons, strict=True))
    assert "secret" not in "".join(job.reasons)


def test_a_command_that_cannot_even_be_refused_is_parked_with_the_reason(
    house: House, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Speechless(Troubled):
        def refused(self, stream: str, reason: str) -> None:
            super().refused(stream, reason)
            raise KeyError("secret")

    monkeypatch.setattr(work, "AGAIN_AFTER", 0.01)
    for module in (work, commands):
        monkeypatch.setattr(module, "MAX_DELIVERIES", 5)
    job = Speechless([KeyError("secret")] * 9)
    running = work.Worker(job, house.part("trainer")._training, tmp_path)
    running.start()
    eventually(lambda: group(house, job.group).parked)
    running.stop()
    assert len(job.reasons) == 3
    assert job.claims == 4
    assert "taken up 5 times and never came to its end: an unexpected KeyError" in job.reasons[-1]
    stub = subscription_pb2_grpc.SubscriptionServiceStub(house.channel("ledger"))
    parked = call(stub.ListParked, subscription_pb2.ListParkedRequest(parent=f"groups/{job.group}")).events
    assert [(event.attempts, event.reason) for event in parked] == [
        (5, "an unexpected KeyError; the service's log has the details")
    ]


# --- the folder


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    first = WorkFolder(tmp_path)
    with pytest.raises(Refused, match="another process works in"):
        WorkFolder(tmp_path)
    first.release()
    second = WorkFolder(tmp_path)
    assert second.worker == first.worker
    second.release()


def test_a_second_trainer_on_the_same_data_says_so(house: House) -> None:
    second = house._part("trainer")
    with pytest.raises(Refused, match="another process works in"):
        house._run(second.start())
    house._run(second.stop())
    house._run(second.close())


@pytest.mark.parametrize("left", ["", "worker-12", "\x00" * 19])
def test_a_name_that_a_power_cut_left_half_written_is_made_anew(tmp_path: Path, left: str) -> None:
    (tmp_path / "worker-id").write_text(left)
    folder = WorkFolder(tmp_path)
    folder.release()
    assert len(folder.worker) == len("worker-") + 12
    assert (tmp_path / "worker-id").read_text() == folder.worker
    assert os.listdir(tmp_path).count("worker-id.tmp") == 0


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
