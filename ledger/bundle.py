"""The layout of a certificate's bundle, shared by who writes it and who verifies it. Pure.

    README.md                                   how to verify, for people
    statements/00000042-TrainingCompleted.dsse.json      a log entry, byte for byte
    statements/00000042-TrainingCompleted.tlog-proof     its place in the log; all against one checkpoint
    <model>_dna.json  training_results.json  ledger_proof.json  live_metrics.json
    mlbom.cdx.json                              CycloneDX 1.7
    manifests/<sha256>.json                     the files of a directory that a statement names by that digest
    model.sig  certification_key.pem            OpenSSF Model Signing over artifacts/
    artifacts/<artifact name>[/<file>]          adapters, GGUF files, Modelfiles, licences; when asked for
    manifest.json                               path, size and SHA-256 of every file above
    bundle.dsse.json                            the certification actor's signature over manifest.json

The statements are proven by the log, the JSON files follow from the statements, artifacts and manifests
have the digests that the statements name, and the signed manifest holds all of it together: a changed, missing
or added file is found.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ledger import manifest, strict_json
from ledger.errors import InvalidInput
from ledger.manifest import FileEntry
from ledger.statement import STATEMENT_TYPE, Artifact, Event

MANIFEST = "manifest.json"
SEAL = "bundle.dsse.json"
README = "README.md"
TRAINING_RESULTS = "training_results.json"
LEDGER_PROOF = "ledger_proof.json"
LIVE_METRICS = "live_metrics.json"
MLBOM = "mlbom.cdx.json"
MODEL_SIGNATURE = "model.sig"
KEY = "certification_key.pem"
ARTIFACTS = "artifacts/"
MANIFESTS = "manifests/"
STATEMENTS = "statements/"

# The form of the files; another form of any of them is another type.
SEAL_TYPE = "https://modelledger.dev/bundle/v1"

MAX_DOCUMENT = 8 << 20  # bytes of any file that is not an artifact

_STATEMENT = re.compile(r"statements/(\d{8,15})-([A-Za-z]{1,64})\.(dsse\.json|tlog-proof)")
_DIRECTORIES = ("adapters/", "base-models/")


@dataclass(frozen=True)
class Statement:
    """A log entry with its index and the event inside."""

    index: int
    entry: bytes
    event: Event


def dna_path(model: str) -> str:
    return f"{model}_dna.json"


def statement_path(index: int, kind: str) -> str:
    return f"{STATEMENTS}{index:08d}-{kind}.dsse.json"


def proof_path(index: int, kind: str) -> str:
    return f"{STATEMENTS}{index:08d}-{kind}.tlog-proof"


def manifest_path(sha256: str) -> str:
    return f"{MANIFESTS}{sha256}.json"


def parse_statement_path(path: str) -> tuple[int, str, str] | None:
    """(index, kind, "dsse.json" or "tlog-proof"); None for another path."""
    match = _STATEMENT.fullmatch(path)
    if match is None or f"{int(match[1]):08d}" != match[1]:
        return None
    return int(match[1]), match[2], match[3]


def evidence_hash(evidence: Iterable[Statement]) -> str:
    """The certificate's immutable_hash: hex SHA-256 of the evidence's indexes and entry digests, by index."""
    rows = [
        {"index": statement.index, "sha256": hashlib.sha256(statement.entry).hexdigest()}
        for statement in sorted(evidence, key=lambda statement: statement.index)
    ]
    return hashlib.sha256(strict_json.canonical(rows)).hexdigest()


def is_plain_path(path: str) -> bool:
    """Whether a path stays inside the bundle on every system."""
    try:
        manifest.encode([FileEntry(path, 0, "")])
    except ValueError:
        return False
    return True


def is_directory(artifact: Artifact) -> bool:
    """Whether the artifact's digest is that of a directory manifest."""
    return artifact.name.startswith(_DIRECTORIES)


def layout(artifacts: Iterable[Artifact], manifests: Mapping[str, list[FileEntry]]) -> dict[str, str]:
    """Path below artifacts/ -> hex SHA-256 of every file. `manifests` by directory digest. Raises InvalidInput."""
    files: dict[str, str] = {}
    for artifact in artifacts:
        if is_directory(artifact):
            if artifact.sha256 not in manifests:
                raise InvalidInput(f"the list of files of {artifact.name} is missing: {manifest_path(artifact.sha256)}")
            found = {f"{artifact.name}/{entry.path}": entry.sha256 for entry in manifests[artifact.sha256]}
        else:
            found = {artifact.name: artifact.sha256}
        for path, sha256 in found.items():
            if files.setdefault(path, sha256) != sha256:
                raise InvalidInput(f"two artifacts claim the path {path}")
    try:
        manifest.encode(FileEntry(path, 0, sha256) for path, sha256 in files.items())
    except ValueError as error:
        raise InvalidInput(f"the artifacts cannot be laid out as files: {error}") from None
    return files


def seal_payload(manifest_bytes: bytes, certificate: str, origin: str, size: int) -> bytes:
    """What the certification actor signs over the whole bundle: an in-toto statement about manifest.json."""
    return strict_json.canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": MANIFEST, "digest": {"sha256": hashlib.sha256(manifest_bytes).hexdigest()}}],
            "predicateType": SEAL_TYPE,
            "predicate": {"certificate": certificate, "checkpoint": {"origin": origin, "size": size}},
        }
    )
