"""Makes a certificate's bundle out of the log, on demand. Nothing of it is stored.

For one checkpoint the files are the same each time, except the two that an ECDSA key signs anew: model.sig and
bundle.dsse.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ledger import bundle, evidence, manifest, model_signature
from ledger import envelope as dsse
from ledger.actor_keys import ActorKeys
from ledger.bundle import Statement
from ledger.bundle_documents import documents
from ledger.cosigned import PlainCheckpoints, Published
from ledger.envelope import Signer
from ledger.kit.artifacts import ArtifactStore
from ledger.manifest import FileEntry
from ledger.merkle import inclusion_proof
from ledger.proof_file import encode_proof, parse_proof
from ledger.provenance import Provenance, trace
from ledger.store import Store


@dataclass(frozen=True)
class BundleFile:
    """One file: its bytes, or for an artifact the verified blob that holds them."""

    path: str
    content: bytes | Path
    size: int
    sha256: str


def write(
    store: Store,
    artifacts: ArtifactStore,
    signer: Signer,
    certificate: Statement,
    *,
    include_artifacts: bool,
    checkpoint: Published | None = None,
) -> list[BundleFile]:
    """The bundle's files, the signature over them last, against the newest checkpoint unless one is given. Raises
    NotFound for artifacts that are not in the store."""
    data = certificate.event.data
    checkpoint = checkpoint or PlainCheckpoints(store).newest()
    basis = [evidence.statement_of(row) for row in store.get_all(map(int, data["evidence"]))]
    provenance = trace(basis, data["org"], data["model"], data["version"])
    statements = _needed(store, checkpoint.size, certificate, basis)
    tiles = store.tiles()
    proofs = {
        s.index: encode_proof(s.index, inclusion_proof(tiles, s.index, checkpoint.size), checkpoint.note)
        for s in statements
    }
    # The certificate's own key, which may have been rotated since.
    actors = ActorKeys(store).known
    keys = {signature.keyid: actors.get(signature.keyid) for signature in _signatures(certificate)}
    issuer = next(key for key in keys.values() if key is not None and key.actor == certificate.event.actor)

    files = {bundle.statement_path(s.index, s.event.kind): s.entry for s in statements}
    files |= {bundle.proof_path(s.index, s.event.kind): proofs[s.index] for s in statements}
    files |= documents(provenance, certificate, parse_proof(proofs[certificate.index]), issuer.public_key)
    manifests = _manifests(artifacts, provenance)
    files |= {bundle.manifest_path(sha256): data for sha256, data in manifests.items()}
    layout = bundle.layout(provenance.artifacts, {sha: manifest.decode(data) for sha, data in manifests.items()})
    files[bundle.KEY] = model_signature.public_key_pem(signer.public_key_der)
    model = f"{provenance.org}/{provenance.model}/{provenance.version}"
    files[bundle.MODEL_SIGNATURE] = model_signature.sign(model, layout.items(), signer)
    files[bundle.README] = _readme(provenance, certificate, store)

    found = [_small(path, content) for path, content in sorted(files.items())]
    if include_artifacts:
        for path, sha256 in sorted(layout.items()):
            blob = artifacts.get(sha256)
            found.append(BundleFile(f"{bundle.ARTIFACTS}{path}", blob, blob.stat().st_size, sha256))
    listing = manifest.encode(FileEntry(file.path, file.size, file.sha256) for file in found)
    payload = bundle.seal_payload(listing, data["certificate"], store.signer.name, checkpoint.size)
    return [*found, _small(bundle.MANIFEST, listing), _small(bundle.SEAL, dsse.sign(payload, [signer]))]


def _needed(store: Store, size: int, certificate: Statement, basis: Sequence[Statement]) -> list[Statement]:
    """The certificate, its evidence, what revoked any of it, and the key events it takes to trust them all."""
    own = [
        evidence.statement_of(row)
        for row in store.select(stream=certificate.event.stream, stop=size, limit=evidence.PAGE)
    ]
    revoked = evidence.revoking(store, basis, size)
    statements = evidence.closure(store, [*basis, *own, *revoked], size)
    keys = evidence.key_history(store, statements, certificate.event.actor, size)
    everything = {statement.index: statement for statement in (*statements, *keys)}
    return [everything[index] for index in sorted(everything)]


def _signatures(statement: Statement) -> Sequence[dsse.Signature]:
    return dsse.parse(statement.entry).signatures


def _manifests(artifacts: ArtifactStore, provenance: Provenance) -> dict[str, bytes]:
    """Lists of files by directory digest: of every adapter, and of the bases whose list is stored."""
    wanted = {a.sha256 for a in provenance.artifacts if bundle.is_directory(a)}
    wanted |= {base.artifact.sha256 for base in provenance.bases if base.artifact.sha256 in artifacts}
    return {sha256: artifacts.read_bytes(sha256) for sha256 in sorted(wanted)}


def _small(path: str, content: bytes) -> BundleFile:
    return BundleFile(path, content, len(content), hashlib.sha256(content).hexdigest())


def _readme(provenance: Provenance, certificate: Statement, store: Store) -> bytes:
    data = certificate.event.data
    quantizations = "\n".join(f"- {s.event.stream}" for s in provenance.quantizations)
    bases = "\n".join(f"- {base.key}, sha256 {base.artifact.sha256}" for base in provenance.bases)
    return f"""# Certificate {data["certificate"]}

Version {provenance.version} of {provenance.org}/{provenance.model}, {data["dna"]}.
Issued {certificate.event.time} under the policy "{data["policy"]}", asked for by {data["caller"]["id"]}.

Trained by run {provenance.run} on the bases

{bases}

with the data {provenance.dataset_artifact.name}, sha256 {provenance.dataset_artifact.sha256}. Quantised by

{quantizations or "- nobody"}

## Verify it

Verification needs the key of the log, from a source you trust. This bundle was made by a log that says of itself:

    {store.signer.vkey()}

    modelledger verify BUNDLE --trust KEY                      this bundle
    modelledger verify BUNDLE --trust KEY --artifact PATH      also your copy of a dataset, adapter or GGUF file

No network and no ledger is needed. With the artifacts at hand, other people's tools verify them as well:

    model_signing verify key artifacts --signature model.sig --public_key certification_key.pem
""".encode()
