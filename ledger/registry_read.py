"""Answers from the registry view: its documents as messages of registry.proto. Every function reads one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from modelledger.ledger.v1 import registry_pb2

from ledger import strict_json
from ledger.errors import NotFound, Refused
from ledger.registry_view import (
    NO_VERSION,
    Document,
    by_index,
    everything,
    is_revoked,
    load,
    node,
    stored,
    version_key,
)
from ledger.resource_names import BASE_ORG, ModelName, Number, parse_number
from ledger.schema import from_data
from ledger.statement import Artifact
from ledger.view_store import ViewRows

ALIASES = ("active", "latest")
MAX_LINEAGE_NODES, MAX_LINEAGE_EDGES = 1_000, 10_000


# One document -> one message


def base_model(rows: ViewRows, document: bytes) -> registry_pb2.BaseModel:
    base = strict_json.loads(document)
    record: Any = from_data("BaseModelRegistered", base["record"])
    return registry_pb2.BaseModel(
        name=f"base-models/{record.key}",
        record=record,
        sha256=base["sha256"],
        event_index=base["index"],
        withdrawn=is_revoked(node(rows, base["sha256"])),
    )


def dataset(document: bytes) -> registry_pb2.Dataset | None:
    """The dataset; None for a registration that a later one of the same name replaced."""
    found = strict_json.loads(document)
    if "superseded" in found:
        return None
    record: Any = from_data("DatasetRegistered", found["record"])
    return registry_pb2.Dataset(
        name=f"orgs/{record.org}/datasets/{record.name}",
        record=record,
        sha256=found["sha256"],
        event_index=found["index"],
    )


def model_row(key: str, document: bytes) -> registry_pb2.Model:
    return model(ModelName(*key.split("/")[1:]), strict_json.loads(document))


def model(name: ModelName, document: Document) -> registry_pb2.Model:
    return registry_pb2.Model(
        name=name.resource,
        active_version=document.get("activeVersion", ""),
        latest_version=str(Number(*document["latest"])),
        versions=document["versions"],
    )


def activation(found: Document) -> registry_pb2.Activation:
    record: Any = from_data("VersionActivated", found["record"])
    return registry_pb2.Activation(record=record, time=found["time"], event_index=found["index"])


def servable(rows: ViewRows, document: bytes) -> registry_pb2.ServableFile:
    found = strict_json.loads(document)
    file: Any = from_data("QuantizationCompleted", {"files": [found["file"]]})
    file = file.files[0]
    return registry_pb2.ServableFile(
        file=file,
        base_sha256=found["baseSha256"],
        base=found["base"],
        event_index=found["index"],
        revoked=is_revoked(node(rows, file.file.sha256)),
        version=found["version"],
    )


def version(rows: ViewRows, name: ModelName, found: Document) -> registry_pb2.Version:
    """A version with its files, its training and its certificates."""
    record: Any = from_data("VersionCreated", found["record"])
    number = Number(record.major, record.minor)
    run = load(rows, f"run/{record.run}") or {}
    revoked = revocation(rows, found) is not None
    message = registry_pb2.Version(
        name=f"{name.resource}/versions/{number}",
        version=str(number),
        record=record,
        event_index=found["index"],
        create_time=found["time"],
        active=model_document(rows, name).get("activeVersion") == str(number),
        revoked=revoked,
        files=files(rows, name, str(number)),
        certificates=[] if revoked else _certificates(rows, name, str(number)),
    )
    if "training" in run:
        training: Any = from_data("TrainingCompleted", run["training"])
        message.training.CopyFrom(training)
        message.training_index = run["trainingIndex"]
    if "request" in run:
        request: Any = from_data("TrainingRequested", run["request"])
        message.request.CopyFrom(request)
    return message


# Finding


def model_document(rows: ViewRows, name: ModelName) -> Document:
    found = load(rows, f"model/{name}")
    if found is None:
        raise NotFound(f"there is no model {name}; `modelledger train` makes its first version")
    return found


def version_document(rows: ViewRows, name: ModelName, number: Number) -> Document:
    found = load(rows, version_key(*name, number))
    if found is None:
        latest = Number(*model_document(rows, name)["latest"])
        raise NotFound(f"there is no version {number} of {name}; the latest is {latest}")
    return found


def version_of(rows: ViewRows, name: ModelName, number: Number) -> registry_pb2.Version:
    return version(rows, name, version_document(rows, name, number))


def resolve(rows: ViewRows, name: ModelName, text: str) -> Number:
    """The number that "active", "latest" or a number stands for."""
    if text not in ALIASES:
        return parse_number(text, "name")
    found = model_document(rows, name)
    if text == "latest":
        return Number(*found["latest"])
    if "activeVersion" not in found:
        raise NotFound(f"no version of {name} is active; run: modelledger versions set-active {name} VERSION")
    return parse_number(found["activeVersion"], "activeVersion")


def files(rows: ViewRows, name: ModelName, version: str) -> list[registry_pb2.ServableFile]:
    """The GGUF files of a version (of a base model: of no version), newest first."""
    found = everything(rows, f"file/{name}/{version or NO_VERSION}/")
    return [servable(rows, document) for _, document in found][::-1]


def revocation(rows: ViewRows, version: Document) -> str | None:
    """Why a version may not be used: it, or something it is made from, was revoked."""
    record: Any = from_data("VersionCreated", version["record"])
    for adapter in record.adapters:
        for sha256 in (*(artifact.sha256 for artifact in adapter.chain), adapter.base_sha256):
            if why := _why_revoked(rows, sha256):
                return why
    return None


def _why_revoked(rows: ViewRows, sha256: str) -> str | None:
    found = node(rows, sha256)
    if "revoked" in found:
        return f"{found['name']} was revoked at index {found['revoked']}"
    if "tainted" in found:
        source = node(rows, found["tainted"])
        return f"{found['name']} is made from {source['name']}, which was revoked at index {source['revoked']}"
    return None


def new_adapters(version: Document) -> list[Artifact]:
    """The adapters a version introduced; what events about the version speak of."""
    return [Artifact(name, sha256) for name, sha256 in version["adapters"]]


def not_revoked(rows: ViewRows, artifacts: Iterable[Artifact]) -> list[Artifact]:
    """Those that were not revoked themselves."""
    return [artifact for artifact in artifacts if "revoked" not in node(rows, artifact.sha256)]


def _certificates(rows: ViewRows, name: ModelName, version: str) -> list[str]:
    """Resource names of the certificates of a version that hold."""
    issued = [strict_json.loads(d)["certificate"] for _, d in everything(rows, f"certificate-of/{name}/{version}/")]
    return [f"certificates/{c}" for c in issued if "revoked" not in stored(rows, f"certificate/{c}")]


# Activations


def activation_at(rows: ViewRows, name: ModelName, index: int) -> Document:
    return stored(rows, by_index(f"activation/{name}", index))


def rollback_target(rows: ViewRows, name: ModelName) -> Document:
    """The version that was active before the present one and is not revoked. Raises Refused for none."""
    found = model_document(rows, name)
    if "active" not in found:
        raise Refused(f"no version of {name} is active, so there is none to roll back from")
    passed = []
    before = activation_at(rows, name, found["active"]).get("before")
    while before is not None:
        earlier = activation_at(rows, name, before)
        if earlier["version"] != found["activeVersion"]:
            target = version_document(rows, name, parse_number(earlier["version"], "version"))
            why = revocation(rows, target)
            if why is None:
                return target
            passed.append(f"{earlier['version']} cannot be used: {why}")
        before = earlier.get("before")
    reason = "; ".join(passed) or f"no other version was active before {found['activeVersion']}"
    raise Refused(f"{name} cannot be rolled back: {reason}")


def in_force(rows: ViewRows, name: ModelName, at: int, instant: Callable[[str], int]) -> list[registry_pb2.Activation]:
    """The activation in force at a time (`at`, and what `instant` makes of a text), or none."""
    newest: registry_pb2.Activation | None = None
    for _, document in everything(rows, f"activation/{name}/"):
        found = activation(strict_json.loads(document))
        if instant(found.time) <= at:
            newest = found
    return [newest] if newest is not None else []


# Serving


def list_servable(rows: ViewRows, name: ModelName) -> registry_pb2.ListServableResponse:
    """What may be served under a name; when nothing, why."""
    version = ""
    if name.org == BASE_ORG:
        missing = _base_missing(rows, name.model)
    else:
        found = load(rows, f"model/{name}") or {}
        version = found.get("activeVersion", "")
        missing = _active_missing(rows, name, found)
    if missing:
        return registry_pb2.ListServableResponse(reason=missing)
    every = files(rows, name, version)
    usable = [file for file in every if not file.revoked]
    if usable:
        return registry_pb2.ListServableResponse(files=usable)
    what = f"version {version} is active but" if version else f"base model {name.model}"
    if every:
        return registry_pb2.ListServableResponse(reason=f"{what} all its GGUF files were revoked")
    command = f"modelledger quantize {name} {version}".rstrip()
    return registry_pb2.ListServableResponse(reason=f"{what} has no GGUF yet; run: {command}")


def _base_missing(rows: ViewRows, key: str) -> str:
    found = load(rows, f"base/{key}")
    if found is None:
        return f"there is no base model {key}; run: modelledger base list"
    return _why_revoked(rows, found["sha256"]) or ""


def _active_missing(rows: ViewRows, name: ModelName, found: Document) -> str:
    if not found:
        return f"there is no model {name}; `modelledger train` makes its first version"
    version = found.get("activeVersion", "")
    if not version:
        latest = Number(*found["latest"])
        return f"no version of {name} is active; run: modelledger versions set-active {name} {latest}"
    why = revocation(rows, version_document(rows, name, parse_number(version, "version")))
    return f"version {version} is active but {why}; run: modelledger versions rollback {name}" if why else ""


# Lineage


def lineage(rows: ViewRows, starts: Iterable[str], descendants: bool) -> registry_pb2.GetLineageResponse:
    """What the artifacts `starts` are made from, and on request what was made from them; breadth first.

    Raises NotFound for a digest nobody introduced, Refused when the graph is too big for one answer.
    """
    starts = list(dict.fromkeys(starts))
    for sha256 in starts:
        if load(rows, f"node/{sha256}") is None:
            raise NotFound(f"no event introduced an artifact with sha256 {sha256}")
    edges: dict[tuple[str, str], int] = {}
    order = dict.fromkeys(starts)
    order |= dict.fromkeys(_walk(rows, starts, "parents", edges))
    if descendants:
        order |= dict.fromkeys(_walk(rows, starts, "children", edges))
    answer = registry_pb2.GetLineageResponse()
    for sha256 in order:
        found = node(rows, sha256)
        answer.nodes.add(
            sha256=sha256,
            name=found["name"],
            kind=found["kind"],
            event_index=found["index"],
            time=found["time"],
            actor=found["actor"],
            revoked=is_revoked(found),
        )
    for (material, subject), index in edges.items():
        answer.edges.add(material=material, subject=subject, event_index=index)
    return answer


def _walk(rows: ViewRows, starts: list[str], direction: str, edges: dict[tuple[str, str], int]) -> list[str]:
    """Digests reached from `starts`, nearest first; the edges walked go into `edges`."""
    reached = dict.fromkeys(starts)
    waiting = list(starts)
    for sha256 in waiting:
        for key, document in everything(rows, f"{direction}/{sha256}/"):
            other = key.rpartition("/")[2]
            edge = (other, sha256) if direction == "parents" else (sha256, other)
            edges[edge] = strict_json.loads(document)["index"]
            if other not in reached:
                reached[other] = None
                waiting.append(other)
            if len(reached) > MAX_LINEAGE_NODES or len(edges) > MAX_LINEAGE_EDGES:
                raise Refused(
                    f"the lineage has more than {MAX_LINEAGE_NODES} artifacts or {MAX_LINEAGE_EDGES} edges; "
                    "ask without descendants, or from an artifact that is made from less"
                )
    return waiting
