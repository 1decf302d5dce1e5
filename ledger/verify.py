"""The auditor: a bundle and the key of a log you trust in, a report out. No ledger, no network, no protobuf.

    report = verify_bundle(Path("cert.zip"), trust.read("trust.toml"), artifacts=[Path("model.gguf")])
    report.ok, report.failures, report.certified

In this order: every file has the digest that manifest.json names; every statement is in the trusted log, signed and
allowed (verify_statements.py); enough witnesses cosigned the checkpoint, when a policy asks for them
(verify_witnesses.py); the certificate rests on exactly this evidence (verify_certificate.py); the JSON files say what
the statements say; manifest.json and the model are signed by the certification actor; artifacts, in the bundle or on
this machine, are the certified bytes (verify_artifacts.py). A failure does not stop the rest, so a report names
everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledger import bundle, manifest, model_signature, strict_json, trust
from ledger import envelope as dsse
from ledger.bundle import Statement
from ledger.bundle_documents import documents
from ledger.bundle_files import BundleFiles, UnreadableBundle, open_bundle
from ledger.errors import ModelLedgerError
from ledger.manifest import FileEntry
from ledger.policy import Policy, shipped
from ledger.provenance import Provenance
from ledger.report import Report
from ledger.strict_text import encode_base64
from ledger.trust import Trust
from ledger.trust_policy import TrustPolicy
from ledger.verify_artifacts import check_bundled, check_local, read_manifests
from ledger.verify_certificate import check_certificate, only_certificate
from ledger.verify_statements import Proven, prove, signed_by
from ledger.verify_witnesses import check_witnesses

# What reading data of an unexpected form raises. Statements reach it only after the log's rules accepted them.
_BAD_FORM = (KeyError, TypeError, ValueError, AttributeError, IndexError, ModelLedgerError)


def read_trust(text: str) -> list[str]:
    """The logs' verifier keys in a vkey, a file of them, or a trust file. Raises InvalidConfig."""
    return list(trust.read(text).vkeys)


def verify_bundle(
    path: Path,
    trusted: Sequence[str] | Trust,
    artifacts: Sequence[Path] = (),
    policies: Mapping[str, Policy] | None = None,
    witnesses: TrustPolicy | None = None,
) -> Report:
    """Audit the bundle at `path`, a folder or a zip, and local copies of what it certifies. With `witnesses` its
    checkpoint must also be cosigned as that policy asks.

    `trusted`: verifier keys of logs, or more in a Trust. Raises InvalidConfig for what is no verifier key; everything
    else is in the report.
    """
    trusted = trusted if isinstance(trusted, Trust) else Trust(tuple(trusted))
    verifiers = trusted.verifiers()
    report = Report()
    try:
        with open_bundle(path) as files:
            listing = _manifest(files, report)
            proven = prove(files, verifiers, report, trusted)
            if proven is not None:
                if witnesses is not None:
                    check_witnesses(proven.note, proven.checkpoint.origin, witnesses, report)
                _check(files, listing, proven, artifacts, shipped() if policies is None else policies, report)
    except UnreadableBundle as error:
        if error.reason == "missing-file":
            report.missing("bundle", str(path), error.reason, str(error))
        else:
            report.invalid("bundle", str(path), error.reason, str(error))
    return report


def _check(
    files: BundleFiles,
    listing: dict[str, FileEntry],
    proven: Proven,
    artifacts: Sequence[Path],
    policies: Mapping[str, Policy],
    report: Report,
) -> None:
    certificate = only_certificate(proven, report)
    if certificate is None:
        return
    try:
        provenance = check_certificate(certificate, proven, policies, report)
    except _BAD_FORM as error:
        where = bundle.statement_path(certificate.index, "CertificateIssued")
        report.invalid("certificate", where, "malformed-event", f"its data: {error!r}")
        return
    _seal(files, certificate, proven, report)
    if provenance is None:
        return
    manifests = read_manifests(files, provenance, report)
    layout = _layout(provenance, manifests, report) if manifests is not None else None
    _signatures(files, certificate, proven, layout, report)
    _documents(files, provenance, certificate, proven, report)
    _only_known_paths(files, provenance, report)
    if layout is not None and manifests is not None:
        check_bundled(listing, layout, report)
        check_local(artifacts, proven.statements.values(), layout, manifests, report)
        report.certified = _summary(provenance, certificate, proven)


def _layout(provenance: Provenance, manifests: Mapping[str, list[FileEntry]], report: Report) -> dict[str, str] | None:
    try:
        return bundle.layout(provenance.artifacts, manifests)
    except ModelLedgerError as error:
        report.invalid("artifact", bundle.ARTIFACTS, "unsafe-path", error.message)
        return None


def _manifest(files: BundleFiles, report: Report) -> dict[str, FileEntry]:
    """The listed files, each checked against the bytes that are there."""
    for path in (bundle.MANIFEST, bundle.SEAL):
        if path not in files.sizes:
            report.missing("manifest", path, "missing-file", "every bundle has it")
    if bundle.MANIFEST not in files.sizes:
        return {}
    try:
        listing = {entry.path: entry for entry in manifest.decode(files.read(bundle.MANIFEST))}
    except (UnreadableBundle, ValueError) as error:
        report.invalid("manifest", bundle.MANIFEST, "malformed-manifest", str(error))
        return {}
    for path, entry in listing.items():
        if path not in files.sizes:
            report.missing("file", path, "missing-file", "manifest.json lists it")
            continue
        try:
            stored = files.hash(path) if files.sizes[path] == entry.size else None
        except UnreadableBundle as error:
            report.invalid("file", path, error.reason, str(error))
            continue
        if stored is None or (stored.size, stored.sha256) != (entry.size, entry.sha256):
            report.invalid("file", path, "changed-file", f"is not the file of sha256 {entry.sha256}")
        else:
            report.valid("file", path)
    for path in sorted(files.sizes.keys() - listing.keys() - {bundle.MANIFEST, bundle.SEAL}):
        report.invalid("file", path, "extra-file", "manifest.json does not list it")
    return listing


def _seal(files: BundleFiles, certificate: Statement, proven: Proven, report: Report) -> None:
    """bundle.dsse.json: the certification actor signed this manifest, for this certificate and checkpoint."""
    if bundle.SEAL not in files.sizes or bundle.MANIFEST not in files.sizes:
        return  # reported as missing already
    try:
        data = files.read(bundle.SEAL)
        envelope, _ = signed_by(data, certificate.event.actor, proven)
        expected = bundle.seal_payload(
            files.read(bundle.MANIFEST),
            str(certificate.event.data["certificate"]),
            proven.checkpoint.origin,
            proven.checkpoint.size,
        )
    except UnreadableBundle as error:
        report.invalid("seal", bundle.SEAL, error.reason, str(error))
        return
    if envelope.payload != expected:
        report.invalid("seal", bundle.SEAL, "stale-hash", "it seals another manifest, certificate or checkpoint")
    elif len(envelope.signatures) != 1 or dsse.encode(envelope) != data:
        # No digest covers the seal, so it has one spelling and nobody can add to it.
        report.invalid("seal", bundle.SEAL, "changed-file", "is not spelt as it was written, or is signed by more")
    else:
        report.valid("seal", bundle.SEAL, f"signed by {certificate.event.actor}")


def _signatures(
    files: BundleFiles, certificate: Statement, proven: Proven, layout: dict[str, str] | None, report: Report
) -> None:
    """certification_key.pem is a current key of the certification actor, and it signed these artifacts."""
    actor = certificate.event.actor
    try:
        keys = {model_signature.public_key_pem(key.public_key): key.public_key for key in _current(actor, proven)}
        public_key = keys.get(files.read(bundle.KEY)) if bundle.KEY in files.sizes else None
        if bundle.KEY not in files.sizes:
            report.missing("key", bundle.KEY, "missing-file", "every bundle has it")
        elif public_key is None:
            report.invalid("key", bundle.KEY, "unknown-actor", f"is not a current key of {actor!r}")
        if bundle.MODEL_SIGNATURE not in files.sizes:
            report.missing("model signature", bundle.MODEL_SIGNATURE, "missing-file", "every bundle has it")
        elif public_key is not None and layout is not None:
            signed = model_signature.verify(files.read(bundle.MODEL_SIGNATURE), public_key)
            if signed == sorted(layout.items()):
                report.valid("model signature", bundle.MODEL_SIGNATURE, f"over {len(signed)} files")
            else:
                report.invalid(
                    "model signature", bundle.MODEL_SIGNATURE, "stale-hash", "it signs other files than are certified"
                )
    except UnreadableBundle as error:
        report.invalid("model signature", bundle.MODEL_SIGNATURE, error.reason, str(error))
    except ModelLedgerError as error:
        report.invalid("model signature", bundle.MODEL_SIGNATURE, error.reason.lower().replace("_", "-"), error.message)


def _current(actor: str, proven: Proven) -> list[Any]:
    return [key for key in proven.known.keys.values() if key.actor == actor and key.retired_at is None]


def _documents(
    files: BundleFiles, provenance: Provenance, certificate: Statement, proven: Proven, report: Report
) -> None:
    """Every JSON file is what the statements say, field by field."""
    key = next(
        proven.known.keys[signature.keyid].public_key
        for signature in dsse.parse(certificate.entry).signatures
        if signature.keyid in proven.known.keys
    )
    try:
        expected = documents(provenance, certificate, proven.proofs[certificate.index], key)
    except _BAD_FORM as error:
        report.invalid("document", bundle.STATEMENTS, "malformed-event", f"the statements cannot be read: {error!r}")
        return
    for path, content in expected.items():
        if path not in files.sizes:
            report.missing("document", path, "missing-file", "every bundle has it")
            continue
        try:
            found = files.read(path)
        except UnreadableBundle as error:
            report.invalid("document", path, error.reason, str(error))
            continue
        if found == content:
            report.valid("document", path, "agrees with the statements")
        else:
            report.invalid("document", path, "contradicts-statements", _difference(found, content))


def _difference(found: bytes, expected: bytes) -> str:
    """Which fields differ, for people."""
    try:
        value, wanted = strict_json.loads(found), strict_json.loads(expected)
    except ValueError as error:
        return str(error)
    if not isinstance(value, dict):
        return "is not a JSON object"
    fields = sorted(name for name in {*value, *wanted} if value.get(name) != wanted.get(name))
    return f"differs in {', '.join(fields)[:500]}" if fields else "is not written as the statements render it"


def _only_known_paths(files: BundleFiles, provenance: Provenance, report: Report) -> None:
    documents_ = {bundle.TRAINING_RESULTS, bundle.LEDGER_PROOF, bundle.LIVE_METRICS, bundle.MLBOM}
    documents_ |= {bundle.dna_path(provenance.model), bundle.README, bundle.MODEL_SIGNATURE, bundle.KEY}
    known = documents_ | {bundle.MANIFEST, bundle.SEAL}
    folders = (bundle.STATEMENTS, bundle.MANIFESTS, bundle.ARTIFACTS)
    if bundle.README not in files.sizes:
        report.missing("file", bundle.README, "missing-file", "every bundle has it")
    for path in sorted(files.sizes):
        if path not in known and not path.startswith(folders):
            report.invalid("file", path, "extra-file", "no bundle has a file of this name")


def _summary(provenance: Provenance, certificate: Statement, proven: Proven) -> dict[str, Any]:
    """What the bundle certifies: which bases, which data, which run, which quantisation, who, when."""
    data = certificate.event.data
    return {
        "certificate": data["certificate"],
        "org": provenance.org,
        "model": provenance.model,
        "version": provenance.version,
        "dna": data["dna"],
        "policy": data["policy"],
        "immutable_hash": data["immutableHash"],
        "issued": certificate.event.time,
        "issued_by": certificate.event.actor,
        "asked_by": data.get("caller", {}).get("id", ""),
        "bases": {base.key: base.artifact.sha256 for base in provenance.bases},
        "dataset": {provenance.dataset_artifact.name: provenance.dataset_artifact.sha256},
        "run": provenance.run,
        "quantizations": [s.event.data["quantization"] for s in provenance.quantizations],
        "artifacts": {a.name: a.sha256 for a in provenance.artifacts},
        "log": proven.checkpoint.origin,
        "log_size": proven.checkpoint.size,
        "log_root": encode_base64(proven.checkpoint.root).decode(),
    }
