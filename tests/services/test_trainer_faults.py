"""The trainer's commands when they are repeated or mixed up, and bytes that change under a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from modelledger.demo.settings import DATASET
from modelledger.inference.v1 import inference_pb2
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import EventIdReused
from ledger.kit.client import call, upload
from tests.house import House, eventually

FAILED, CANCELLED = trainer_pb2.RUN_STATE_FAILED, trainer_pb2.RUN_STATE_CANCELLED
QUICK = {"epochs": "1", "batch_size": "16", "max_length": "128"}


@pytest.fixture(scope="module")
def house(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(tiny_base, folder / "bases" / "tiny")
    with closing(House(folder / "data", folder / "bases")) as house:
        yield house


@pytest.fixture
def no_worker(house: House) -> Iterator[None]:
    """Requests are recorded, and nobody takes them."""
    house._run(house.part("trainer").stop())
    yield
    for event in house.events("", "TrainingRequested"):
        name = event.originator_id
        if get(house, name).state != CANCELLED:
            call(house.trainer.CancelTrainingRun, trainer_pb2.CancelTrainingRunRequest(name=name))
    house.restart("trainer")


def register(house: House, org: str) -> str:
    header = trainer_pb2.DatasetHeader(org=org, dataset="help", register=True)
    pieces = [
        trainer_pb2.CheckDatasetRequest(header=header),
        trainer_pb2.CheckDatasetRequest(chunk=DATASET.read_bytes()),
    ]
    return upload(house.trainer.CheckDataset, iter(pieces)).sha256


def start(house: House, org: str, dataset: str, user: str = "", **more: Any) -> str:
    request = trainer_pb2.StartTrainingRunRequest(
        model=f"orgs/{org}/models/bot", **{"bases": ["tiny"], "dataset_sha256": dataset, "options": QUICK, **more}
    )
    return call(house.trainer.StartTrainingRun, request, user=user).run.name


def get(house: House, name: str) -> trainer_pb2.TrainingRun:
    return call(house.trainer.GetTrainingRun, trainer_pb2.GetTrainingRunRequest(name=name)).run


def cancel(house: House, name: str, request_id: str, reason: str = "enough") -> trainer_pb2.TrainingRun:
    request = trainer_pb2.CancelTrainingRunRequest(name=name, reason=reason, request_id=request_id)
    return call(house.trainer.CancelTrainingRun, request).run


@pytest.mark.usefixtures("no_worker")
def test_a_request_id_names_one_request_of_one_caller(house: House) -> None:
    dataset = register(house, "acme")
    assert register(house, "globex") == dataset
    first = start(house, "acme", dataset, request_id="1")
    assert start(house, "acme", dataset, request_id="1") == first
    assert start(house, "acme", dataset, request_id="1", bases=["Tiny"], options=QUICK | {"epochs": "1"}) == first
    with pytest.raises(EventIdReused, match="take a new one"):
        start(house, "globex", dataset, request_id="1")
    for other in ({"options": {"epochs": "2"}}, {"activate": True}, {"major": True}):
        with pytest.raises(EventIdReused):
            start(house, "acme", dataset, request_id="1", **other)
    by_another = start(house, "globex", dataset, user="gina", request_id="1")
    assert by_another != first
    assert get(house, by_another).request.org == "globex"


@pytest.mark.usefixtures("no_worker")
def test_calls_at_once_with_one_request_id_make_one_run(house: House) -> None:
    dataset = register(house, "acme")
    before = len(house.events("", "TrainingRequested"))
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: start(house, "acme", dataset, request_id="at once"), range(8)))
    assert len(set(names)) == 1
    assert len(house.events("", "TrainingRequested")) == before + 1


@pytest.mark.usefixtures("no_worker")
def test_a_cancellation_cancels_or_is_refused(house: House) -> None:
    dataset = register(house, "acme")
    first, second = start(house, "acme", dataset), start(house, "acme", dataset)
    assert cancel(house, first, "stop").state == CANCELLED
    assert cancel(house, first, "stop").state == CANCELLED
    with pytest.raises(EventIdReused):
        cancel(house, second, "stop")
    assert get(house, second).state != CANCELLED
    third = start(house, "acme", dataset)
    with ThreadPoolExecutor(4) as pool:
        assert {run.state for run in pool.map(lambda _: cancel(house, third, "together"), range(4))} == {CANCELLED}


def test_a_reused_request_id_leaves_serving_toml_alone(house: House) -> None:
    house.register_base("tiny")

    def switch(enabled: bool, request_id: str) -> bool:
        request = inference_pb2.SetDeploymentRequest(
            name="base/tiny", enabled=enabled, make_default=enabled, request_id=request_id
        )
        return call(house.inference.SetDeployment, request).deployment.enabled

    def changes() -> list[bool]:
        return [event.data.enabled for event in house.events("deployments/base/tiny", "DeploymentChanged")]

    assert switch(True, "a")
    [serving] = house.data.rglob("serving.toml")
    enabled = serving.read_text()
    with pytest.raises(EventIdReused):
        switch(False, "a")
    assert serving.read_text() == enabled
    assert not switch(False, "b")
    disabled = serving.read_text()
    assert not switch(True, "a")  # done before; that it was switched off since is not undone
    assert serving.read_text() == disabled
    assert changes() == [True, False]


def test_a_base_that_changes_under_the_run_is_not_trained_under_its_old_name(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = register(house, "acme")
    job = house.part("trainer")._job
    card = house.bases[0] / "tiny" / "README.md"
    original, spec = card.read_bytes(), job._spec

    def changed_after(*arguments: Any) -> Any:
        checked = spec(*arguments)
        card.write_bytes(original + b"changed")
        return checked

    monkeypatch.setattr(job, "_spec", changed_after)
    name = start(house, "acme", dataset)
    run = eventually(lambda: (found := get(house, name)).reason and found, 120)
    card.write_bytes(original)
    assert run.state == FAILED
    assert "the base model's folder changed while the run was under way" in run.reason


def test_a_ledger_that_starts_anew_is_waited_for(house: House) -> None:
    """A channel that has met a closed port does not try it again at once."""
    sha256 = register(house, "patient")
    house.stop("ledger")
    with ThreadPoolExecutor() as threads:
        listing = threads.submit(call, house.trainer.ListTrainingRuns, trainer_pb2.ListTrainingRunsRequest())
        again = threads.submit(register, house, "patient")
        assert not wait([listing, again], 0.5).done, "they wait"
        house.start("ledger")
        assert listing.result() is not None
        assert again.result() == sha256
