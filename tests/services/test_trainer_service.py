"""The trainer over gRPC: runs end as they should whatever is killed, and nothing is trained that was not asked for."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelledger.demo.settings import DATASET
from modelledger.ledger.v1 import events_pb2, registry_pb2
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import InvalidInput, InvalidOption, NoBaseSelected, NotFound, NotReady, Refused
from ledger.kit.client import call, stream, upload
from tests.audit import verify_whole_log
from tests.house import House, eventually

ENDED = (trainer_pb2.RUN_STATE_COMPLETED, trainer_pb2.RUN_STATE_FAILED, trainer_pb2.RUN_STATE_CANCELLED)
SHORT = {"epochs": "1", "batch_size": "16", "max_length": "128"}
LONG = {"epochs": "40", "batch_size": "4", "max_length": "128"}


@pytest.fixture(scope="module")
def house(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("trainer-house")
    shutil.copytree(tiny_base, folder / "models" / "tiny")
    shutil.copytree(tiny_base, folder / "models" / "tiny-two")
    # Other bytes, so that the two are told apart by digest and not only by name.
    config = folder / "models" / "tiny-two" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_name": "Tiny Two"}))
    house = House(folder / "data", folder / "models")
    yield house
    verify_whole_log(house.part("ledger").store)
    house.close()


def register(house: House, lines: list[str], name: str, **header: bool) -> trainer_pb2.CheckDatasetResponse:
    requests = [
        trainer_pb2.CheckDatasetRequest(
            header=trainer_pb2.DatasetHeader(org="acme", dataset=name, register=True, **header)
        ),
        *(trainer_pb2.CheckDatasetRequest(chunk=f"{line}\n".encode()) for line in lines),
    ]
    return upload(house.trainer.CheckDataset, iter(requests))


@pytest.fixture(scope="module")
def dataset(house: House) -> str:
    return register(house, DATASET.read_text().splitlines(), "help").sha256


def start(house: House, dataset: str, model: str, options: dict[str, str] = SHORT, **more: object) -> str:
    request = trainer_pb2.StartTrainingRunRequest(
        model=f"orgs/acme/models/{model}",
        bases=more.pop("bases", ["tiny"]),
        dataset_sha256=dataset,
        options=options,
        **more,
    )
    return call(house.trainer.StartTrainingRun, request).run.name


def get(house: House, name: str) -> trainer_pb2.TrainingRun:
    return call(house.trainer.GetTrainingRun, trainer_pb2.GetTrainingRunRequest(name=name)).run


def ended(house: House, name: str) -> trainer_pb2.TrainingRun:
    return eventually(lambda: (run := get(house, name)).state in ENDED and run, 120)


def child_of(house: House, name: str) -> int:
    """The process id of a run's training process."""

    def find() -> int:
        spec = house.data / "work" / "trainer" / name.removeprefix("training-runs/") / "spec.json"
        found = subprocess.run(["pgrep", "-f", f"trainer.run {spec}"], capture_output=True, text=True).stdout
        return int(found.split()[0]) if found else 0

    return eventually(find)


def test_two_trainings_make_v1_0_and_v1_1_and_progress_only_grows(house: House, dataset: str) -> None:
    first = start(house, dataset, "assistant", request_id="once")
    assert re.fullmatch(r"training-runs/run-\d{8}-\d{6}(-\d+)?", first)
    assert start(house, dataset, "assistant", request_id="once") == first
    _, watched = stream(house.trainer.WatchTrainingRun, trainer_pb2.WatchTrainingRunRequest(name=first))
    states = [response.run for response in watched]
    assert [run.progress for run in states] == sorted(run.progress for run in states)
    assert states[-1].state == trainer_pb2.RUN_STATE_COMPLETED, states[-1].reason
    assert states[-1].progress == 100
    assert states[-1].version == "v1.0"

    second = ended(house, start(house, dataset, "assistant", parent_version="v1.0"))
    assert second.version == "v1.1", second.reason
    version = call(
        house.registry.GetVersion, registry_pb2.GetVersionRequest(name="orgs/acme/models/assistant/versions/v1.1")
    ).version
    [adapter] = version.record.adapters
    assert [ref.sha256 for ref in adapter.chain] == [
        states[-1].outcome.trained[0].adapter.sha256,
        second.outcome.trained[0].adapter.sha256,
    ]
    assert not version.active  # training never activates unless asked


def test_of_three_bases_only_the_selected_are_trained_and_recorded(house: House, dataset: str) -> None:
    run = ended(house, start(house, dataset, "pair", bases=["tiny", "Tiny_Two"], activate=True))
    assert run.state == trainer_pb2.RUN_STATE_COMPLETED, run.reason
    assert {base.key for base in run.outcome.trained} == {"tiny", "tiny-two"}
    completed = [e for e in house.events(run.name) if e.kind == "TrainingCompleted"]
    used = {material.name for material in completed[0].materials}
    assert used == {"base-models/tiny", "base-models/tiny-two", "datasets/acme/help"}
    active = call(
        house.registry.GetVersion, registry_pb2.GetVersionRequest(name="orgs/acme/models/pair/versions/active")
    )
    assert active.version.version == "v1.0"


def test_nothing_is_recorded_for_a_refused_request(house: House, dataset: str) -> None:
    before = len(house.events("", "TrainingRequested"))
    with pytest.raises(NoBaseSelected):
        start(house, dataset, "assistant", bases=[])
    with pytest.raises(NotFound):
        start(house, dataset, "assistant", bases=["llama-99"])
    with pytest.raises(InvalidOption, match="learning_rate"):
        start(house, dataset, "assistant", {"learning_rate": "-1", "colour": "red"})
    with pytest.raises(NotFound):
        start(house, "0" * 64, "assistant")
    with pytest.raises(NotFound):
        start(house, dataset, "assistant", parent_version="v9.9")
    assert len(house.events("", "TrainingRequested")) == before


def test_a_cancelled_run_makes_no_version(house: House, dataset: str) -> None:
    running = start(house, dataset, "cancelled", LONG)
    queued = start(house, dataset, "cancelled", LONG)
    eventually(lambda: get(house, running).epochs, 120)
    for name in (queued, running):
        call(house.trainer.CancelTrainingRun, trainer_pb2.CancelTrainingRunRequest(name=name, reason="enough"))
    for name in (queued, running):
        assert ended(house, name).state == trainer_pb2.RUN_STATE_CANCELLED
    with pytest.raises(Refused):
        call(house.trainer.CancelTrainingRun, trainer_pb2.CancelTrainingRunRequest(name=running))
    with pytest.raises(NotFound):
        call(
            house.registry.GetVersion,
            registry_pb2.GetVersionRequest(name="orgs/acme/models/cancelled/versions/latest"),
        )


def test_a_killed_child_fails_the_run_with_the_reason(house: House, dataset: str) -> None:
    name = start(house, dataset, "killed", LONG)
    os.kill(child_of(house, name), signal.SIGKILL)
    run = ended(house, name)
    assert run.state == trainer_pb2.RUN_STATE_FAILED
    assert "SIGKILL" in run.reason


def test_a_restarted_trainer_resumes_its_run(house: House, dataset: str) -> None:
    name = start(house, dataset, "resumed", {**LONG, "epochs": "8"})
    eventually(lambda: get(house, name).epochs, 120)
    house.restart("trainer")
    run = eventually(lambda: (r := get(house, name)).state in ENDED and r, 120)
    assert run.state == trainer_pb2.RUN_STATE_COMPLETED, run.reason
    assert run.attempts == 2
    assert [epoch.epoch for epoch in run.epochs] == list(range(1, 9))


def test_a_dataset_below_the_minimum_needs_an_explicit_word(house: House) -> None:
    lines = [json.dumps({"prompt": f"q {i}", "completion": f"a {i}"}) for i in range(49)]
    with pytest.raises(NotReady, match="49 valid examples"):
        register(house, lines, "small")
    answer = register(house, [*lines, "{not json"], "small", accept_below_minimum=True)
    assert (answer.examples, answer.problem_count, answer.problems[0].line) == (49, 1, 50)
    [event] = house.events("datasets/acme/small")
    assert isinstance(event.data, events_pb2.DatasetRegistered)
    assert event.data.below_minimum_accepted


def test_an_upload_without_a_header_is_refused(house: House) -> None:
    with pytest.raises(InvalidInput, match="header"):
        upload(house.trainer.CheckDataset, iter([trainer_pb2.CheckDatasetRequest(chunk=b"{}")]))
