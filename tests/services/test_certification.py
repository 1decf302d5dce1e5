"""Certification over gRPC: what is checked before a certificate is written, and what is handed out."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from modelledger.ledger.v1 import certification_pb2 as pb
from modelledger.ledger.v1 import events_pb2

from ledger.certification import Certification
from ledger.errors import RevokedMaterial
from ledger.evidence import statement_of
from ledger.policy import shipped
from ledger.verify import verify_bundle
from tests.certified import VERSION, Certified
from tests.log_story import ref


def refusal(world: Certified, method: str, request: Any) -> tuple[str, str, str]:
    """(code, reason, message) of a call that must fail."""

    async def question(stub: Any) -> tuple[str, str, str]:
        call = getattr(stub, method)(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [piece async for piece in call] if method == "DownloadBundle" else await call
        status = rpc_status.from_call(caught.value)
        info = error_details_pb2.ErrorInfo()
        status.details[0].Unpack(info)
        return caught.value.code().name, info.reason, status.message

    return world.ask(question)


def get(world: Certified, name: str) -> pb.Certificate:
    async def question(stub: Any) -> Any:
        return await stub.GetCertificate(pb.GetCertificateRequest(name=name))

    return world.ask(question).certificate


def revoke(world: Certified, name: str, request_id: str = "") -> pb.Certificate:
    async def question(stub: Any) -> Any:
        request = pb.RevokeCertificateRequest(name=name, reason="a mistake", request_id=request_id)
        return await stub.RevokeCertificate(request)

    return world.ask(question).certificate


@pytest.fixture
def world(tmp_path: Path) -> Certified:
    return Certified(tmp_path)


def test_a_certificate_is_an_event_with_its_caller(world: Certified) -> None:
    issued = world.issue(categories=[])
    assert issued.record.caller.id == "local:alice"
    assert list(issued.record.categories) == ["faq-sv"]
    assert issued.name == f"certificates/{issued.record.certificate}"
    assert issued.event_index == world.store.head.size - 1
    assert list(issued.record.evidence) == sorted(issued.record.evidence)
    assert get(world, issued.name) == issued
    assert not issued.revoked


def test_same_request_same_certificate(world: Certified) -> None:
    first = world.issue(request_id="r-1")
    assert world.issue(request_id="r-1") == first
    assert world.issue(request_id="r-2") != first

    async def twice(stub: Any) -> Any:
        request = pb.IssueCertificateRequest(version=VERSION, request_id="r-3")
        return await asyncio.gather(*(stub.IssueCertificate(request) for _ in range(5)))

    size = world.store.head.size
    assert len({answer.certificate.name for answer in world.ask(twice)}) == 1
    assert world.store.head.size == size + 1


def test_a_request_id_revokes_one_certificate(world: Certified) -> None:
    first, second = world.issue(), world.issue()
    assert revoke(world, first.name, "r-1").revoked
    assert revoke(world, first.name, "r-1").revoked
    request = pb.RevokeCertificateRequest(name=second.name, reason="a mistake", request_id="r-1")
    code, reason, message = refusal(world, "RevokeCertificate", request)
    assert (code, reason) == ("ALREADY_EXISTS", "EVENT_ID_REUSED")
    assert first.name in message
    assert not get(world, second.name).revoked


def test_two_in_one_second_get_two_names(world: Certified) -> None:
    async def many(stub: Any) -> Any:
        request = pb.IssueCertificateRequest(version=VERSION)
        return await asyncio.gather(*(stub.IssueCertificate(request) for _ in range(5)))

    assert len({answer.certificate.name for answer in world.ask(many)}) == 5


def test_everything_missing_is_reported_at_once(tmp_path: Path) -> None:
    world = Certified(tmp_path, skip=frozenset({"EpochCompleted", "QuantizationCompleted"}))
    size = world.store.head.size
    code, reason, message = refusal(world, "IssueCertificate", pb.IssueCertificateRequest(version=VERSION))
    assert (code, reason) == ("FAILED_PRECONDITION", "EVIDENCE_MISSING")
    for kind in ("EpochCompleted", "QuantizationRequested", "QuantizationCompleted"):
        assert f"{kind}: 0 in the log" in message
    assert world.store.head.size == size


def test_revoked_evidence_does_not_count(world: Certified) -> None:
    issued = world.issue()
    world.withdraw_base(world._bases[0])
    _, reason, message = refusal(world, "IssueCertificate", pb.IssueCertificateRequest(version=VERSION))
    assert reason == "EVIDENCE_MISSING"
    assert "base-models/tiny was revoked" in message
    assert get(world, issued.name).revoked


def test_a_certificate_rests_on_bases_data_and_earlier_adapters(world: Certified) -> None:
    chain = world.continue_training()
    world.quantize_version("v1.1", chain)
    issued = world.issue(version=VERSION.replace("v1.0", "v1.1"))
    event = statement_of(world.store.get(issued.event_index)).event
    assert set(event.materials) == {world._bases[0], world._data, chain[0]}
    assert chain[1] in event.subjects


def test_a_base_withdrawn_between_check_and_record_is_refused(world: Certified) -> None:
    service = Certification(world.store, world.artifacts, world.actor("certification"))
    record, provenance = service._assess(shipped()["default"], "acme", "assistant", "v1.0", [])
    world.withdraw_base(world._bases[0])
    size = world.store.head.size
    with pytest.raises(RevokedMaterial, match="base-models/tiny"):
        asyncio.run(service._issue(record, provenance, str(uuid.uuid4())))
    assert world.store.head.size == size


@pytest.mark.parametrize("story", ["another folder of a base", "a base left out"])
def test_a_version_that_tells_another_story_than_its_run_is_not_certified(world: Certified, story: str) -> None:
    bases = list(world._bases)
    if story == "another folder of a base":
        bases[1] = world.base("other", "changed")
    else:
        bases.pop()
    created = events_pb2.VersionCreated(org="acme", model="assistant", major=1, minor=1, run="run-1")
    adapters = world._adapters[: len(bases)]
    for base, adapter in zip(bases, adapters, strict=True):
        key = base.name.removeprefix("base-models/")
        created.adapters.add(base=key, base_sha256=base.sha256, chain=[ref(adapter)], weight=0.5)
    world.append("trainer", "models/acme/assistant", created, adapters, [*bases, world._data])
    world.quantize_version("v1.1", [world._adapters[0]])
    request = pb.IssueCertificateRequest(version=VERSION.replace("v1.0", "v1.1"))
    _, reason, message = refusal(world, "IssueCertificate", request)
    assert reason == "EVIDENCE_MISSING"
    assert "disagree about the adapter of base other" in message
    assert "base tiny" not in message


def test_a_version_that_names_other_data_than_its_run_is_not_certified(world: Certified) -> None:
    other = world.dataset("acme", "other")
    created = events_pb2.VersionCreated(org="acme", model="assistant", major=1, minor=1, run="run-1")
    for base, adapter in zip(world._bases, world._adapters, strict=True):
        key = base.name.removeprefix("base-models/")
        created.adapters.add(base=key, base_sha256=base.sha256, chain=[ref(adapter)], weight=0.5)
    world.append("trainer", "models/acme/assistant", created, world._adapters, [*world._bases, other])
    world.quantize_version("v1.1", [world._adapters[0]])
    request = pb.IssueCertificateRequest(version=VERSION.replace("v1.0", "v1.1"))
    assert "data that its run was not trained on" in refusal(world, "IssueCertificate", request)[2]


@pytest.mark.parametrize("chain", ["none", "another base's", "too long"])
def test_a_quantisation_of_something_else_is_no_evidence(world: Certified, chain: str) -> None:
    adapters = {"none": [], "another base's": world._adapters[1:], "too long": world._adapters}[chain]
    world.quantize_version("v1.0", adapters)
    _, reason, message = refusal(world, "IssueCertificate", pb.IssueCertificateRequest(version=VERSION))
    assert reason == "EVIDENCE_MISSING"
    assert "was not made from the version's base tiny and its adapters" in message


def test_a_bundle_tells_what_was_revoked_since(world: Certified, tmp_path: Path) -> None:
    issued, vkeys = world.issue(), [world.store.signer.vkey()]
    assert verify_bundle(world.download(issued.name, tmp_path / "before"), vkeys).ok
    assert revoke(world, issued.name, "r").revoked
    assert revoke(world, issued.name, "r").revoked
    assert refusal(world, "RevokeCertificate", pb.RevokeCertificateRequest(name=issued.name, reason="x"))[1] == (
        "REVOKED_MATERIAL"
    )
    report = verify_bundle(world.download(issued.name, tmp_path / "after"), vkeys)
    assert {check.reason for check in report.failures} == {"revoked-certificate"}
    world.revoke("acme", "assistant", "v1.0", world._adapters)
    report = verify_bundle(world.download(issued.name, tmp_path / "later"), vkeys)
    assert {check.reason for check in report.failures} == {"revoked-certificate", "revoked-material"}


def test_a_continued_model_is_certified_with_its_ancestors(world: Certified, tmp_path: Path) -> None:
    chain = world.continue_training()
    world.quantize_version("v1.1", chain)
    version = "orgs/acme/models/assistant/versions/v1.1"
    issued = world.issue(version=version)
    folder = world.download(issued.name, tmp_path / "bundle")
    report = verify_bundle(folder, [world.store.signer.vkey()])
    assert report.ok, report.failures
    assert set(report.certified["bases"]) == {"tiny"}
    assert {"adapters/run-1/tiny", "adapters/run-2/tiny"} <= set(report.certified["artifacts"])
    assert issued.record.dna.startswith("assistant.v1.1.")
    for run in ("run-1", "run-2"):
        rows = world.store.select(stream=f"training-runs/{run}")
        assert {row.position for row in rows} <= set(issued.record.evidence)


def test_list_newest_first_in_pages(world: Certified) -> None:
    names = [world.issue(request_id=str(number)).name for number in range(3)]

    async def question(stub: Any) -> Any:
        first = await stub.ListCertificates(pb.ListCertificatesRequest(parent=VERSION, page_size=2))
        token = first.next_page_token
        second = await stub.ListCertificates(pb.ListCertificatesRequest(page_size=2, page_token=token))
        nothing = await stub.ListCertificates(pb.ListCertificatesRequest(parent="orgs/acme/models/other"))
        return first, second, nothing

    first, second, nothing = world.ask(question)
    assert [c.name for c in (*first.certificates, *second.certificates)] == names[::-1]
    assert second.next_page_token == ""
    assert len(nothing.certificates) == 0


@pytest.mark.parametrize(
    ("method", "request_", "reason", "field"),
    [
        ("IssueCertificate", pb.IssueCertificateRequest(version="v1.0"), "INVALID_INPUT", "version"),
        ("IssueCertificate", pb.IssueCertificateRequest(version=VERSION + "1"), "NOT_FOUND", "v1.0"),
        ("IssueCertificate", pb.IssueCertificateRequest(version=VERSION, policy="x"), "NOT_FOUND", "default"),
        (
            "IssueCertificate",
            pb.IssueCertificateRequest(version=VERSION, categories=[""]),
            "INVALID_INPUT",
            "categories",
        ),
        (
            "IssueCertificate",
            pb.IssueCertificateRequest(version=VERSION, request_id="x" * 201),
            "INVALID_INPUT",
            "request",
        ),
        ("GetCertificate", pb.GetCertificateRequest(name="certificates/none"), "NOT_FOUND", "none"),
        ("GetCertificate", pb.GetCertificateRequest(name="../x"), "INVALID_INPUT", "name"),
        ("RevokeCertificate", pb.RevokeCertificateRequest(name="certificates/none"), "INVALID_INPUT", "reason"),
        ("ListCertificates", pb.ListCertificatesRequest(page_token="x"), "INVALID_INPUT", "page_token"),
        ("ListCertificates", pb.ListCertificatesRequest(parent="x"), "INVALID_INPUT", "parent"),
        ("DownloadBundle", pb.DownloadBundleRequest(name="certificates/none"), "NOT_FOUND", "none"),
    ],
)
def test_refusals_name_what_is_wrong(world: Certified, method: str, request_: Any, reason: str, field: str) -> None:
    _, found, message = refusal(world, method, request_)
    assert found == reason
    assert field in message


def test_a_request_id_is_for_one_version(world: Certified) -> None:
    world.continue_training()
    world.issue(request_id="r")
    other = pb.IssueCertificateRequest(version=VERSION.replace("v1.0", "v1.1"), request_id="r")

    async def question(stub: Any) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.IssueCertificate(other, metadata=(("modelledger-user", "alice"),))
        return caught.value.code().name

    assert world.ask(question) == "ALREADY_EXISTS"


def test_a_damaged_artifact_is_not_handed_out(world: Certified) -> None:
    issued = world.issue()
    blob = world.artifacts.path_of(world._adapters[0].sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"other")
    request = pb.DownloadBundleRequest(name=issued.name)
    assert refusal(world, "DownloadBundle", request)[1] == "ARTIFACT_MISMATCH"
