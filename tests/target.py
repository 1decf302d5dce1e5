"""Services to send anything to: a house with a certified model in it, and what may never be in an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase, settings
from modelledger.client import Client
from modelledger.inference.v1 import inference_pb2
from modelledger.ledger.v1 import (
    actors_pb2,
    certification_pb2,
    error_reason_pb2,
    ledger_pb2,
    registry_pb2,
    subscription_pb2,
)
from modelledger.quantizer.v1 import quantizer_pb2
from modelledger.trainer.v1 import trainer_pb2

from ledger import possession
from ledger.kit.client import connect, metadata
from ledger.kit.interceptors import DOMAIN
from tests.audit import verify_whole_log
from tests.certified import VERSION, Certified
from tests.house import SERVICES, House
from tests.laws.test_catalog import make
from tests.logs import signer
from tests.random_messages import Words

FILES = {
    "ledger": (ledger_pb2, registry_pb2, certification_pb2, actors_pb2, subscription_pb2),
    "trainer": (trainer_pb2,),
    "quantizer": (quantizer_pb2,),
    "inference": (inference_pb2,),
}
METHODS: list[tuple[str, MethodDescriptor]] = sorted(
    (
        (service, method)
        for service, files in FILES.items()
        for file in files
        for described in file.DESCRIPTOR.services_by_name.values()
        for method in described.methods
    ),
    # What takes something away comes last: nothing is refused only because of it.
    key=lambda found: found[1].name.startswith(("Revoke", "Cancel", "Close")),
)
ANSWERS = 20  # of a stream, read before it is left
ENDLESS = ("Watch",)  # streams that go on for ever: their first answer is enough
SECONDS = 10.0
REASONS = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118 - an enum wrapper is no dict
EVENT_FORM = {"MALFORMED_EVENT", "UNKNOWN_KIND", "EVENT_TOO_LARGE", "INVALID_SIGNATURE"}
# Who is given an event, a part of one, or a proof that a key is held.
CHECKS_FORM = {
    "AppendEvents": EVENT_FORM,
    "AppendStream": EVENT_FORM,
    "CreateGroup": {"UNKNOWN_KIND"},
    "EnrolActor": {"INVALID_SIGNATURE"},
    "RotateActorKey": {"INVALID_SIGNATURE"},
}
# What a stranger must not learn: where we live, and what our exceptions are called.
LEAKS = re.compile(r"Traceback|File \"|\.py\b|<class|\b\w+(\.\w+)+Error\b|\b(Key|Value|Type|Attribute|Index|OS)Error\b")


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


class Target:
    """A house with a certified model in it, and the words that mean something there."""

    def __init__(self, folder: Path) -> None:
        story = Certified(folder / "data")
        certificate = story.issue().name
        story.quantize_version("v1.0", [story._adapters[0]], "q-2")
        story.store.close()
        make(folder / "bases" / "tiny")
        self.house = House(folder / "data", folder / "bases", origin="test.log", working=False)
        self.channels = {service: connect(address) for service, address in self.house.addresses.items()}
        event = ledger_pb2.GetEventRequest(index=12)
        self.event = self.house.ledger.GetEvent(event).event
        first = registry_pb2.ListBaseModelsRequest(page_size=1)
        self.token = self.house.registry.ListBaseModels(first).next_page_token
        sha256 = story._data.sha256
        lease = self._throw_away()
        names = [VERSION, "orgs/acme/models/assistant", "orgs/acme", "orgs/-", "acme/assistant", "base/tiny"]
        names += [certificate, "training-runs/run-1", "quantizations/q-1", "base-models/tiny", sha256]
        # Not the actors and the group that others need: these may be revoked and closed.
        names += ["actors/leaving", "groups/closing"]
        self.words: Words = {
            "name": names,
            "parent": [*names[:4], "groups/mail"],
            "version": [VERSION, "v1.0", "v0.0", "v9999999999.1"],
            "model": names[1:6],
            "source": [VERSION, "base-models/tiny"],
            "file": ["MODEL_LOG.md", "model_info.json", "README.md", "Modelfile"],
            "id": [self.event.id],
            "stream": [self.event.stream, "log"],
            "stream_prefix": ["training-runs/", "a", "\uffff"],
            "kinds": ["EpochCompleted", "TrainingRequested"],
            "base": ["tiny", "other"],
            "bases": ["tiny", "other"],
            "dataset": ["orgs/acme/datasets/faq-sv", "faq-sv"],
            "org": ["acme"],
            "dataset_sha256": [sha256],
            "types": ["Q8_0", "F16"],
            "policy": ["default"],
            "profile": ["laptop"],
            "parent_version": ["v1.0"],
            "key": ["epochs", "learning_rate", "target_modules"],
            "value": ["1", "1e400", "[[[[", "NaN"],
            "at_time": ["2026-01-31T12:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"],
            "page_token": [self.token, "1", "99999999", "bW9kZWwv", "YQ", "999999999999999999"],
            "role": ["user", "system", "trainer"],
            "request_id": ["once"],
            "reason": ["because"],
            "group": ["groups/mail"],
            "consumer": ["worker-1"],
            "lease": [lease],
            "wait_seconds": [0.0, 0.01, -1.0, 60.1, 1e308, float("nan")],
        }

        self.accepted: dict[str, list[Message]] = {
            **_accepted(certificate, sha256, self.event),
            **_accepted_of_actors(),
            **_accepted_of_groups(lease),
        }

    def _throw_away(self) -> str:
        """Two actors and two groups that only this is about; the lease of the groups' only events."""
        with Client(self.house.addresses["ledger"]) as client:
            client.enrol_actor("leaving", "trainer", signer(101))
            client.enrol_actor("turning", "trainer", signer(102))
            client.create_group("closing")
            client.create_group("mail")
            return client.claim("mail", "worker-1", max_events=3, lease_seconds=3_600).lease

    def send(self, service: str, method: MethodDescriptor, requests: Sequence[bytes]) -> grpc.RpcError | None:
        """Send bytes as they are. None for an answer (of a stream, for its first ones); what it refuses is checked."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        channel, calling = self.channels[service], {"timeout": SECONDS, "metadata": metadata("alice")}
        try:
            if method.server_streaming:
                stream = channel.stream_stream(path) if method.client_streaming else channel.unary_stream(path)
                answers = stream(iter(requests) if method.client_streaming else requests[0], **calling)
                for answer in islice(answers, 1 if method.name.startswith(ENDLESS) else ANSWERS):
                    if method.name == "AppendStream":
                        self._check_appended(method, ledger_pb2.AppendStreamResponse.FromString(answer))
                answers.cancel()
            elif method.client_streaming:
                channel.stream_unary(path)(iter(requests), **calling)
            else:
                channel.unary_unary(path)(requests[0], **calling)
        except grpc.RpcError as error:
            return error
        return None

    def check(self, service: str, method: MethodDescriptor, requests: Sequence[bytes]) -> str:
        """The answer's reason; "" for an answer without error."""
        error = self.send(service, method, requests)
        if error is None:
            return ""
        status = rpc_status.from_call(error)
        assert status is not None, f"{error.code()} without details: {error.details()}"
        return self._check_status(method, status)

    def _check_appended(self, method: MethodDescriptor, answer: ledger_pb2.AppendStreamResponse) -> None:
        if answer.WhichOneof("result") == "refused":
            self._check_status(method, answer.refused)
        else:
            assert answer.appended.proofs

    def _check_status(self, method: MethodDescriptor, status: status_pb2.Status) -> str:
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (info.domain, info.reason in REASONS) == (DOMAIN, True)
        assert info.reason != "INTERNAL", status.message
        told = str(status)
        assert not LEAKS.search(told), told
        assert str(self.house.data) not in told
        # A command that signs an event without the form of one did not check what it was given.
        assert info.reason not in EVENT_FORM - CHECKS_FORM.get(method.name, set()), told
        return info.reason


def _accepted(certificate: str, sha256: str, event: ledger_pb2.Event) -> dict[str, list[Message]]:
    """Method -> what it says yes to (of a stream, several messages). A method of one kind of name has one entry."""
    model, page = "orgs/acme/models/assistant", {"page_size": 2}
    sampling = inference_pb2.Sampling(max_tokens=3, temperature=0.5, top_p=0.5, seed=1, stop=["."])
    question = inference_pb2.GenerateRequest(
        model="acme/assistant", messages=[inference_pb2.ChatMessage(role="user", content="Hello!")], sampling=sampling
    )
    header = trainer_pb2.DatasetHeader(org="acme", dataset="more", register=True, accept_below_minimum=True)
    rows = b'{"prompt":"a","completion":"b"}\n{"messages":[{"role":"user","content":"c"}]}\n' * 3
    return {
        "AppendEvents": [ledger_pb2.AppendEventsRequest(envelopes=[event.envelope])],
        "AppendStream": [ledger_pb2.AppendStreamRequest(number=7, envelopes=[event.envelope])] * 2,
        "GetEvent": [ledger_pb2.GetEventRequest(index=3)],
        "ListEvents": [ledger_pb2.ListEventsRequest(stream_prefix="training-runs/", kinds=["EpochCompleted"], **page)],
        "WatchEvents": [ledger_pb2.WatchEventsRequest(start_index=5, kinds=["EpochCompleted"])],
        "GetCheckpoint": [ledger_pb2.GetCheckpointRequest()],
        "GetInclusionProof": [ledger_pb2.GetInclusionProofRequest(index=3, tree_size=20)],
        "GetConsistencyProof": [ledger_pb2.GetConsistencyProofRequest(old_size=3, new_size=20)],
        "ListBaseModels": [registry_pb2.ListBaseModelsRequest(**page)],
        "ListDatasets": [registry_pb2.ListDatasetsRequest(parent="orgs/acme", **page)],
        "ListModels": [registry_pb2.ListModelsRequest(parent="orgs/-", **page)],
        "ListVersions": [registry_pb2.ListVersionsRequest(parent=model, **page)],
        "GetVersion": [registry_pb2.GetVersionRequest(name=f"{model}/versions/latest")],
        "ActivateVersion": [registry_pb2.ActivateVersionRequest(name=VERSION, reason="why", request_id="a")],
        "RollbackVersion": [registry_pb2.RollbackVersionRequest(parent=model, reason="why", request_id="b")],
        "RevokeVersion": [registry_pb2.RevokeVersionRequest(name=VERSION, reason="why", request_id="c")],
        "ListActivations": [registry_pb2.ListActivationsRequest(parent=model, at_time="2026-01-31T12:00:00Z", **page)],
        "ListServable": [registry_pb2.ListServableRequest(name="acme/assistant")],
        "GetLineage": [registry_pb2.GetLineageRequest(name=sha256, descendants=True)],
        "RenderFile": [registry_pb2.RenderFileRequest(name=model, file="MODEL_LOG.md")],
        "IssueCertificate": [
            certification_pb2.IssueCertificateRequest(version=VERSION, policy="default", categories=["a"])
        ],
        "GetCertificate": [certification_pb2.GetCertificateRequest(name=certificate)],
        "ListCertificates": [certification_pb2.ListCertificatesRequest(parent=VERSION, **page)],
        "RevokeCertificate": [certification_pb2.RevokeCertificateRequest(name=certificate, reason="why")],
        "DownloadBundle": [certification_pb2.DownloadBundleRequest(name=certificate, include_artifacts=True)],
        "ListLocalBases": [trainer_pb2.ListLocalBasesRequest(**page)],
        "RegisterBase": [trainer_pb2.RegisterBaseRequest(base="tiny")],
        "CheckDataset": [
            trainer_pb2.CheckDatasetRequest(header=header),
            trainer_pb2.CheckDatasetRequest(chunk=rows),
        ],
        "StartTrainingRun": [
            trainer_pb2.StartTrainingRunRequest(
                model=model, bases=["tiny"], dataset_sha256=sha256, options={"epochs": "2"}, parent_version="v1.0"
            )
        ],
        "GetTrainingRun": [trainer_pb2.GetTrainingRunRequest(name="training-runs/run-1")],
        "ListTrainingRuns": [trainer_pb2.ListTrainingRunsRequest(**page)],
        "WatchTrainingRun": [trainer_pb2.WatchTrainingRunRequest(name="training-runs/run-1")],
        "CancelTrainingRun": [trainer_pb2.CancelTrainingRunRequest(name="training-runs/run-1", reason="why")],
        "StartQuantization": [quantizer_pb2.StartQuantizationRequest(source=VERSION, types=["Q8_0"], base="tiny")],
        "GetQuantization": [quantizer_pb2.GetQuantizationRequest(name="quantizations/q-1")],
        "ListQuantizations": [quantizer_pb2.ListQuantizationsRequest(**page)],
        "WatchQuantization": [quantizer_pb2.WatchQuantizationRequest(name="quantizations/q-1")],
        "Generate": [question],
        "StreamGenerate": [inference_pb2.StreamGenerateRequest(request=question)],
        "ListDeployments": [inference_pb2.ListDeploymentsRequest(**page)],
        "SetDeployment": [inference_pb2.SetDeploymentRequest(name="acme/assistant", enabled=True)],
    }


def _accepted_of_actors() -> dict[str, list[Message]]:
    joining, present, following = signer(103), signer(102), signer(104)
    return {
        "ListActors": [actors_pb2.ListActorsRequest(page_size=2)],
        "EnrolActor": [
            actors_pb2.EnrolActorRequest(
                name="actors/joining",
                role="trainer",
                public_key=joining.public_key_der,
                possession=possession.prove("joining", "", joining),
                request_id="d",
            )
        ],
        "RotateActorKey": [
            actors_pb2.RotateActorKeyRequest(
                name="actors/turning",
                public_key=following.public_key_der,
                possession=possession.prove("turning", present.keyid, following),
                reason="why",
                request_id="e",
            )
        ],
        "RevokeActor": [actors_pb2.RevokeActorRequest(name="actors/leaving", reason="why", request_id="f")],
    }


def _accepted_of_groups(lease: str) -> dict[str, list[Message]]:
    wanted = subscription_pb2.Group(name="groups/other", stream_prefix="training-runs/", kinds=["EpochCompleted"])
    held = {"group": "groups/mail", "lease": lease}
    return {
        "CreateGroup": [subscription_pb2.CreateGroupRequest(group=wanted)],
        "GetGroup": [subscription_pb2.GetGroupRequest(name="groups/mail")],
        "ListGroups": [subscription_pb2.ListGroupsRequest(page_size=2)],
        "CloseGroup": [subscription_pb2.CloseGroupRequest(name="groups/closing", reason="why")],
        "Claim": [subscription_pb2.ClaimRequest(group="groups/mail", consumer="worker-2", max_events=2)],
        "ExtendLease": [subscription_pb2.ExtendLeaseRequest(**held)],
        "Ack": [subscription_pb2.AckRequest(indexes=[0], **held)],
        "Retry": [subscription_pb2.RetryRequest(indexes=[1], reason="why", **held)],
        "Park": [subscription_pb2.ParkRequest(indexes=[2], reason="why", **held)],
        "ListParked": [subscription_pb2.ListParkedRequest(parent="groups/mail", page_size=2)],
        "ReplayParked": [subscription_pb2.ReplayParkedRequest(group="groups/mail", indexes=[2])],
    }


@contextmanager
def attacked(folder: Path) -> Iterator[Target]:
    """A target that must serve, and whose log must verify, when everything has been sent to it."""
    target = Target(folder)
    with closing(target.house):
        yield target
        for service in SERVICES:
            health = health_pb2_grpc.HealthStub(target.channels[service])
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        verify_whole_log(target.house.part("ledger").store)
        for channel in target.channels.values():
            channel.close()
