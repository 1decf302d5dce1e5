"""A log with the life of some models in it, written by the real sequencer under the real rules."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from modelledger.ledger.v1 import events_pb2 as pb

from ledger.committer import Committer
from ledger.founding import found
from ledger.local_actor import Author, LocalActor
from ledger.signers import actor_signers, log_signer
from ledger.statement import Artifact
from ledger.store import Store
from tests.logs import in_process

ALICE = pb.Caller(id="local:alice", method="loopback")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ref(artifact: Artifact, size: int = 0) -> pb.ArtifactRef:
    return pb.ArtifactRef(name=artifact.name, sha256=artifact.sha256, size=size)


class Story:
    """Every method appends one step and returns what it introduced, or the event's index."""

    def __init__(self, folder: Path) -> None:
        log, self.signers = log_signer(folder / "keys", "test.log"), actor_signers(folder / "keys")
        self.store = Store(f"sqlite:///{folder / 'log.db'}", log)
        self.committer = Committer(self.store)
        self.sequencer = in_process(self.committer)
        found(self.committer, log, self.signers, folder / "log.vkey")

    def actor(self, role: str) -> LocalActor:
        return LocalActor(role, self.signers[role], self.store, self.sequencer)

    def author(self, role: str) -> Author:
        return Author(role, self.signers[role], self.store)

    def append(
        self, role: str, stream: str, data: Message, subjects: list[Artifact], materials: list[Artifact] | tuple = ()
    ) -> int:
        author = self.author(role)
        signed = author.sign(data, stream, author.next_version(stream), subjects, materials)
        return self.committer.append([signed]).indexes[0]

    def base(self, key: str, content: str = "", licence: str = "apache-2.0") -> Artifact:
        folder = Artifact(f"base-models/{key}", digest(f"base {key} {content}"))
        record = pb.BaseModelRegistered(
            key=key,
            display_name=key.title(),
            architecture="LlamaForCausalLM",
            parameters=15_000_000,
            licence=licence,
            size=1,
            files=1,
        )
        self.append("trainer", folder.name, record, [folder])
        return folder

    def withdraw_base(self, folder: Artifact) -> int:
        key = folder.name.removeprefix("base-models/")
        record = pb.BaseModelWithdrawn(key=key, reason="its licence was misread")
        return self.append("trainer", folder.name, record, [folder])

    def dataset(self, org: str, name: str, content: str = "") -> Artifact:
        file = Artifact(f"datasets/{org}/{name}", digest(f"data {org}/{name} {content}"))
        record = pb.DatasetRegistered(
            org=org, name=name, form="prompt_completion", examples=60, band="minimum", size=9, caller=ALICE
        )
        self.append("trainer", file.name, record, [file])
        return file

    def request(self, run: str, org: str, model: str, bases: list[Artifact], data: Artifact, parent: str = "") -> None:
        document = Artifact(f"requests/{run}", digest(f"request {run}"))
        record = pb.TrainingRequested(
            run=run,
            org=org,
            model=model,
            bases=[b.name.removeprefix("base-models/") for b in bases],
            dataset=data.name.removeprefix("datasets/"),
            options={"epochs": "3", "seed": "7"},
            parent_version=parent,
            caller=ALICE,
        )
        self.append("trainer", f"training-runs/{run}", record, [document], [*bases, data])

    def fail(self, run: str, reason: str) -> int:
        document = Artifact(f"requests/{run}", digest(f"request {run}"))
        record = pb.TrainingFailed(run=run, reason=reason)
        return self.append("trainer", f"training-runs/{run}", record, [document])

    def train(
        self, run: str, bases: list[Artifact], data: Artifact, parents: list[Artifact] | tuple = (), content: str = ""
    ) -> list[Artifact]:
        """TrainingCompleted; one adapter per base."""
        trained, adapters = [], []
        for base in bases:
            key = base.name.removeprefix("base-models/")
            adapter = Artifact(f"adapters/{run}/{key}", digest(f"adapter {content or run}/{key}"))
            adapters.append(adapter)
            trained.append(
                pb.TrainedBase(
                    key=key,
                    base_sha256=base.sha256,
                    adapter=ref(adapter, 100),
                    epochs=3,
                    train_loss=0.5,
                    validation_loss=0.625,
                    trainable_parameters=1000,
                    seconds=1.5,
                    train_examples=54,
                    validation_examples=6,
                )
            )
        record = pb.TrainingCompleted(run=run, trained=trained, dataset_sha256=data.sha256, seconds=2)
        self.append("trainer", f"training-runs/{run}", record, adapters, [*bases, data, *parents])
        return adapters

    def version(
        self,
        org: str,
        model: str,
        number: tuple[int, int],
        run: str,
        bases: list[Artifact],
        data: Artifact,
        chains: list[list[Artifact]],
        parent: str = "",
    ) -> int:
        record = pb.VersionCreated(org=org, model=model, major=number[0], minor=number[1], run=run)
        record.parent_version = parent
        earlier: list[Artifact] = []
        for base, chain in zip(bases, chains, strict=True):
            key = base.name.removeprefix("base-models/")
            record.adapters.add(base=key, base_sha256=base.sha256, chain=map(ref, chain), weight=1 / len(bases))
            earlier += chain[:-1]
        new = [chain[-1] for chain in chains]
        return self.append("trainer", f"models/{org}/{model}", record, new, [*bases, data, *earlier])

    def activate(self, org: str, model: str, version: str, adapters: list[Artifact]) -> int:
        record = pb.VersionActivated(org=org, model=model, version=version, reason="tried it", caller=ALICE)
        return self.append("registry", f"models/{org}/{model}", record, adapters)

    def revoke(self, org: str, model: str, version: str, adapters: list[Artifact]) -> int:
        record = pb.VersionRevoked(org=org, model=model, version=version, reason="wrong answers", caller=ALICE)
        return self.append("registry", f"models/{org}/{model}", record, adapters)

    def quantize(
        self, job: str, org: str, model: str, version: str, base: Artifact, chain: list[Artifact], **measured: Any
    ) -> Artifact:
        """QuantizationCompleted with one Q4_K_M file."""
        gguf = Artifact(f"gguf/{job}/model-q4_k_m.gguf", digest(f"gguf {job}"))
        file = pb.QuantizedFile(type="Q4_K_M", file=ref(gguf, 400), original_size=1600, reduction=0.75, **measured)
        record = pb.QuantizationCompleted(
            quantization=job,
            org=org,
            model=model,
            version=version,
            base=base.name.removeprefix("base-models/"),
            files=[file],
            licence_missing=True,
            seconds=3,
        )
        self.append("quantizer", f"quantizations/{job}", record, [gguf], [base, *chain])
        return gguf

    def fail_quantization(self, job: str, org: str, model: str, version: str, base: Artifact, reason: str) -> None:
        document = Artifact(f"requests/{job}", digest(f"request {job}"))
        asked = pb.QuantizationRequested(
            quantization=job,
            org=org,
            model=model,
            version=version,
            base=base.name.removeprefix("base-models/"),
            types=["Q4_K_M"],
            caller=ALICE,
        )
        self.append("quantizer", f"quantizations/{job}", asked, [document], [base])
        self.append(
            "quantizer", f"quantizations/{job}", pb.QuantizationFailed(quantization=job, reason=reason), [document]
        )

    def evaluate(self, org: str, model: str, target: str, subjects: list[Artifact], metrics: dict[str, float]) -> int:
        record = pb.EvaluationCompleted(target=target, metrics=metrics)
        return self.append("quantizer", f"models/{org}/{model}", record, subjects)

    def certify(self, job: str, org: str, model: str, version: str, adapters: list[Artifact]) -> int:
        record = pb.CertificateIssued(
            certificate=job, org=org, model=model, version=version, policy="default", evidence=[1], caller=ALICE
        )
        return self.append("certification", f"certificates/{job}", record, adapters)

    def revoke_certificate(self, job: str, adapters: list[Artifact]) -> int:
        record = pb.CertificateRevoked(certificate=job, reason="issued by mistake", caller=ALICE)
        return self.append("certification", f"certificates/{job}", record, adapters)

    def first_version(self, org: str = "acme", model: str = "assistant") -> tuple[Artifact, Artifact, list[Artifact]]:
        """A base, a dataset and v1.0 of a model: (base, dataset, adapters)."""
        base, data = self.base("tiny"), self.dataset(org, "help")
        self.request("run-1", org, model, [base], data)
        adapters = self.train("run-1", [base], data)
        self.version(org, model, (1, 0), "run-1", [base], data, [adapters])
        return base, data, adapters

    def next_version(
        self, number: tuple[int, int], base: Artifact, data: Artifact, chain: list[Artifact], parent: str
    ) -> list[Artifact]:
        """One more version of acme/assistant, one adapter longer than `chain`."""
        run = f"run-{number[0]}-{number[1]}"
        self.request(run, "acme", "assistant", [base], data, parent)
        new = self.train(run, [base], data, chain)
        self.version("acme", "assistant", number, run, [base], data, [[*chain, *new]], parent)
        return [*chain, *new]
