"""The vocabulary of the system: every kind of event, who may write it, and what it says about artifacts.

A kind either *introduces* its subjects (from here on the log vouches for those bytes) or *speaks of*
subjects that an earlier event introduced. The `data` of a kind is the message of the same name in
protos/modelledger/ledger/v1/events.proto, in proto3 JSON. A kind is a name on the wire and on disk, never a
Python path.
"""

from __future__ import annotations

from dataclasses import dataclass

PREDICATE_PREFIX = "https://modelledger.dev/events/"

# Roles an actor can be enrolled with. One service, one role; the ledger process also hosts the registry and
# the certification actor, so that their commands are told apart in the log.
LEDGER, REGISTRY, CERTIFICATION = "ledger", "registry", "certification"
TRAINER, QUANTIZER, INFERENCE = "trainer", "quantizer", "inference"
ROLES = (LEDGER, REGISTRY, CERTIFICATION, TRAINER, QUANTIZER, INFERENCE)


@dataclass(frozen=True)
class Kind:
    """One kind of event.

    stream:     the stream it stands in, {field} standing for a field of its data; a prefix when it ends in "/"
    roles:      who may write it
    introduces: name prefixes of the subjects it introduces; empty when it speaks of earlier ones
    required:   fields of its data that may not be absent
    revokes:    its subjects may not be used as materials or spoken of from here on
    of_revoked: it may speak of revoked subjects (records of ending or refusing something)
    """

    name: str
    stream: str
    roles: tuple[str, ...]
    introduces: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    revokes: bool = False
    of_revoked: bool = False


_ALL = (
    # The log and its actors.
    Kind("LogCreated", "log", (LEDGER,), ("log/", "actors/"), ("origin", "logVkey", "actorPublicKey")),
    Kind("ActorEnrolled", "actors/{actor}", (LEDGER,), ("actors/",), ("actor", "publicKey", "role")),
    Kind("ActorKeyRotated", "actors/{actor}", (LEDGER,), ("actors/",), ("actor", "publicKey", "possession")),
    Kind("ActorRevoked", "actors/{actor}", (LEDGER,), required=("actor", "reason"), revokes=True),
    # What goes in.
    Kind("BaseModelRegistered", "base-models/{key}", (TRAINER,), ("base-models/",), ("key", "architecture", "size")),
    Kind("BaseModelWithdrawn", "base-models/{key}", (TRAINER, REGISTRY), required=("key", "reason"), revokes=True),
    Kind("DatasetRegistered", "datasets/{org}/{name}", (TRAINER,), ("datasets/",), ("org", "name", "examples", "band")),
    # Training.
    Kind(
        "TrainingRequested",
        "training-runs/{run}",
        (TRAINER,),
        ("requests/",),
        ("run", "org", "model", "bases", "dataset"),
    ),
    Kind("TrainingStarted", "training-runs/{run}", (TRAINER,), required=("run", "worker", "attempt")),
    Kind("EpochCompleted", "training-runs/{run}", (TRAINER,), required=("run", "base", "epoch", "epochs")),
    Kind(
        "TrainingCompleted",
        "training-runs/{run}",
        (TRAINER,),
        ("adapters/",),
        ("run", "trained", "datasetSha256"),
    ),
    Kind("TrainingFailed", "training-runs/{run}", (TRAINER,), required=("run", "reason"), of_revoked=True),
    Kind("TrainingCancelled", "training-runs/{run}", (TRAINER,), required=("run",), of_revoked=True),
    # Versions.
    Kind("VersionCreated", "models/{org}/{model}", (TRAINER,), required=("org", "model", "major", "run", "adapters")),
    Kind("VersionActivated", "models/{org}/{model}", (REGISTRY,), required=("org", "model", "version", "reason")),
    Kind(
        "VersionRevoked",
        "models/{org}/{model}",
        (REGISTRY,),
        required=("org", "model", "version", "reason"),
        revokes=True,
    ),
    # Quantising.
    Kind(
        "QuantizationRequested",
        "quantizations/{quantization}",
        (QUANTIZER,),
        ("requests/",),
        ("quantization", "org", "model", "base", "types"),
    ),
    Kind(
        "QuantizationStarted",
        "quantizations/{quantization}",
        (QUANTIZER,),
        required=("quantization", "worker", "attempt"),
    ),
    Kind(
        "QuantizationCompleted",
        "quantizations/{quantization}",
        (QUANTIZER,),
        ("gguf/", "modelfiles/", "licences/"),
        ("quantization", "org", "model", "base", "files"),
    ),
    Kind(
        "QuantizationFailed",
        "quantizations/{quantization}",
        (QUANTIZER,),
        required=("quantization", "reason"),
        of_revoked=True,
    ),
    Kind("EvaluationCompleted", "models/", (TRAINER, QUANTIZER), required=("target", "metrics")),
    # Serving.
    Kind("DeploymentChanged", "deployments/{name}", (INFERENCE,), ("deployments/",), ("name",)),
    Kind("ModelLoaded", "deployments/{name}", (INFERENCE,), required=("name", "vouchedBy")),
    Kind("ModelUnloaded", "deployments/{name}", (INFERENCE,), required=("name", "reason"), of_revoked=True),
    Kind(
        "UsageRecorded",
        "deployments/{name}",
        (INFERENCE,),
        required=("name", "answers", "receiptsRoot"),
        of_revoked=True,
    ),
    Kind("AccessDenied", "deployments/", ROLES, required=("method", "resource", "caller"), of_revoked=True),
    # Trust.
    Kind(
        "ApprovalGiven", "models/{org}/{model}", (REGISTRY,), required=("org", "model", "version", "purpose", "caller")
    ),
    Kind(
        "CertificateIssued",
        "certificates/{certificate}",
        (CERTIFICATION,),
        required=("certificate", "org", "model", "version", "policy", "evidence"),
    ),
    Kind(
        "CertificateRevoked",
        "certificates/{certificate}",
        (CERTIFICATION,),
        required=("certificate", "reason"),
        of_revoked=True,
    ),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
