"""The trainer over gRPC: runs end as they should whatever is killed, and nothing is trained that was not asked for."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from modelledger.bundle_download import save
from modelledger.demo.settings import DATASET
from modelledger.ledger.v1 import certification_pb2, certification_pb2_grpc, events_pb2, registry_pb2
from modelledger.quantizer.v1 import quantizer_pb2
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import (
    InvalidBaseModel,
    InvalidDataset,
    InvalidInput,
    InvalidName,
    InvalidOption,
    NoBaseSelected,
    NotFound,
    NotReady,
    Refused,
)
from ledger.kit.client import call, stream, upload
from tests.acting import act
from tests.audit import verify_whole_log
from tests.house import House, eventually
from trainer.application import Training
from trainer.config import TrainerConfig
from trainer.wiring import TrainerPart

pytestmark = pytest.mark.slow  # a process that trains imports torch, which takes longer than the training
ENDED = (trainer_pb2.RUN_STATE_COMPLETED, trainer_pb2.RUN_STATE_FAILED, trainer_pb2.RUN_STATE_CANCELLED)
SHORT = {"epochs": "1", "batch_size": "16", "max_length": "128"}
# For a training process: every library but one is found.
WITHOUT_TRL = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "trl" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
LONG = {"epochs": "40", "batch_size": "4", "max_length": "128"}


@pytest.fixture(scope="module")
def house(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("trainer-house")
    # Other bytes each, so that they are told apart by digest and not only by name.
    bases: dict[str, dict[str, object]] = {
        "tiny": {},
        "tiny-two": {"model_name": "Tiny Two"},
        "tiny-three": {"model_name": "Tiny Three"},
        "wide": {"hidden_size": 4096},  # its weights do not fit: found out only when it is loaded
        "three": {"auto_map": {"AutoModel": "modeling_own.Own"}},
    }
    for name, differences in bases.items():
        config = Path(shutil.copytree(tiny_base, folder / "models" / name), "config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | differences))
    house = House(folder / "data", folder / "models")
    yield house
    verify_whole_log(house.part("ledger").store)
    house.close()


def register(
    house: House, lines: list[str], name: str, org: str = "acme", **header: bool
) -> trainer_pb2.CheckDatasetResponse:
    requests = [
        trainer_pb2.CheckDatasetRequest(
            header=trainer_pb2.DatasetHeader(org=org, dataset=name, register=True, **header)
        ),
        *(trainer_pb2.CheckDatasetRequest(chunk=f"{line}\n".encode()) for line in lines),
    ]
    return upload(house.trainer.CheckDataset, iter(requests))


@pytest.fixture(scope="module")
def dataset(house: House) -> str:
    return register(house, DATASET.read_text().splitlines(), "help").sha256


def start(house: House, sha256: str, model: str, options: dict[str, str] = SHORT, **more: object) -> str:
    request = trainer_pb2.StartTrainingRunRequest(
        model=f"orgs/{more.pop('org', 'acme')}/models/{model}",
        bases=more.pop("bases", ["tiny"]),
        dataset_sha256=sha256,
        options=options,
        **more,
    )
    return call(house.trainer.StartTrainingRun, request).run.name


def get(house: House, name: str) -> trainer_pb2.TrainingRun:
    return call(house.trainer.GetTrainingRun, trainer_pb2.GetTrainingRunRequest(name=name)).run


def ended(house: House, name: str) -> trainer_pb2.TrainingRun:
    return eventually(lambda: (run := get(house, name)).state in ENDED and run, 120)


def version(house: House, model: str, number: str) -> registry_pb2.Version:
    request = registry_pb2.GetVersionRequest(name=f"orgs/acme/models/{model}/versions/{number}")
    return call(house.registry.GetVersion, request).version


def certified(house: House, version: str, folder: Path) -> Path:
    """The certificate bundle of a version, quantised for it."""
    quantize = quantizer_pb2.StartQuantizationRequest(source=version, types=["F16"])
    name = call(house.quantizer.StartQuantization, quantize).quantization.name

    def over() -> quantizer_pb2.Quantization | None:
        found = call(house.quantizer.GetQuantization, quantizer_pb2.GetQuantizationRequest(name=name)).quantization
        assert found.state != quantizer_pb2.QUANTIZATION_STATE_FAILED, found.reason
        return found if found.state == quantizer_pb2.QUANTIZATION_STATE_COMPLETED else None

    eventually(over, 120)
    certification = certification_pb2_grpc.CertificationServiceStub(house.channel("ledger"))
    request = certification_pb2.IssueCertificateRequest(version=version)
    issued = call(certification.IssueCertificate, request).certificate
    download = certification_pb2.DownloadBundleRequest(name=issued.name)
    save(stream(certification.DownloadBundle, download)[1], folder)
    return folder


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
    continued = version(house, "assistant", "v1.1")
    [adapter] = continued.record.adapters
    assert [ref.sha256 for ref in adapter.chain] == [
        states[-1].outcome.trained[0].adapter.sha256,
        second.outcome.trained[0].adapter.sha256,
    ]
    assert not continued.active  # training never activates unless asked


def test_of_three_bases_only_the_selected_are_trained_and_recorded(house: House, dataset: str) -> None:
    run = ended(house, start(house, dataset, "pair", bases=["tiny", "Tiny_Two"], activate=True))
    assert run.state == trainer_pb2.RUN_STATE_COMPLETED, run.reason
    assert {base.key for base in run.outcome.trained} == {"tiny", "tiny-two"}
    completed = [e for e in house.events(run.name) if e.kind == "TrainingCompleted"]
    used = {material.name for material in completed[0].materials}
    assert used == {"base-models/tiny", "base-models/tiny-two", "datasets/acme/help"}
    active = version(house, "pair", "active")
    assert active.version == "v1.0"
    assert {adapter.base for adapter in active.record.adapters} == {"tiny", "tiny-two"}
    written = repr(house.events(run.name)) + repr(house.events("models/acme/pair"))
    assert "tiny-three" not in written


def test_what_one_base_fails_at_is_told_and_the_others_are_certified_without_it(
    house: House, dataset: str, tmp_path: Path
) -> None:
    run = ended(house, start(house, dataset, "halved", bases=["wide", "tiny"]))
    assert run.state == trainer_pb2.RUN_STATE_COMPLETED, run.reason
    assert [base.key for base in run.outcome.trained] == ["tiny"]
    assert [base.key for base in run.outcome.failed] == ["wide"]
    assert run.outcome.failed[0].reason
    assert dict(run.outcome.weights) == {"tiny": 1.0}
    [completed] = [e for e in house.events(run.name) if e.kind == "TrainingCompleted"]
    [created] = house.events("models/acme/halved", "VersionCreated")
    for event in (completed, created):
        assert {m.name for m in event.materials} == {"base-models/tiny", "datasets/acme/help"}
        assert [s.name for s in event.subjects] == [f"adapters/{run.request.run}/tiny"]
    assert [adapter.base for adapter in version(house, "halved", "v1.0").record.adapters] == ["tiny"]

    bundle = certified(house, "orgs/acme/models/halved/versions/v1.0", tmp_path / "certificate")
    dna = json.loads(next(bundle.glob("*_dna.json")).read_text())
    results = json.loads((bundle / "training_results.json").read_text())
    assert dna["baseModels"] == results["baseModels"] == ["tiny"]
    assert [base["base"] for base in results["trained_models"]] == ["tiny"]
    for document in (*bundle.glob("*_dna.json"), *bundle.glob("*.cdx.json"), bundle / "training_results.json"):
        assert "wide" not in document.read_text(), document.name


def test_when_no_base_can_be_loaded_nothing_is_made(house: House, dataset: str) -> None:
    run = ended(house, start(house, dataset, "none", bases=["wide"]))
    assert run.state == trainer_pb2.RUN_STATE_FAILED
    assert run.reason.startswith("wide: ")
    [event] = [e for e in house.events(run.name) if e.kind == "TrainingFailed"]
    assert isinstance(event.data, events_pb2.TrainingFailed)
    assert [base.key for base in event.data.failed] == ["wide"]
    assert not house.events("models/acme/none")


def test_a_missing_library_fails_the_run_and_is_named(
    house: House, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TRL)
    monkeypatch.syspath_prepend(str(tmp_path))  # the training process gets our path
    run = ended(house, start(house, dataset, "without"))
    assert run.state == trainer_pb2.RUN_STATE_FAILED
    assert "the library trl is not installed" in run.reason
    assert not house.events("models/acme/without")


def test_an_unusable_base_is_refused_with_its_reason_and_no_other_takes_its_place(house: House, dataset: str) -> None:
    before = len(house.events())
    with pytest.raises(InvalidBaseModel, match=r"base model three cannot be used: .*auto_map"):
        start(house, dataset, "assistant", bases=["three"])
    with pytest.raises(InvalidBaseModel, match="auto_map"):
        house.register_base("three")
    listed = call(house.trainer.ListLocalBases, trainer_pb2.ListLocalBasesRequest()).bases
    assert [base.key for base in listed if base.unusable_reason] == ["three"]
    assert len(house.events()) == before


def test_a_major_bump_is_made_only_on_request(house: House, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act(house, monkeypatch, "quick")
    runs = [start(house, dataset, "bumped", major=major) for major in (False, True)]  # done in this order
    assert [ended(house, run).version for run in runs] == ["v1.0", "v2.0"]


def test_two_runs_at_once_get_different_versions(
    house: House, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act(house, monkeypatch, "quick")
    load, loads, both = Training.load, itertools.count(), threading.Barrier(2)

    def load_together(training: Training, kind: Any, stream: str) -> Any:
        found = load(training, kind, stream)
        if stream == "models/acme/raced" and next(loads) < 2:
            both.wait(60)  # each worker has a run, and neither knows the other's version
        return found

    monkeypatch.setattr(Training, "load", load_together)
    for shared in ("keys", "artifacts"):
        (tmp_path / shared).symlink_to(house.data / shared)
    config = TrainerConfig(data=tmp_path, bases=house.bases, ledger=house.addresses["ledger"])
    second = TrainerPart(config)  # its own worker beside the house's, in its own folder
    asyncio.run(second.start())
    try:
        runs = [ended(house, name) for name in [start(house, dataset, "raced") for _ in range(2)]]
    finally:
        asyncio.run(second.stop())
        asyncio.run(second.close())
    assert sorted(run.version for run in runs) == ["v1.0", "v1.1"], [run.reason for run in runs]
    assert [run.attempts for run in runs] == [1, 1]  # whoever came second did not train again
    workers = {started.data.worker for run in runs for started in house.events(run.name, "TrainingStarted")}
    assert len(workers) == 2


def test_a_file_that_two_organisations_have_is_each_ones_own_dataset(
    house: House, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act(house, monkeypatch, "quick")
    with pytest.raises(NotFound, match="not registered as a dataset of globex"):
        start(house, dataset, "assistant", org="globex")
    with pytest.raises(InvalidInput, match="acme/help is not of globex"):
        start(house, dataset, "assistant", org="globex", dataset="orgs/acme/datasets/help")
    assert register(house, DATASET.read_text().splitlines(), "faq", "globex").sha256 == dataset
    run = ended(house, start(house, dataset, "assistant", org="globex"))
    assert run.state == trainer_pb2.RUN_STATE_COMPLETED, run.reason
    for event in house.events(run.name, "TrainingRequested", "TrainingCompleted"):
        assert [m.name for m in event.materials if m.name.startswith("datasets/")] == ["datasets/globex/faq"]


def test_a_run_records_the_name_that_was_asked_for(house: House, dataset: str) -> None:
    assert register(house, DATASET.read_text().splitlines(), "help-again").sha256 == dataset
    named = "orgs/acme/datasets/help-again"
    for more, recorded in (({"dataset": named}, "acme/help-again"), ({}, "acme/help")):
        name = start(house, dataset, "named", **more)
        call(house.trainer.CancelTrainingRun, trainer_pb2.CancelTrainingRunRequest(name=name))
        [event] = house.events(name, "TrainingRequested")
        assert [m.name for m in event.materials if m.sha256 == dataset] == [f"datasets/{recorded}"]
        assert get(house, name).request.dataset == recorded
    register(house, DATASET.read_text().splitlines()[1:], "help-again")
    name = start(house, dataset, "named", dataset=named)  # the earlier bytes of that name are registered as before
    call(house.trainer.CancelTrainingRun, trainer_pb2.CancelTrainingRunRequest(name=name))
    with pytest.raises(NotFound, match="not registered as dataset acme/absent"):
        start(house, dataset, "named", dataset="orgs/acme/datasets/absent")
    with pytest.raises(InvalidName, match="dataset:"):
        start(house, dataset, "named", dataset="acme/help")


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
    with pytest.raises(NotReady, match=r"acme/small has 49 valid examples of 50 needed; .*--accept-below-minimum"):
        register(house, lines, "small")
    answer = register(house, [*lines, "{not json"], "small", accept_below_minimum=True)
    assert (answer.examples, answer.problem_count, answer.problems[0].line) == (49, 1, 50)
    [event] = house.events("datasets/acme/small")
    assert isinstance(event.data, events_pb2.DatasetRegistered)
    assert event.data.below_minimum_accepted


def test_an_empty_dataset_is_refused_under_its_own_name(house: House) -> None:
    with pytest.raises(InvalidDataset, match=r"^dataset nothing is empty; write one JSON object a line"):
        register(house, [], "nothing")


def test_an_upload_without_a_header_is_refused(house: House) -> None:
    with pytest.raises(InvalidInput, match="header"):
        upload(house.trainer.CheckDataset, iter([trainer_pb2.CheckDatasetRequest(chunk=b"{}")]))
