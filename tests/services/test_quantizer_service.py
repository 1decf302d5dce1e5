"""The quantizer as a service: a real ledger, a real base, real child processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from modelledger.ledger.v1 import registry_pb2
from modelledger.quantizer.v1 import quantizer_pb2
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import ArtifactMismatch, EventIdReused, InvalidInput, InvalidName, NotFound, NotReady
from ledger.kit import client
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.client import call
from tests.house import House, eventually

REQUESTED, STARTED = "QuantizationRequested", "QuantizationStarted"
COMPLETED = quantizer_pb2.QUANTIZATION_STATE_COMPLETED
FAILED = quantizer_pb2.QUANTIZATION_STATE_FAILED


def start(house: House, source: str, *types: str, request_id: str = "", base: str = "") -> quantizer_pb2.Quantization:
    request = quantizer_pb2.StartQuantizationRequest(source=source, types=types, request_id=request_id, base=base)
    return call(house.quantizer.StartQuantization, request).quantization


def get(house: House, name: str) -> quantizer_pb2.Quantization:
    return call(house.quantizer.GetQuantization, quantizer_pb2.GetQuantizationRequest(name=name)).quantization


def ended(house: House, name: str) -> quantizer_pb2.Quantization:
    return eventually(lambda: (found := get(house, name)).state in (COMPLETED, FAILED) and found, 120)


def test_a_base_becomes_vouched_for_files(house: House, tiny_base: Path) -> None:
    sha256 = house.register_base("tiny-base")
    asked = start(house, "base-models/tiny", "Q8_0", "F16", request_id="once")
    assert asked.name.startswith("quantizations/quant-20")
    assert start(house, "base-models/tiny-base", "Q8_0", "F16", request_id="once").name == asked.name
    with pytest.raises(EventIdReused):
        start(house, "base-models/tiny", "Q8_0", request_id="once")

    done = ended(house, asked.name)
    assert done.state == COMPLETED, done.reason
    assert (done.request.org, done.request.model, done.request.version) == ("base", "tiny-base", "")
    assert {file.type for file in done.outcome.files} == {"Q8_0", "F16"}
    store = ArtifactStore(house.data / "artifacts")
    for file in done.outcome.files:
        assert store.get(file.file.sha256).stat().st_size == file.file.size
        assert file.reduction == 1 - file.file.size / file.original_size
        assert file.tensor_types
        assert b"FROM ./tiny-base-" in store.read_bytes(file.modelfile.sha256)
    assert store.read_bytes(done.outcome.licence.sha256) == (tiny_base / "LICENSE").read_bytes()
    assert done.outcome.parity_probes > 0
    assert done.outcome.parity_mismatches == 0
    assert not done.outcome.HasField("merge_max_logit_difference")  # nothing was merged

    requested, started, completed = house.events(asked.name)
    assert [requested.kind, started.kind, completed.kind] == [REQUESTED, STARTED, "QuantizationCompleted"]
    assert [(m.name, m.sha256) for m in completed.materials] == [("base-models/tiny-base", sha256)]
    assert b"tiny-base" in store.read_bytes(requested.subjects[0].sha256)
    assert not (house.data / "work" / "quantizer" / asked.name.rpartition("/")[2]).exists()
    servable = call(house.registry.ListServable, registry_pb2.ListServableRequest(name="base/tiny-base"))
    assert {file.file.type for file in servable.files} == {"Q8_0", "F16"}
    listed = call(house.quantizer.ListQuantizations, quantizer_pb2.ListQuantizationsRequest())
    assert listed.quantizations[0] == done


def test_a_version_is_merged_with_its_adapters(house: House, tiny_base: Path) -> None:
    base = house.register_base("tiny-base")
    version = train(house, "acme", "assistant")
    with pytest.raises(InvalidInput, match="LORA"):
        start(house, "base-models/tiny-base", "LORA")
    done = ended(house, start(house, f"{version.rpartition('/')[0]}/latest", "F16", "LORA").name)
    assert done.state == COMPLETED, done.reason
    outcome = done.outcome
    assert (outcome.org, outcome.model, outcome.version, outcome.base) == ("acme", "assistant", "v1.0", "tiny-base")
    assert [file.type for file in outcome.files] == ["LORA", "F16"]
    assert outcome.merge_max_logit_difference < 1e-3 < outcome.merge_max_difference_from_base
    # The chain that the version consists of, and nothing else.
    [adapter] = call(house.registry.GetVersion, registry_pb2.GetVersionRequest(name=version)).version.record.adapters
    completed = house.events(done.name)[-1]
    expected = [("base-models/tiny-base", base), *((ref.name, ref.sha256) for ref in adapter.chain)]
    assert [(m.name, m.sha256) for m in completed.materials] == expected


@pytest.mark.parametrize(
    ("source", "types", "base", "error", "match"),
    [
        ("base-models/nobody", (), "", NotFound, "tiny-base"),
        ("base-models/tiny-base", ("Q3",), "", InvalidInput, "Q4_K_M"),
        ("base-models/tiny-base", ("F16", "F16"), "", InvalidInput, "once"),
        ("base-models/tiny-base", (), "tiny-base", InvalidInput, "base:"),
        ("orgs/acme/models/nobody/versions/latest", (), "", NotFound, "nobody"),
        ("acme/assistant", (), "", InvalidName, "base-models/"),
        ("", (), "", InvalidName, "base-models/"),
    ],
)
def test_bad_requests_are_refused_and_leave_no_event(
    house: House, source: str, types: tuple[str, ...], base: str, error: type[Exception], match: str
) -> None:
    before = len(house.events())
    with pytest.raises(error, match=match):
        start(house, source, *types, base=base)
    assert len(house.events()) == before


def test_a_base_that_is_not_registered_or_was_changed_is_refused(house: House) -> None:
    other = house.bases[0] / "other-base"
    shutil.copytree(house.bases[0] / "tiny-base", other)
    (other / "README.md").write_text("another one\n")
    with pytest.raises(NotReady, match="modelledger base register other-base"):
        start(house, "base-models/other")

    house.register_base("other-base")
    (other / "README.md").write_text("changed\n")
    with pytest.raises(ArtifactMismatch, match="has changed since it was registered"):
        start(house, "base-models/other-base")


def test_more_callers_than_threads_do_not_keep_the_ledger_from_answering(house: House) -> None:
    """All services run on one event loop here, as in `modelledger up`."""
    request = quantizer_pb2.GetQuantizationRequest(name="quantizations/none")
    asked = [house.quantizer.GetQuantization.future(request, timeout=20) for _ in range(100)]
    assert {call.code() for call in asked} == {grpc.StatusCode.NOT_FOUND}


def test_a_killed_child_is_a_failure_with_its_reason(house: House) -> None:
    house.register_base("tiny-base")
    asked = start(house, "base-models/tiny-base", "F16")
    os.kill(eventually(lambda: child(house, asked.name)), signal.SIGKILL)
    done = ended(house, asked.name)
    assert done.state == FAILED
    assert "SIGKILL" in done.reason
    assert [e.kind for e in house.events(asked.name)] == [REQUESTED, STARTED, "QuantizationFailed"]


def test_a_stopped_worker_takes_its_work_up_again(house: House) -> None:
    house.register_base("tiny-base")
    asked = start(house, "base-models/tiny-base", "F16")
    pid = eventually(lambda: child(house, asked.name))
    house.stop("quantizer")
    assert child(house, asked.name) != pid
    assert [e.kind for e in house.events(asked.name)] == [REQUESTED, STARTED]
    house.start("quantizer")
    done = ended(house, asked.name)
    assert (done.state, done.attempts) == (COMPLETED, 2), done.reason


def test_a_folder_changed_between_request_and_work_fails_the_work(house: House) -> None:
    house.register_base("tiny-base")
    card = house.bases[0] / "tiny-base" / "README.md"
    original = card.read_bytes()
    blocking = start(house, "base-models/tiny-base", "F16")  # the worker does one after another
    waiting = start(house, "base-models/tiny-base", "F16")
    eventually(lambda: child(house, blocking.name))
    card.write_bytes(original + b"changed")
    os.kill(eventually(lambda: child(house, blocking.name)), signal.SIGKILL)
    done = ended(house, waiting.name)
    card.write_bytes(original)
    assert done.state == FAILED
    assert "has changed since it was registered" in done.reason
    assert [e.kind for e in house.events(waiting.name)] == [REQUESTED, "QuantizationFailed"]


def child(house: House, name: str) -> int | None:
    """Process id of the child that works on a quantisation; other houses may have one of the same name."""
    folder_of_work = str(house.data / "work" / "quantizer" / name.rpartition("/")[2]).encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"quantizer.run" in command and any(part.startswith(folder_of_work + b"/") for part in command):
            return int(folder.name)
    return None


def train(house: House, org: str, model: str) -> str:
    """Resource name of a version, really trained."""
    lines = [{"prompt": f"Who is on pier {n}?", "completion": f"Captain {n} is."} for n in range(6)]

    def upload() -> Iterator[trainer_pb2.CheckDatasetRequest]:
        header = trainer_pb2.DatasetHeader(org=org, dataset="piers", register=True, accept_below_minimum=True)
        yield trainer_pb2.CheckDatasetRequest(header=header)
        yield trainer_pb2.CheckDatasetRequest(chunk="".join(json.dumps(line) + "\n" for line in lines).encode())

    dataset = client.upload(house.trainer.CheckDataset, upload())
    request = trainer_pb2.StartTrainingRunRequest(
        model=f"orgs/{org}/models/{model}",
        bases=["tiny-base"],
        dataset_sha256=dataset.sha256,
        options={"learning_rate": "0.01", "epochs": "2", "max_length": "64"},
    )
    name = call(house.trainer.StartTrainingRun, request).run.name

    def over() -> trainer_pb2.TrainingRun | None:
        run = call(house.trainer.GetTrainingRun, trainer_pb2.GetTrainingRunRequest(name=name)).run
        assert run.state not in (trainer_pb2.RUN_STATE_FAILED, trainer_pb2.RUN_STATE_CANCELLED), run.reason
        return run if run.version else None

    return f"orgs/{org}/models/{model}/versions/{eventually(over, 120).version}"
