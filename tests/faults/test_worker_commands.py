"""Which worker has a command, and until when: it is given back, taken up again, refused or parked, and never lost."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from modelledger.ledger.v1 import subscription_pb2, subscription_pb2_grpc

from ledger.errors import DamagedLog, Refused, Unreachable, WrongStreamVersion
from ledger.kit import commands, recorder, work
from ledger.kit.client import call, stream
from ledger.kit.live import Changes
from ledger.kit.work_folder import WorkFolder
from tests.faults.training_runs import COMPLETED, ended, get, start
from tests.house import House, eventually
from trainer import worker


def group(house: House, name: str = worker.TrainingJob.group) -> subscription_pb2.Group:
    stub = subscription_pb2_grpc.SubscriptionServiceStub(house.channel("ledger"))
    return call(stub.GetGroup, subscription_pb2.GetGroupRequest(name=f"groups/{name}")).group


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
    eventually(lambda: job.reasons)  # the group is there by then
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
