"""The certificate of a bundle: does the evidence it names exist, bear it out, and still hold? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ledger import bundle
from ledger.bundle import Statement
from ledger.bundle_documents import dna_of
from ledger.policy import Policy
from ledger.provenance import Incomplete, Provenance, about, trace
from ledger.report import Report
from ledger.verify_statements import Proven


def only_certificate(proven: Proven, report: Report) -> Statement | None:
    found = [s for s in proven.statements.values() if s.event.kind == "CertificateIssued"]
    if len(found) == 1:
        return found[0]
    report.missing(
        "certificate", bundle.STATEMENTS, "missing-certificate", f"{len(found)} proven CertificateIssued, expected one"
    )
    return None


def check_certificate(
    certificate: Statement, proven: Proven, policies: Mapping[str, Policy], report: Report
) -> Provenance | None:
    """The certificate's claims, against the evidence it names."""
    data, where = certificate.event.data, bundle.statement_path(certificate.index, "CertificateIssued")
    before = len(report.failures)

    def wrong(reason: str, detail: str) -> None:
        report.invalid("certificate", where, reason, detail)

    indexes = [int(index) for index in data["evidence"]]
    absent = [index for index in indexes if index not in proven.statements]
    for index in absent:
        report.missing("evidence", f"index {index}", "missing-evidence", "the certificate rests on it")
    if certificate.event.stream != f"certificates/{data['certificate']}":
        wrong("wrong-name", f"it stands in stream {certificate.event.stream}")
    if absent:
        return None
    basis = [proven.statements[index] for index in indexes]
    if indexes != sorted(set(indexes)) or max(indexes) >= certificate.index:
        wrong("malformed-event", "its evidence is not a rising list of earlier indexes")
    if data["immutableHash"] != bundle.evidence_hash(basis):
        wrong("stale-hash", f"immutable_hash is {data['immutableHash']}, computed {bundle.evidence_hash(basis)}")
    try:
        provenance = trace(basis, data["org"], data["model"], data["version"])
    except Incomplete as error:
        wrong("evidence-missing", str(error))
        return None
    if set(certificate.event.subjects) != set(provenance.subjects):
        wrong("wrong-subject", "it does not speak of exactly the version's new adapters and GGUF files")
    if set(certificate.event.materials) != set(provenance.materials):
        wrong("wrong-material", "its materials are not exactly the version's bases, data and earlier adapters")
    if data["dna"] != str(dna_of(provenance, list(data["categories"]))):
        wrong(
            "stale-hash", f"the fingerprint is {data['dna']}, computed {dna_of(provenance, list(data['categories']))}"
        )
    policy = policies.get(data["policy"])
    if policy is None:
        wrong("unknown-policy", f"policy {data['policy']!r} is not among {sorted(policies)}; give its document")
    else:
        kinds = [s.event.kind for s in about(basis, data["org"], data["model"], data["version"])]
        for problem in policy.missing(kinds):
            wrong("evidence-missing", problem)
    _not_revoked(certificate, basis, proven, report)
    if len(report.failures) == before:
        report.valid("certificate", where, f"{data['certificate']} rests on {len(indexes)} events")
    return provenance


def _not_revoked(certificate: Statement, basis: Sequence[Statement], proven: Proven, report: Report) -> None:
    for statement in proven.statements.values():
        event = statement.event
        if event.kind == "CertificateRevoked" and event.stream == certificate.event.stream:
            where = bundle.statement_path(statement.index, event.kind)
            report.invalid("revocation", where, "revoked-certificate", str(event.data.get("reason")))
    named = {a for s in basis for a in (*s.event.subjects, *s.event.materials)}
    for artifact in sorted(named):
        known = proven.known.artifacts.get(artifact.sha256)
        if known is not None and known.revoked_at is not None:
            report.invalid("revocation", artifact.name, "revoked-material", f"was revoked at index {known.revoked_at}")
