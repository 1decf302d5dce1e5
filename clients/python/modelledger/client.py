"""A typed client: every command of the services, pages read to the end, errors as exceptions of ledger/errors.py.

    with Client("127.0.0.1:50051") as client:
        data = client.check_dataset(Path("faq.jsonl"), org="acme", name="faq", register=True)
        run = client.train("acme/support", data.sha256, bases=["llama-2-7b"], options={"epochs": "3"})
        for run in client.watch_run(run.name): print(run.progress)
        client.activate("acme/support", run.version, reason="first one")

Models are written `org/model`, base models `base/key`. A write takes a `request_id`: repeating the call with the same
one, after a broken connection for example, gets the first answer again instead of doing the work twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from ledger import possession
from ledger.envelope import Signer
from ledger.kit.client import upload
from ledger.resource_names import DatasetName, below
from modelledger.appending import Result, append_stream
from modelledger.connection import PAGE, Progress, chunks
from modelledger.inference.v1 import inference_pb2
from modelledger.ledger.v1 import actors_pb2, certification_pb2, ledger_pb2, registry_pb2
from modelledger.names import model_name, version_resource
from modelledger.quantizer.v1 import quantizer_pb2
from modelledger.subscriptions import Subscriptions
from modelledger.trainer.v1 import trainer_pb2

SLOW = 600.0  # seconds for a call that hashes gigabytes or loads a model


class Client(Subscriptions):
    """The four services, in one process (`server`) or each at an address of its own. Connects on the first call."""

    # Base models and datasets

    def local_bases(self) -> Iterator[trainer_pb2.LocalBase]:
        """The base model folders that the trainer sees, usable or not."""
        return self._pages(self._trainer.ListLocalBases, trainer_pb2.ListLocalBasesRequest(), "bases")

    def base_models(self) -> Iterator[registry_pb2.BaseModel]:
        """The registered base models."""
        return self._pages(self._registry.ListBaseModels, registry_pb2.ListBaseModelsRequest(), "base_models")

    def register_base(self, base: str, *, request_id: str = "") -> trainer_pb2.RegisterBaseResponse:
        request = trainer_pb2.RegisterBaseRequest(base=base, request_id=_id(request_id))
        return self._call(self._trainer.RegisterBase, request, timeout=SLOW)

    def check_dataset(
        self,
        path: Path,
        *,
        org: str = "",
        name: str = "",
        register: bool = False,
        accept_below_minimum: bool = False,
        request_id: str = "",
        progress: Progress = lambda sent: None,
    ) -> trainer_pb2.CheckDatasetResponse:
        """Check a dataset file, and record it under `org` and `name` when `register`. `progress` gets bytes sent."""
        header = trainer_pb2.DatasetHeader(
            org=org,
            dataset=name,
            register=register,
            accept_below_minimum=accept_below_minimum,
            request_id=_id(request_id),
        )

        requests = chain(
            [trainer_pb2.CheckDatasetRequest(header=header)],
            (trainer_pb2.CheckDatasetRequest(chunk=chunk) for chunk in chunks(path, progress)),
        )
        return upload(self._trainer.CheckDataset, requests, user=self._user)

    def datasets(self, org: str) -> Iterator[registry_pb2.Dataset]:
        request = registry_pb2.ListDatasetsRequest(parent=f"orgs/{org}")
        return self._pages(self._registry.ListDatasets, request, "datasets")

    # Training

    def train(
        self,
        model: str,
        dataset_sha256: str,
        *,
        dataset: str = "",
        bases: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
        profile: str = "",
        parent_version: str = "",
        activate: bool = False,
        major: bool = False,
        request_id: str = "",
    ) -> trainer_pb2.TrainingRun:
        """Record a training run; a worker takes it. `options` in text, JSON where it is JSON.

        `dataset` is the name to record among those under which the model's organisation registered these bytes; the
        first of them without it.
        """
        name = model_name(model)
        request = trainer_pb2.StartTrainingRunRequest(
            model=name.resource,
            bases=bases,
            dataset_sha256=dataset_sha256,
            dataset=DatasetName(name.org, dataset).resource if dataset else "",
            options=options or {},
            profile=profile,
            parent_version=parent_version,
            activate=activate,
            major=major,
            request_id=_id(request_id),
        )
        return self._call(self._trainer.StartTrainingRun, request, timeout=SLOW).run

    def run(self, run: str) -> trainer_pb2.TrainingRun:
        request = trainer_pb2.GetTrainingRunRequest(name=below("training-runs", run))
        return self._call(self._trainer.GetTrainingRun, request).run

    def runs(self) -> Iterator[trainer_pb2.TrainingRun]:
        """Newest first."""
        return self._pages(self._trainer.ListTrainingRuns, trainer_pb2.ListTrainingRunsRequest(), "runs")

    def watch_run(self, run: str) -> Iterator[trainer_pb2.TrainingRun]:
        """The run as it is now, then after every change, until it ends. Stopping to watch changes nothing."""
        request = trainer_pb2.WatchTrainingRunRequest(name=below("training-runs", run))
        for response in self._stream(self._trainer.WatchTrainingRun, request):
            yield response.run

    def cancel_run(self, run: str, reason: str = "", *, request_id: str = "") -> trainer_pb2.TrainingRun:
        request = trainer_pb2.CancelTrainingRunRequest(
            name=below("training-runs", run), reason=reason, request_id=_id(request_id)
        )
        return self._call(self._trainer.CancelTrainingRun, request).run

    # Quantising

    def quantize(
        self, source: str, types: Sequence[str] = (), *, base: str = "", request_id: str = ""
    ) -> quantizer_pb2.Quantization:
        """Record a quantisation. `source`: resource name of a version, or base-models/KEY."""
        request = quantizer_pb2.StartQuantizationRequest(
            source=source, types=types, base=base, request_id=_id(request_id)
        )
        return self._call(self._quantizer.StartQuantization, request, timeout=SLOW).quantization

    def quantizations(self) -> Iterator[quantizer_pb2.Quantization]:
        """Newest first."""
        request = quantizer_pb2.ListQuantizationsRequest()
        return self._pages(self._quantizer.ListQuantizations, request, "quantizations")

    def watch_quantization(self, name: str) -> Iterator[quantizer_pb2.Quantization]:
        request = quantizer_pb2.WatchQuantizationRequest(name=below("quantizations", name))
        for response in self._stream(self._quantizer.WatchQuantization, request):
            yield response.quantization

    # Models and versions

    def models(self, org: str = "-") -> Iterator[registry_pb2.Model]:
        """The models of an organisation; of all without one."""
        request = registry_pb2.ListModelsRequest(parent=f"orgs/{org}")
        return self._pages(self._registry.ListModels, request, "models")

    def versions(self, model: str) -> Iterator[registry_pb2.Version]:
        """Newest first."""
        request = registry_pb2.ListVersionsRequest(parent=model_name(model).resource)
        return self._pages(self._registry.ListVersions, request, "versions")

    def version(self, model: str, version: str) -> registry_pb2.Version:
        """`version`: a number like v1.10, "active" or "latest"."""
        request = registry_pb2.GetVersionRequest(name=version_resource(model, version))
        return self._call(self._registry.GetVersion, request).version

    def activate(self, model: str, version: str, reason: str, *, request_id: str = "") -> registry_pb2.Activation:
        request = registry_pb2.ActivateVersionRequest(
            name=version_resource(model, version), reason=reason, request_id=_id(request_id)
        )
        return self._call(self._registry.ActivateVersion, request).activation

    def rollback(self, model: str, reason: str, *, request_id: str = "") -> registry_pb2.Activation:
        request = registry_pb2.RollbackVersionRequest(
            parent=model_name(model).resource, reason=reason, request_id=_id(request_id)
        )
        return self._call(self._registry.RollbackVersion, request).activation

    def revoke(self, model: str, version: str, reason: str, *, request_id: str = "") -> registry_pb2.Version:
        request = registry_pb2.RevokeVersionRequest(
            name=version_resource(model, version), reason=reason, request_id=_id(request_id)
        )
        return self._call(self._registry.RevokeVersion, request).version

    def activations(self, model: str, at_time: str = "") -> Iterator[registry_pb2.Activation]:
        """Newest first; only the one in force at `at_time` (RFC 3339) when it is given."""
        request = registry_pb2.ListActivationsRequest(parent=model_name(model).resource, at_time=at_time)
        return self._pages(self._registry.ListActivations, request, "activations")

    def lineage(self, name: str, *, descendants: bool = False) -> registry_pb2.GetLineageResponse:
        """`name`: hex SHA-256 of an artifact, or the resource name of a version."""
        return self._call(self._registry.GetLineage, registry_pb2.GetLineageRequest(name=name, descendants=descendants))

    def render(self, model: str, file: str) -> bytes:
        """MODEL_LOG.md, model_registry.json, model_info.json or README.md of a model, from the log."""
        request = registry_pb2.RenderFileRequest(name=model_name(model).resource, file=file)
        return self._call(self._registry.RenderFile, request).content

    # Serving

    def deployments(self) -> tuple[list[inference_pb2.Deployment], str]:
        """The configured names, and what is wrong with the newest edit of the configuration (or "")."""
        found: list[inference_pb2.Deployment] = []
        request = inference_pb2.ListDeploymentsRequest(page_size=PAGE)
        while True:
            response = self._call(self._inference.ListDeployments, request)
            found += response.deployments
            if not response.next_page_token:
                return found, response.config_problem
            request.page_token = response.next_page_token

    def set_deployment(
        self, name: str, *, enabled: bool, make_default: bool = False, request_id: str = ""
    ) -> inference_pb2.Deployment:
        request = inference_pb2.SetDeploymentRequest(
            name=name, enabled=enabled, make_default=make_default, request_id=_id(request_id)
        )
        return self._call(self._inference.SetDeployment, request).deployment

    def ask(
        self,
        messages: Sequence[inference_pb2.ChatMessage],
        *,
        model: str = "",
        sampling: inference_pb2.Sampling | None = None,
    ) -> inference_pb2.GenerateResponse:
        """One answer; of the default model without a name."""
        request = inference_pb2.GenerateRequest(model=model, messages=messages, sampling=sampling)
        return self._call(self._inference.Generate, request, timeout=SLOW)

    def ask_stream(
        self,
        messages: Sequence[inference_pb2.ChatMessage],
        *,
        model: str = "",
        sampling: inference_pb2.Sampling | None = None,
    ) -> Iterator[inference_pb2.StreamGenerateResponse]:
        request = inference_pb2.GenerateRequest(model=model, messages=messages, sampling=sampling)
        return self._stream(self._inference.StreamGenerate, inference_pb2.StreamGenerateRequest(request=request))

    # Certificates

    def certify(
        self, model: str, version: str, *, policy: str = "", categories: Sequence[str] = (), request_id: str = ""
    ) -> certification_pb2.Certificate:
        """Issue a certificate for a numbered version. Raises EvidenceMissing with everything that is missing."""
        request = certification_pb2.IssueCertificateRequest(
            version=version_resource(model, version),
            policy=policy,
            categories=categories,
            request_id=_id(request_id),
        )
        return self._call(self._certification.IssueCertificate, request, timeout=SLOW).certificate

    def certificate(self, name: str) -> certification_pb2.Certificate:
        request = certification_pb2.GetCertificateRequest(name=below("certificates", name))
        return self._call(self._certification.GetCertificate, request).certificate

    def certificates(self, model: str = "") -> Iterator[certification_pb2.Certificate]:
        """Newest first; of all models without a name."""
        parent = model_name(model).resource if model else ""
        request = certification_pb2.ListCertificatesRequest(parent=parent)
        return self._pages(self._certification.ListCertificates, request, "certificates")

    def revoke_certificate(
        self, certificate: str, reason: str, *, request_id: str = ""
    ) -> certification_pb2.Certificate:
        request = certification_pb2.RevokeCertificateRequest(
            name=below("certificates", certificate), reason=reason, request_id=_id(request_id)
        )
        return self._call(self._certification.RevokeCertificate, request).certificate

    def download_bundle(
        self, certificate: str, *, include_artifacts: bool = False
    ) -> Iterator[certification_pb2.DownloadBundleResponse]:
        """The bundle, file after file in pieces; bundle_download.save writes them to disk."""
        request = certification_pb2.DownloadBundleRequest(
            name=below("certificates", certificate), include_artifacts=include_artifacts
        )
        return self._stream(self._certification.DownloadBundle, request)

    # Actors

    def actors(self) -> Iterator[actors_pb2.Actor]:
        """Who may sign events, or once could, with every key; by name."""
        return self._pages(self._actors.ListActors, actors_pb2.ListActorsRequest(), "actors")

    def enrol_actor(self, actor: str, role: str, signer: Signer, *, request_id: str = "") -> actors_pb2.Actor:
        """Let an actor sign events with the signer's key from now on."""
        name = below("actors", actor)
        request = actors_pb2.EnrolActorRequest(
            name=name,
            role=role,
            public_key=signer.public_key_der,
            possession=possession.prove(name.removeprefix("actors/"), "", signer),
            request_id=_id(request_id),
        )
        return self._call(self._actors.EnrolActor, request).actor

    def rotate_actor_key(
        self, actor: actors_pb2.Actor, signer: Signer, reason: str, *, compromised_from: int = 0, request_id: str = ""
    ) -> actors_pb2.Actor:
        """Give an actor, as `actors` listed it, the signer's key; its present one is refused from now on."""
        name, present = actor.name.removeprefix("actors/"), actor.keys[-1].key_id
        request = actors_pb2.RotateActorKeyRequest(
            name=actor.name,
            public_key=signer.public_key_der,
            possession=possession.prove(name, present, signer),
            reason=reason,
            compromised_from=compromised_from,
            request_id=_id(request_id),
        )
        return self._call(self._actors.RotateActorKey, request).actor

    def revoke_actor(
        self, actor: str, reason: str, *, compromised_from: int = 0, request_id: str = ""
    ) -> actors_pb2.Actor:
        request = actors_pb2.RevokeActorRequest(
            name=below("actors", actor),
            reason=reason,
            compromised_from=compromised_from,
            request_id=_id(request_id),
        )
        return self._call(self._actors.RevokeActor, request).actor

    # The log

    def append_stream(self, requests: Iterable[Sequence[bytes]]) -> Iterator[Result]:
        """Append signed envelopes, each request all or none: for each its proofs, or the error it was refused with.

        `requests` is read in another thread, ahead of the answers, as far as the ledger keeps up. See appending.py.
        """
        return append_stream(lambda numbered: self._stream(self._ledger.AppendStream, numbered), requests)

    def event(self, key: int | str) -> ledger_pb2.Event:
        """By zero-based index or by id."""
        request = ledger_pb2.GetEventRequest()
        if isinstance(key, int):
            request.index = key
        else:
            request.id = key
        return self._call(self._ledger.GetEvent, request).event

    def events(
        self,
        *,
        stream_prefix: str = "",
        kinds: Sequence[str] = (),
        start_index: int = 0,
        descending: bool = False,
        page_size: int = 500,
    ) -> Iterator[ledger_pb2.Event]:
        request = ledger_pb2.ListEventsRequest(
            stream_prefix=stream_prefix,
            kinds=kinds,
            start_index=start_index,
            descending=descending,
            page_size=page_size,
        )
        return self._pages(self._ledger.ListEvents, request, "events")

    def checkpoint(self, *, cosigned: bool = False) -> ledger_pb2.GetCheckpointResponse:
        return self._call(self._ledger.GetCheckpoint, ledger_pb2.GetCheckpointRequest(cosigned=cosigned))

    def inclusion_proof(self, index: int) -> ledger_pb2.GetInclusionProofResponse:
        """Against the newest checkpoint, which comes with it."""
        return self._call(self._ledger.GetInclusionProof, ledger_pb2.GetInclusionProofRequest(index=index))


def _id(request_id: str) -> str:
    return request_id or uuid.uuid4().hex
