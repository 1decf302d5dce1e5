"""CertificationService: checks a version against a policy and hands out bundles that verify offline.

A certificate is an event like any other, written by the certification actor with the caller's identity inside. What it
rests on is looked up in the log itself, never in a view.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from modelledger.ledger.v1 import certification_pb2, certification_pb2_grpc, events_pb2

from ledger import bundle, bundle_writer, evidence, schema
from ledger.bundle import Statement
from ledger.bundle_documents import dna_of
from ledger.cosigned import Checkpoints, PlainCheckpoints
from ledger.errors import (
    EventIdReused,
    EvidenceMissing,
    InvalidInput,
    NotFound,
    Overloaded,
    RevokedMaterial,
    Violation,
    WrongStreamVersion,
)
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.interceptors import caller
from ledger.kit.threads import in_thread
from ledger.local_actor import LocalActor
from ledger.policy import Policy, shipped
from ledger.provenance import Incomplete, Provenance, about, trace
from ledger.service import page_size
from ledger.statement import Event, new_id
from ledger.store import Store

CHUNK = 256 << 10
MAX_CATEGORIES = 50
MAX_SAME_SECOND = 100
SETTLING_SECONDS = 5.0  # that a bundle waits for the witnesses; it is written without them when they take longer

Context = Any  # grpc.aio.ServicerContext; the handlers use nothing of it

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_VERSION = re.compile(rf"orgs/({_NAME})/models/({_NAME})/versions/(v\d{{1,9}}\.\d{{1,9}})")
_PARENT = re.compile(rf"orgs/({_NAME})/models/({_NAME})(?:/versions/(v\d{{1,9}}\.\d{{1,9}}))?")
_CERTIFICATE = re.compile(rf"certificates/{_NAME}")
_REQUEST_IDS = uuid.UUID("5b0e6a0e-9f5f-5d0c-8b7e-6d6f64656c6c")  # namespace of event ids made from request ids


class Certification(certification_pb2_grpc.CertificationServiceServicer):
    """The certification actor's commands. Policies are the shipped ones unless others are given."""

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactStore,
        actor: LocalActor,
        policies: Mapping[str, Policy] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._store = store
        self._checkpoints = checkpoints or PlainCheckpoints(store)
        self._artifacts = artifacts
        self._actor = actor
        self._policies = dict(policies) if policies is not None else shipped()

    async def IssueCertificate(
        self, request: certification_pb2.IssueCertificateRequest, context: Context
    ) -> certification_pb2.IssueCertificateResponse:
        org, model, version = _parsed(_VERSION, request.version, "version")
        policy = self._policy(request.policy or "default")
        asked_by = caller()
        event_id = _event_id("IssueCertificate", asked_by, request.request_id)
        earlier = await asyncio.to_thread(self._recorded, event_id)
        if earlier is None:
            assess = partial(self._assess, policy, org, model, version, list(request.categories))
            record, provenance = await asyncio.to_thread(assess)
            record.caller.CopyFrom(asked_by)
            earlier = await self._issue(record, provenance, event_id)
        found = _record(earlier)
        if (found.org, found.model, found.version) != (org, model, version):
            raise EventIdReused(
                f"request_id: {request.request_id[:40]!r} was used for {found.org}/{found.model} before"
            )
        certificate = await asyncio.to_thread(self._certificate, earlier)
        return certification_pb2.IssueCertificateResponse(certificate=certificate)

    async def GetCertificate(
        self, request: certification_pb2.GetCertificateRequest, context: Context
    ) -> certification_pb2.GetCertificateResponse:
        certificate = await asyncio.to_thread(lambda: self._certificate(self._find(request.name)))
        return certification_pb2.GetCertificateResponse(certificate=certificate)

    async def ListCertificates(
        self, request: certification_pb2.ListCertificatesRequest, context: Context
    ) -> certification_pb2.ListCertificatesResponse:
        parent = _parsed(_PARENT, request.parent, "parent") if request.parent else None
        size, stop = page_size(request.page_size), None
        if request.page_token:
            if not re.fullmatch(r"[0-9]{1,18}", request.page_token):
                raise InvalidInput("page_token: is not one that this method gave out")
            stop = int(request.page_token)
        return await asyncio.to_thread(self._list, parent, size, stop)

    async def RevokeCertificate(
        self, request: certification_pb2.RevokeCertificateRequest, context: Context
    ) -> certification_pb2.RevokeCertificateResponse:
        if not 1 <= len(request.reason) <= 1_000:
            raise InvalidInput("reason: say why, in at most 1000 characters")
        asked_by = caller()
        event_id = _event_id("RevokeCertificate", asked_by, request.request_id)
        issued = await asyncio.to_thread(self._find, request.name)
        earlier = await asyncio.to_thread(self._recorded, event_id)
        if earlier is not None and earlier.event.stream != issued.event.stream:
            raise EventIdReused(f"request_id: {request.request_id[:40]!r} was used for {earlier.event.stream} before")
        if earlier is None:
            if await asyncio.to_thread(self._is_revoked, issued):
                raise RevokedMaterial(f"{request.name} is revoked already")
            record = events_pb2.CertificateRevoked(
                certificate=_record(issued).certificate, reason=request.reason, caller=asked_by
            )
            stream = issued.event.stream
            version = await asyncio.to_thread(self._actor.next_version, stream)
            await self._actor.record(record, stream, version, issued.event.subjects, event_id=event_id)
        certificate = await asyncio.to_thread(self._certificate, issued)
        return certification_pb2.RevokeCertificateResponse(certificate=certificate)

    async def DownloadBundle(
        self, request: certification_pb2.DownloadBundleRequest, context: Context
    ) -> AsyncIterator[certification_pb2.DownloadBundleResponse]:
        issued = await asyncio.to_thread(self._find, request.name)
        write = partial(bundle_writer.write, self._store, self._artifacts, self._actor.signer, issued)
        checkpoint = await in_thread(self._checkpoints.settled, SETTLING_SECONDS)
        files = await asyncio.to_thread(write, include_artifacts=request.include_artifacts, checkpoint=checkpoint)
        for file in files:
            chunks = _chunks(file.content)
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield certification_pb2.DownloadBundleResponse(path=file.path, chunk=chunk)

    # What the handlers share; all of it blocks, so it runs in threads.

    def _policy(self, name: str) -> Policy:
        if name not in self._policies:
            raise NotFound(f"policy: there is no {name!r}; there are {', '.join(sorted(self._policies))}")
        return self._policies[name]

    def _assess(
        self, policy: Policy, org: str, model: str, version: str, categories: list[str]
    ) -> tuple[events_pb2.CertificateIssued, Provenance]:
        """The certificate to record. Raises EvidenceMissing with everything that is missing or revoked."""
        basis = evidence.of_version(self._store, org, model, version)
        kinds = [statement.event.kind for statement in about(basis, org, model, version)]
        problems = policy.missing(kinds)
        unquantised = policy.require.get("QuantizationCompleted", 0) > kinds.count("QuantizationCompleted")
        hint = f"; run: modelledger quantize {org}/{model} {version}" if unquantised else ""
        mentioned = {a for s in basis for a in (*s.event.materials, *s.event.subjects)}
        gone = self._store.revocations(a.sha256 for a in mentioned)
        problems += [f"{a.name} was revoked at index {gone[a.sha256]}" for a in sorted(mentioned) if a.sha256 in gone]
        if not problems:
            try:
                provenance = trace(basis, org, model, version)
            except Incomplete as error:
                problems = list(error.problems)
        if problems:
            raise EvidenceMissing(
                f"{org}/{model} {version} cannot be certified: " + "; ".join(problems) + hint,
                violations=[Violation("version", "EVIDENCE_MISSING", problem) for problem in problems],
            )
        chosen = _categories(categories) or [provenance.dataset_artifact.name.rsplit("/", 1)[-1]]
        record = events_pb2.CertificateIssued(
            org=org,
            model=model,
            version=version,
            policy=policy.name,
            dna=str(dna_of(provenance, chosen)),
            evidence=[statement.index for statement in basis],
            immutable_hash=bundle.evidence_hash(basis),
            categories=chosen,
        )
        return record, provenance

    async def _issue(self, record: events_pb2.CertificateIssued, provenance: Provenance, event_id: str) -> Statement:
        base = datetime.now(UTC).strftime("cert-%Y%m%d-%H%M%S")
        for number in range(1, MAX_SAME_SECOND + 1):
            record.certificate = base if number == 1 else f"{base}-{number}"
            stream = f"certificates/{record.certificate}"
            try:
                # The materials are looked up again where the event is written: what was withdrawn meanwhile is refused.
                await self._actor.record(
                    record, stream, 1, provenance.subjects, provenance.materials, event_id=event_id
                )
            except WrongStreamVersion:
                continue  # another certificate has this second's name
            except EventIdReused:
                pass  # the same request came twice at once, and the other one was first
            return evidence.statement_of(await asyncio.to_thread(self._store.get_by_id, event_id))
        raise Overloaded(f"{MAX_SAME_SECOND} certificates were issued in this second; retry", retry_after=1.0)

    def _recorded(self, event_id: str) -> Statement | None:
        try:
            return evidence.statement_of(self._store.get_by_id(event_id))
        except NotFound:
            return None

    def _find(self, name: str) -> Statement:
        if not _CERTIFICATE.fullmatch(name):
            raise InvalidInput(f"name: {name[:200]!r} does not have the form certificates/ID")
        rows = self._store.select(stream=name, kinds=("CertificateIssued",), limit=1)
        if not rows:
            raise NotFound(f"there is no {name}; `modelledger certify --list` shows what there is")
        return evidence.statement_of(rows[0])

    def _certificate(self, issued: Statement) -> certification_pb2.Certificate:
        return certification_pb2.Certificate(
            name=issued.event.stream,
            record=_record(issued),
            issue_time=issued.event.time,
            event_index=issued.index,
            revoked=self._is_revoked(issued) or self._rests_on_revoked(issued),
        )

    def _is_revoked(self, issued: Statement) -> bool:
        return bool(self._store.select(stream=issued.event.stream, kinds=("CertificateRevoked",), limit=1))

    def _rests_on_revoked(self, issued: Statement) -> bool:
        basis = map(evidence.statement_of, self._store.get_all(_record(issued).evidence))
        digests = {a.sha256 for s in basis for a in (*s.event.materials, *s.event.subjects)}
        return bool(self._store.revocations(digests))

    def _list(
        self, parent: tuple[str, ...] | None, size: int, stop: int | None
    ) -> certification_pb2.ListCertificatesResponse:
        found: list[Statement] = []
        while len(found) <= size:
            rows = self._store.select(kinds=("CertificateIssued",), stop=stop, descending=True, limit=size + 1)
            if not rows:
                break
            found += [s for s in map(evidence.statement_of, rows) if _below(parent, s.event)]
            stop = rows[-1].position
        page = found[:size]
        return certification_pb2.ListCertificatesResponse(
            certificates=map(self._certificate, page),
            next_page_token=str(page[-1].index) if len(found) > size else "",
        )


def _parsed(form: re.Pattern[str], text: str, field: str) -> tuple[str, ...]:
    match = form.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{field}: {text[:200]!r} does not have the form orgs/ORG/models/MODEL/versions/vX.Y")
    return match.groups()


def _categories(categories: list[str]) -> list[str]:
    if len(categories) > MAX_CATEGORIES or not all(1 <= len(c) <= 100 and c.isprintable() for c in categories):
        raise InvalidInput(f"categories: at most {MAX_CATEGORIES}, each a text of 1 to 100 characters")
    return sorted(set(categories))


def _event_id(method: str, asked_by: events_pb2.Caller, request_id: str) -> str:
    """The same request of the same caller has the same event id, so recording it again changes nothing."""
    if len(request_id) > 200:
        raise InvalidInput("request_id: at most 200 characters")
    return str(uuid.uuid5(_REQUEST_IDS, f"{method}\n{asked_by.id}\n{request_id}")) if request_id else new_id()


def _record(issued: Statement) -> Any:
    return schema.from_data("CertificateIssued", issued.event.data)


def _below(parent: tuple[str, ...] | None, event: Event) -> bool:
    if parent is None:
        return True
    org, model, version = parent
    named = event.data.get("org") == org and event.data.get("model") == model
    return named and version in (None, event.data.get("version"))


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    """Pieces of at most CHUNK bytes; one empty piece for an empty file."""
    if isinstance(content, bytes):
        for start in range(0, max(len(content), 1), CHUNK):
            yield content[start : start + CHUNK]
        return
    with content.open("rb") as file:
        yield file.read(CHUNK)
        while chunk := file.read(CHUNK):
            yield chunk
