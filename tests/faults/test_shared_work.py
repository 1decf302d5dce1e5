"""Several workers of one kind, as processes of their own: each run is done once, whichever of them dies or sleeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from modelledger.demo.settings import DATASET
from modelledger.ledger.v1 import subscription_pb2, subscription_pb2_grpc
from modelledger.quantizer.v1 import quantizer_pb2
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import WrongStreamVersion
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.client import call, upload
from ledger.kit.live import Changes
from ledger.kit.work import Ended
from quantizer.worker import QuantizationJob
from tests.audit import verify_whole_log
from tests.house import House, eventually
from tests.laws.test_catalog import make

REQUESTED, STARTED, EPOCH, COMPLETED = (
    "TrainingRequested",
    "TrainingStarted",
    "EpochCompleted",
    "TrainingCompleted",
)
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Runs are requested here, and begun by nobody but the processes that a test starts."""
    make(tmp_path / "bases" / "tiny")
    with closing(House(tmp_path / "data", tmp_path / "bases", working=False)) as house:
        yield house


@pytest.fixture
def start(house: House, tmp_path: Path) -> Iterator[Start]:
    """Begin a worker in a folder of its own."""
    base = house.register_base("tiny")
    running: list[subprocess.Popen[bytes]] = []

    def start(folder: str, part: str, lease: float, *, watchful: bool = True) -> subprocess.Popen[bytes]:
        settings = {
            "ledger": house.addresses["ledger"],
            "data": str(house.data),
            "work": str(tmp_path / folder),
            "bases": str(tmp_path / "bases"),
            "lease": lease,
            "part": part,
            "base": base,
            "watchful": watchful,
        }
        process = subprocess.Popen([sys.executable, "-m", "tests.faults.worker_process", json.dumps(settings)])
        running.append(process)
        return process

    yield start
    for process in running:
        process.send_signal(signal.SIGCONT)
        process.terminate()
    assert {process.wait(30) for process in running} <= {0, -signal.SIGKILL}


def request(house: House, runs: int) -> list[str]:
    header = trainer_pb2.DatasetHeader(org="acme", dataset="help", register=True)
    pieces = [
        trainer_pb2.CheckDatasetRequest(header=header),
        trainer_pb2.CheckDatasetRequest(chunk=DATASET.read_bytes()),
    ]
    dataset = upload(house.trainer.CheckDataset, iter(pieces)).sha256
    asked = trainer_pb2.StartTrainingRunRequest(model="orgs/acme/models/bot", bases=["tiny"], dataset_sha256=dataset)
    return [call(house.trainer.StartTrainingRun, asked).run.name for _ in range(runs)]


def kinds(house: House, run: str) -> list[str]:
    return [event.kind for event in house.events(run)]


def workers(house: House, run: str = "") -> list[str]:
    """Who began a run, or all of them, attempt after attempt."""
    return [event.data.worker for event in house.events(run, STARTED)]


def name(tmp_path: Path, folder: str) -> str:
    return (tmp_path / folder / "worker-id").read_text()


def group(house: House) -> subscription_pb2.Group:
    stub = subscription_pb2_grpc.SubscriptionServiceStub(house.channel("ledger"))
    return call(stub.GetGroup, subscription_pb2.GetGroupRequest(name="groups/trainer-training-runs")).group


def verify(house: House, runs: list[str]) -> None:
    """Every run ended completed, once, with the version it makes, and nothing is left over."""
    for run in runs:
        assert Counter(kinds(house, run))[COMPLETED] == 1
        assert [event.data.epoch for event in house.events(run, EPOCH)] == [1, 2, 3, 4, 5, 6]
    assert len(house.events("models/acme/bot", "VersionCreated")) == len(runs)
    found = eventually(lambda: (now := group(house)).acked == len(runs) and now)
    assert (found.behind, found.leased, found.waiting, found.parked) == (0, 0, 0, 0)
    store = house.part("ledger").store
    assert verify_whole_log(store) == store.head.size


def test_two_workers_share_ten_runs_and_one_is_killed(house: House, start: Start, tmp_path: Path) -> None:
    runs = request(house, 10)
    doomed, _ = start("a", "brisk", 4.0), start("b", "brisk", 4.0)
    eventually(lambda: len(set(workers(house))) == 2)
    a = name(tmp_path, "a")
    killed = eventually(
        lambda: next((r for r in runs if workers(house, r) == [a] and EPOCH in kinds(house, r)[:-1]), ""),
    )
    doomed.kill()
    eventually(lambda: len(house.events("", COMPLETED)) == 10, 90)
    verify(house, runs)
    begun = {run: workers(house, run) for run in runs}
    again = {run for run, by in begun.items() if len(by) > 1}
    assert len(again) <= 1, "only what the dead one had in hand is begun again"
    assert again <= {run for run, by in begun.items() if by == [a, name(tmp_path, "b")]}
    assert {name(tmp_path, "a"), name(tmp_path, "b")} == set(workers(house))
    assert killed in runs


def test_a_killed_worker_takes_its_run_up_again_at_once(house: House, start: Start, tmp_path: Path) -> None:
    [run] = request(house, 1)
    first = start("a", "slow", 600.0)
    eventually(lambda: EPOCH in kinds(house, run))
    first.kill()
    first.wait()
    start("a", "slow", 600.0)
    eventually(lambda: COMPLETED in kinds(house, run))
    assert workers(house, run) == [name(tmp_path, "a")] * 2
    verify(house, [run])


@pytest.mark.parametrize("watchful", [True, False])  # False: it reports before it learns that its lease is over
def test_a_worker_that_slept_longer_than_its_lease_does_no_harm(
    house: House, start: Start, tmp_path: Path, watchful: bool
) -> None:
    [run] = request(house, 1)
    sleeper = start("a", "brisk", 3.0, watchful=watchful)
    eventually(lambda: EPOCH in kinds(house, run))
    sleeper.send_signal(signal.SIGSTOP)
    heir = start("b", "slow", 3.0)
    made = f"{run.rpartition('/')[2]}/training/adapter/adapter_model.safetensors"
    eventually((tmp_path / "a" / made).exists)  # its child did not sleep, and has something to report
    eventually(lambda: len(workers(house, run)) == 2)
    assert COMPLETED not in kinds(house, run)
    sleeper.send_signal(signal.SIGCONT)
    eventually(lambda: COMPLETED in kinds(house, run))
    verify(house, [run])
    assert workers(house, run) == [name(tmp_path, "a"), name(tmp_path, "b")]
    [completed] = house.events(run, COMPLETED)
    [trained] = completed.data.trained
    adapter = ArtifactStore(house.data / "artifacts").checkout(trained.adapter.sha256, tmp_path / "adapter")
    assert str(tmp_path / "b") in (adapter / "adapter_model.safetensors").read_text()

    os.kill(heir.pid, signal.SIGTERM)
    heir.wait()
    [another] = request(house, 1)
    eventually(lambda: COMPLETED in kinds(house, another))
    assert workers(house, another) == [name(tmp_path, "a")], "the one that slept works on"
    verify(house, [run, another])


def test_a_quantisation_that_another_worker_has_begun_since_is_not_this_ones_to_end(house: House) -> None:
    house.register_base("tiny")
    asked = quantizer_pb2.StartQuantizationRequest(source="base-models/tiny", types=["F16"])
    name = call(house.quantizer.StartQuantization, asked).quantization.name
    quantizing = house.part("quantizer")._quantizing
    late, heir = QuantizationJob(quantizing, Changes()), QuantizationJob(quantizing, Changes())
    assert late.claim(name, "worker-a")
    assert heir.claim(name, "worker-b")
    for act_late in (lambda: late.refused(name, "gone here"), lambda: late.ended(name, Ended(0, ""))):
        with pytest.raises(WrongStreamVersion, match="worker-b has begun"):
            act_late()
    heir.ended(name, Ended(1, "as it is"))
    assert kinds(house, name) == [
        "QuantizationRequested",
        "QuantizationStarted",
        "QuantizationStarted",
        "QuantizationFailed",
    ]
    late.ended(name, Ended(0, ""))  # it is over: nothing more to say
