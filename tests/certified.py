"""A log about artifacts that exist as files, up to a version that can be certified, and its certification service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from modelledger.ledger.v1 import certification_pb2 as pb
from modelledger.ledger.v1 import certification_pb2_grpc
from modelledger.ledger.v1 import events_pb2 as events

from ledger.bundle_files import write_folder
from ledger.certification import Certification
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.interceptors import CallInterceptor
from ledger.statement import Artifact
from tests.log_story import ALICE, Story, ref

VERSION = "orgs/acme/models/assistant/versions/v1.0"
BASES = ("tiny", "other")


class Certified(Story):
    """acme/assistant v1.0: trained on two bases, quantised once; every artifact has bytes in the store."""

    certificate: pb.Certificate  # the last one that `issue` made

    def __init__(self, folder: Path, *, skip: frozenset[str] = frozenset()) -> None:
        super().__init__(folder)
        self.files = folder / "files"
        self.artifacts = ArtifactStore(folder / "artifacts")
        self.skip = skip
        self._bases = [self._base(key) for key in BASES]
        self._data = self._dataset()
        self._adapters = self._training()
        weights = dict(zip(BASES, (0.6, 0.4), strict=True))
        created = events.VersionCreated(org="acme", model="assistant", major=1, run="run-1")
        for base, adapter in zip(self._bases, self._adapters, strict=True):
            key = base.name.removeprefix("base-models/")
            created.adapters.add(base=key, base_sha256=base.sha256, chain=[ref(adapter)], weight=weights[key])
        self.append("trainer", "models/acme/assistant", created, self._adapters, [*self._bases, self._data])
        if "QuantizationCompleted" not in skip:
            self._quantization()

    def _write(self, path: str, content: bytes) -> Path:
        target = self.files / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return target

    def _folder(self, name: str, files: dict[str, bytes]) -> Artifact:
        for path, content in files.items():
            self._write(f"{name}/{path}", content)
        return Artifact(name, self.artifacts.put_directory(self.files / name).sha256)

    def _base(self, key: str) -> Artifact:
        artifact = self._folder(f"base-models/{key}", {"config.json": b"{}", "model.safetensors": key.encode() * 9})
        record = events.BaseModelRegistered(
            key=key, architecture="LlamaForCausalLM", parameters=9, size=99, files=2, licence="apache-2.0"
        )
        self.append("trainer", artifact.name, record, [artifact])
        return artifact

    def _dataset(self) -> Artifact:
        path = self._write("datasets/acme/faq-sv", b'{"prompt":"a","completion":"b"}\n' * 60)
        artifact = Artifact("datasets/acme/faq-sv", self.artifacts.put_file(path).sha256)
        record = events.DatasetRegistered(org="acme", name="faq-sv", examples=60, band="minimum", caller=ALICE)
        self.append("trainer", artifact.name, record, [artifact])
        return artifact

    def _training(self) -> list[Artifact]:
        stream, materials = "training-runs/run-1", [*self._bases, self._data]
        request = Artifact("requests/run-1", self.artifacts.put_bytes(b'{"run":"run-1"}').sha256)
        asked = events.TrainingRequested(run="run-1", org="acme", model="assistant", bases=BASES, dataset="acme/faq-sv")
        self.append("trainer", stream, asked, [request], materials)
        self.append("trainer", stream, events.TrainingStarted(run="run-1", worker="w", attempt=1), [request])
        epochs = () if "EpochCompleted" in self.skip else (1, 2)
        for base in BASES:
            for epoch in epochs:
                done = events.EpochCompleted(run="run-1", base=base, epoch=epoch, epochs=2 if base == "tiny" else 3)
                done.train_loss, done.validation_loss, done.learning_rate = 2 / epoch, 3 / epoch, 1e-4
                self.append("trainer", stream, done, [request])
        adapters, trained = [], []
        for base in self._bases:
            key = base.name.removeprefix("base-models/")
            adapter = self._folder(
                f"adapters/run-1/{key}",
                {"adapter_config.json": b'{"r":8}', "adapter_model.safetensors": f"weights {key}".encode()},
            )
            adapters.append(adapter)
            item = events.TrainedBase(key=key, base_sha256=base.sha256, adapter=ref(adapter), epochs=2, seconds=1.5)
            item.train_loss, item.validation_loss, item.train_examples = 1.0, 1.5, 54
            trained.append(item)
        record = events.TrainingCompleted(
            run="run-1",
            trained=trained,
            dataset_sha256=self._data.sha256,
            seconds=4,
            weights={"tiny": 0.6, "other": 0.4},
        )
        self.append("trainer", stream, record, adapters, materials)
        return adapters

    def _quantization(self) -> None:
        self.quantize_version("v1.0", [self._adapters[0]], "q-1")

    def quantize_version(self, version: str, chain: list[Artifact], job: str = "q-2") -> None:
        """One Q8_0 file of the first base's chain, with Modelfile and licence."""
        stream, materials = f"quantizations/{job}", [self._bases[0], *chain]
        request = Artifact(f"requests/{job}", self.artifacts.put_bytes(job.encode()).sha256)
        about = {"quantization": job, "org": "acme", "model": "assistant", "version": version, "base": "tiny"}
        self.append("quantizer", stream, events.QuantizationRequested(types=["Q8_0"], **about), [request], materials)
        started = events.QuantizationStarted(quantization=job, worker="w", attempt=1)
        self.append("quantizer", stream, started, [request])
        made = [
            Artifact(name, self.artifacts.put_file(self._write(name, content)).sha256)
            for name, content in (
                (f"gguf/{job}/assistant.Q8_0.gguf", b"GGUF" + version.encode() + bytes(range(256))),
                (f"modelfiles/{job}/Modelfile.Q8_0", b"FROM ./assistant.Q8_0.gguf\n"),
                (f"licences/{job}/LICENSE", b"Apache License\n"),
            )
        ]
        file = events.QuantizedFile(type="Q8_0", file=ref(made[0]), modelfile=ref(made[1]))
        record = events.QuantizationCompleted(files=[file], licence=ref(made[2]), seconds=2, **about)
        self.append("quantizer", stream, record, made, materials)

    def continue_training(self) -> list[Artifact]:
        """v1.1: a second adapter on top of v1.0's, over the first base only."""
        base, parent = self._bases[0], self._adapters[0]
        stream, materials = "training-runs/run-2", [base, self._data, parent]
        request = Artifact("requests/run-2", self.artifacts.put_bytes(b'{"run":"run-2"}').sha256)
        asked = events.TrainingRequested(
            run="run-2", org="acme", model="assistant", bases=["tiny"], dataset="acme/faq-sv", parent_version="v1.0"
        )
        self.append("trainer", stream, asked, [request], materials)
        self.append("trainer", stream, events.TrainingStarted(run="run-2", worker="w", attempt=1), [request])
        epoch = events.EpochCompleted(run="run-2", base="tiny", epoch=1, epochs=1)
        self.append("trainer", stream, epoch, [request])
        adapter = self._folder("adapters/run-2/tiny", {"adapter_model.safetensors": b"more weights"})
        item = events.TrainedBase(key="tiny", base_sha256=base.sha256, adapter=ref(adapter), epochs=1)
        record = events.TrainingCompleted(
            run="run-2", trained=[item], dataset_sha256=self._data.sha256, weights={"tiny": 1.0}
        )
        self.append("trainer", stream, record, [adapter], materials)
        created = events.VersionCreated(
            org="acme", model="assistant", major=1, minor=1, run="run-2", parent_version="v1.0"
        )
        created.adapters.add(base="tiny", base_sha256=base.sha256, chain=[ref(parent), ref(adapter)], weight=1)
        self.append("trainer", "models/acme/assistant", created, [adapter], materials)
        return [parent, adapter]

    def ask(self, questions: Callable[[Any], Awaitable[Any]]) -> Any:
        """Run a coroutine function that is given a stub of the service."""

        async def main() -> Any:
            async with self.serving() as stub:
                return await questions(stub)

        return asyncio.run(main())

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Any]:
        server = grpc.aio.server(interceptors=[CallInterceptor()])
        service = Certification(self.store, self.artifacts, self.actor("certification"))
        certification_pb2_grpc.add_CertificationServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield certification_pb2_grpc.CertificationServiceStub(channel)
        finally:
            await server.stop(None)

    def issue(self, **fields: Any) -> pb.Certificate:
        request = pb.IssueCertificateRequest(**{"version": VERSION, "categories": ["CivicID", "SwedID"], **fields})

        async def question(stub: Any) -> Any:
            return await stub.IssueCertificate(request, metadata=(("modelledger-user", "alice"),))

        self.certificate = self.ask(question).certificate
        return self.certificate

    def pieces(self, name: str, *, include_artifacts: bool = True) -> list[tuple[str, bytes]]:
        async def question(stub: Any) -> Any:
            request = pb.DownloadBundleRequest(name=name, include_artifacts=include_artifacts)
            return [(piece.path, piece.chunk) async for piece in stub.DownloadBundle(request)]

        return self.ask(question)

    def download(self, name: str, folder: Path, *, include_artifacts: bool = True) -> Path:
        write_folder(self.pieces(name, include_artifacts=include_artifacts), folder)
        return folder
