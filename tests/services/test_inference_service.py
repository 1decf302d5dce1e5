"""Inference as a service: the gate in front of real engines, behind a real ledger."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from modelledger.inference.v1 import inference_pb2
from modelledger.ledger.v1 import events_pb2, registry_pb2

from inference.serving_config import load
from ledger.errors import (
    ArtifactMismatch,
    Damaged,
    InvalidConfig,
    InvalidInput,
    ModelLedgerError,
    NotFound,
    NotReady,
    Unreachable,
)
from ledger.kit.client import call, stream
from ledger.statement import Artifact
from quantizer.aggregate import Quantization, quantization_stream
from quantizer.application import Quantizing
from quantizer.config import QuantizerConfig
from tests.house import House, eventually
from trainer.aggregate import ModelLine, Registered, TrainingRun, model_stream, run_stream
from trainer.application import Training
from trainer.config import TrainerConfig

CALLER = events_pb2.Caller(id="local:test", method="loopback")


class Maker:
    """Makes versions that have a GGUF, with the trainer's and the quantizer's own aggregates but without their work."""

    def __init__(self, house: House, gguf: Path) -> None:
        settings = {"data": house.data, "ledger": house.addresses["ledger"]}
        self._training = Training(TrainerConfig(**settings))
        self._quantizing = Quantizing(QuantizerConfig(**settings))
        self._house = house
        self._gguf = gguf.read_bytes()
        self._made = 0
        self.base = Artifact("base-models/tiny-base", house.register_base("tiny-base"))
        # From here on requests are this class's to fulfil.
        house.stop("trainer")
        house.stop("quantizer")

    def close(self) -> None:
        self._training.close()
        self._quantizing.close()

    def gguf(self) -> bytes:
        """The tiny model under a digest of its own: only the name of a field that nobody reads differs."""
        self._made += 1
        assert self._gguf.count(b"general.name") == 1
        return self._gguf.replace(b"general.name", f"general.{self._made:04}".encode())

    def version(self, model: str, *, activate: bool = True, quantise: bool = True) -> str:
        """The version's number; its GGUF's digest is in the registry."""
        store, run_id = self._training.artifacts, f"run-{self._made}-{model}"
        adapter = store.put_bytes(run_id.encode())
        data = Artifact("datasets/acme/data", store.put_bytes(b"data").sha256)
        known = self._training.load(Registered, data.name)
        if not known.version:
            record = events_pb2.DatasetRegistered(org="acme", name="data", examples=50, band="minimum", caller=CALLER)
            known.register(record, data.sha256, "")
            self._training.record(known)
        run = TrainingRun(run_stream(run_id))
        request = events_pb2.TrainingRequested(
            run=run_id, org="acme", model=model, bases=["tiny-base"], dataset="acme/data", caller=CALLER
        )
        run.trigger(request, [Artifact(f"requests/{run_id}", store.put_bytes(b"{}").sha256)], [self.base, data])
        trained = events_pb2.TrainedBase(
            key="tiny-base",
            base_sha256=self.base.sha256,
            adapter=events_pb2.ArtifactRef(name=f"adapters/{run_id}/tiny-base", sha256=adapter.sha256),
        )
        outcome = events_pb2.TrainingCompleted(
            run=run_id, trained=[trained], dataset_sha256=data.sha256, weights={"tiny-base": 1.0}
        )
        run.completed(outcome)
        line = self._training.load(ModelLine, model_stream("acme", model))
        number = str(line.create(run, outcome))
        self._training.record(run, line)
        if quantise:
            self.quantise("acme", model, number, [self.base, Artifact(trained.adapter.name, trained.adapter.sha256)])
        if activate:
            self.activate(model, number)
        return number

    def quantise(self, org: str, model: str, version: str, materials: list[Artifact], kind: str = "F16") -> str:
        """Digest of a new GGUF of that version."""
        stored = self._quantizing.artifacts.put_bytes(self.gguf())
        identifier = f"quant-{self._made}"
        about = {"quantization": identifier, "org": org, "model": model, "version": version, "base": "tiny-base"}
        made = Quantization(quantization_stream(identifier))
        request = events_pb2.QuantizationRequested(**about, types=[kind], caller=CALLER)
        made.trigger(request, [Artifact(f"requests/{identifier}", stored.sha256)], materials)
        ref = events_pb2.ArtifactRef(name=f"gguf/{identifier}/x.gguf", sha256=stored.sha256, size=stored.size)
        made.completed(events_pb2.QuantizationCompleted(**about, files=[events_pb2.QuantizedFile(type=kind, file=ref)]))
        self._quantizing.record(made)
        return stored.sha256

    def activate(self, model: str, version: str) -> None:
        name = f"orgs/acme/models/{model}/versions/{version}"
        call(self._house.registry.ActivateVersion, registry_pb2.ActivateVersionRequest(name=name, reason="test"))

    def revoke(self, model: str, version: str) -> None:
        name = f"orgs/acme/models/{model}/versions/{version}"
        call(self._house.registry.RevokeVersion, registry_pb2.RevokeVersionRequest(name=name, reason="test"))


@pytest.fixture(scope="module")
def maker(house: House, tiny_gguf: Path) -> Iterator[Maker]:
    maker = Maker(house, tiny_gguf)
    yield maker
    maker.close()


def deploy(house: House, name: str, enabled: bool = True, *, default: bool = False) -> inference_pb2.Deployment:
    request = inference_pb2.SetDeploymentRequest(name=name, enabled=enabled, make_default=default)
    return call(house.inference.SetDeployment, request).deployment


def deployment(house: House, name: str) -> inference_pb2.Deployment:
    listed = call(house.inference.ListDeployments, inference_pb2.ListDeploymentsRequest()).deployments
    return next(found for found in listed if found.name == name)


def question(name: str, max_tokens: int = 4) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        model=name,
        messages=[inference_pb2.ChatMessage(role="user", content="Where is the office?")],
        sampling=inference_pb2.Sampling(max_tokens=max_tokens, temperature=0),
    )


def ask(house: House, name: str, max_tokens: int = 4) -> inference_pb2.GenerateResponse:
    return call(house.inference.Generate, question(name, max_tokens))


def kinds(house: House, name: str) -> list[str]:
    return [event.kind for event in house.events(f"deployments/{name}")]


def test_a_name_answers_with_what_the_log_vouches_for(house: House, maker: Maker) -> None:
    version = maker.version("by-name")
    with pytest.raises(NotFound):
        ask(house, "acme/by-name")  # nobody enabled it
    shown = deploy(house, "acme/by-name")
    assert (shown.enabled, shown.is_default, shown.loaded, shown.problem) == (True, True, False, "")
    answer = ask(house, "acme/by-name")
    assert answer.text
    assert answer.usage.completion_tokens == 4
    assert answer.finish_reason == "length"
    source = answer.provenance
    assert (source.model, source.version) == ("acme/by-name", version)
    [vouching] = [event for event in house.events("", "QuantizationCompleted") if event.data.model == "by-name"]
    assert source.sha256 == vouching.subjects[0].sha256
    assert ask(house, "").provenance == source  # the first enabled name is the default

    _cancel, responses = stream(
        house.inference.StreamGenerate, inference_pb2.StreamGenerateRequest(request=question("acme/by-name"))
    )
    pieces = list(responses)
    assert pieces[0].provenance == source
    assert "".join(piece.text for piece in pieces) == answer.text
    assert pieces[-1].finish_reason == "length"

    changed, loaded = eventually(lambda: (e := house.events("deployments/acme/by-name"))[1:] and e)
    assert (changed.kind, changed.data.enabled, changed.data.caller.method) == ("DeploymentChanged", True, "loopback")
    assert (loaded.kind, loaded.data.version, loaded.data.vouched_by) == ("ModelLoaded", version, source.event_index)
    assert loaded.subjects[0].sha256 == source.sha256
    assert loaded.data.seconds > 0


def test_unknown_and_disabled_names_are_not_found(house: House, maker: Maker) -> None:
    for name in ("acme/nobody", "acme-labs/by-name", "nobody", "base/tiny-base"):
        with pytest.raises(NotFound):
            ask(house, name)
    with pytest.raises(NotFound, match="the log has no model acme/nobody"):
        deploy(house, "acme/nobody")
    with pytest.raises(NotFound):
        deploy(house, "acme/nobody", enabled=False)
    with pytest.raises(InvalidInput):
        deploy(house, "nobody")
    maker.version("toggled")
    deploy(house, "acme/toggled")
    ask(house, "acme/toggled")
    with pytest.raises(InvalidConfig):
        deploy(house, "acme/toggled", enabled=False, default=True)
    deploy(house, "acme/toggled", enabled=False)
    with pytest.raises(NotFound):
        ask(house, "acme/toggled")
    # Its engine goes, and the log tells the whole story.
    story = ["DeploymentChanged", "ModelLoaded", "DeploymentChanged", "ModelUnloaded"]
    eventually(lambda: kinds(house, "acme/toggled") == story)


def test_nothing_to_serve_says_why(house: House, maker: Maker) -> None:
    assert "modelledger quantize base/tiny-base" in deploy(house, "base/tiny-base").problem
    with pytest.raises(NotReady, match="no GGUF yet"):
        ask(house, "base/tiny-base")
    adapter_only = maker.quantise("base", "tiny-base", "", [maker.base], "LORA")
    eventually(lambda: "only GGUF adapters" in deployment(house, "base/tiny-base").problem)
    q8 = maker.quantise("base", "tiny-base", "", [maker.base], "Q8_0")
    eventually(lambda: deployment(house, "base/tiny-base").serves.sha256 == q8)
    q4 = maker.quantise("base", "tiny-base", "", [maker.base], "Q4_K_M")  # the configured type
    maker.quantise("base", "tiny-base", "", [maker.base], "Q6_K")
    answer = eventually(lambda: (a := ask(house, "base/tiny-base")).provenance.sha256 == q4 and a)
    assert answer.provenance.version == ""
    assert adapter_only not in house.part("inference")._engines.held()


def test_set_active_changes_what_answers_without_a_failed_request(house: House, maker: Maker) -> None:
    first = maker.version("swapped")
    second = maker.version("swapped", activate=False)
    deploy(house, "acme/swapped")
    old = ask(house, "acme/swapped").provenance
    with load_on(lambda: ask(house, "acme/swapped", 16)) as (answers, failures):
        eventually(lambda: len(answers) > 4)
        maker.activate("swapped", second)
        eventually(lambda: answers[-1].provenance.version == second)
        maker.activate("swapped", first)
        eventually(lambda: answers[-1].provenance.version == first)
        maker.activate("swapped", second)
        eventually(lambda: answers[-1].provenance.version == second)
    assert not failures
    new = answers[-1].provenance
    assert {(a.provenance.version, a.provenance.sha256) for a in answers} == {
        (first, old.sha256),
        (second, new.sha256),
    }
    eventually(lambda: old.sha256 not in house.part("inference")._engines.held())


def test_other_bytes_under_the_digest_are_refused(house: House, maker: Maker) -> None:
    maker.version("tampered")
    serves = deploy(house, "acme/tampered").serves
    path = house.data / "artifacts" / "blobs" / "sha256" / serves.sha256[:2] / serves.sha256
    honest = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(honest[:-1] + bytes([honest[-1] ^ 1]))
    with pytest.raises(ArtifactMismatch):
        ask(house, "acme/tampered")
    path.unlink()
    with pytest.raises(Damaged, match="not in the artifact store"):
        ask(house, "acme/tampered")
    assert "ModelLoaded" not in kinds(house, "acme/tampered")
    path.write_bytes(honest)
    assert ask(house, "acme/tampered").provenance == serves


def test_a_revoked_version_is_not_served_any_more(house: House, maker: Maker) -> None:
    version = maker.version("revoked")
    deploy(house, "acme/revoked")
    sha256 = ask(house, "acme/revoked").provenance.sha256
    maker.revoke("revoked", version)

    def refused() -> bool:
        try:
            ask(house, "acme/revoked")
        except NotReady as error:
            return "was revoked" in error.message
        return False

    eventually(refused, 5)
    eventually(lambda: sha256 not in house.part("inference")._engines.held())


def test_without_a_ledger_nothing_is_served_on_old_word(house: House, maker: Maker) -> None:
    version = maker.version("orphan")
    deploy(house, "acme/orphan")
    ask(house, "acme/orphan")
    house.stop("ledger")
    try:

        def unreachable() -> bool:
            try:
                ask(house, "acme/orphan")
            except Unreachable:
                return True
            return False

        eventually(unreachable, 10)
    finally:
        house.start("ledger")

    def answer() -> inference_pb2.GenerateResponse | None:
        try:
            return ask(house, "acme/orphan")
        except Unreachable:
            return None

    assert eventually(answer, 30).provenance.version == version


def test_an_edit_of_the_file_holds_or_is_refused_with_its_reason(house: House, maker: Maker) -> None:
    version = maker.version("edited")
    path = house.data / "serving.toml"
    before = path.read_text()
    path.write_text(before + '\n[[models]]\nname = "acme/edited"\nenabled = true\nauto_load = true\n')
    # auto_load: in memory before anybody asks; the edit is in the log, by nobody in particular.
    eventually(lambda: kinds(house, "acme/edited") == ["DeploymentChanged", "ModelLoaded"])
    changed, loaded = house.events("deployments/acme/edited")
    assert not changed.data.HasField("caller")
    assert loaded.data.version == version
    newer = maker.version("edited")
    eventually(lambda: deployment(house, "acme/edited").serves.version == newer)
    eventually(lambda: deployment(house, "acme/edited").loaded)

    good = path.read_text()
    path.write_text(good + "\nnonsense = 1\n")
    listed = call(house.inference.ListDeployments, inference_pb2.ListDeploymentsRequest())
    assert "nonsense" in listed.config_problem
    assert ask(house, "acme/edited").provenance.version == newer
    with pytest.raises(InvalidConfig, match="nonsense"):
        deploy(house, "acme/edited", enabled=False)
    path.write_text(good)
    assert not call(house.inference.ListDeployments, inference_pb2.ListDeploymentsRequest()).config_problem


def test_after_a_restart_the_same_names_answer(house: House, maker: Maker) -> None:
    maker.version("restarted")
    deploy(house, "acme/restarted", default=True)
    assert load(house.data / "serving.toml").default == "acme/restarted"
    before = ask(house, "").provenance
    house.restart("inference")
    eventually(lambda: kinds(house, "acme/restarted")[-1] == "ModelUnloaded")
    assert ask(house, "").provenance == before
    assert house.events("deployments/acme/restarted", "ModelUnloaded")[0].data.reason == "shutdown"


def test_openai_clients_get_the_same_answers(house: House, maker: Maker) -> None:
    version = maker.version("http")
    deploy(house, "acme/http")
    whole = ask(house, "acme/http")
    url = f"http://{house.http['inference']}"
    with urllib.request.urlopen(f"{url}/v1/models") as response:  # noqa: S310 - our own address
        assert "acme/http" in [model["id"] for model in json.load(response)["data"]]
    body = {
        "model": "acme/http",
        "messages": [{"role": "user", "content": "Where is the office?"}],
        "max_tokens": 4,
        "temperature": 0,
    }
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310
        answer = json.load(response)
        assert response.headers["x-modelledger-version"] == version
    assert answer["choices"][0]["message"]["content"] == whole.text
    assert answer["modelledger"]["sha256"] == whole.provenance.sha256


@contextmanager
def load_on(
    once: Callable[[], inference_pb2.GenerateResponse],
) -> Iterator[tuple[list[inference_pb2.GenerateResponse], list[ModelLedgerError]]]:
    """Three callers who ask again and again: their answers and their failures so far."""
    answers: list[inference_pb2.GenerateResponse] = []
    failures: list[ModelLedgerError] = []
    enough = threading.Event()

    def caller() -> None:
        while not enough.is_set():
            try:
                answers.append(once())
            except ModelLedgerError as error:
                failures.append(error)

    threads = [threading.Thread(target=caller) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield answers, failures
    finally:
        enough.set()
        for thread in threads:
            thread.join()
