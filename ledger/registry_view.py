"""The registry as a fold: an event in, documents of the view changed. Nothing here is a source of truth.

    base/{key}                                        the newest registration of a base model
    dataset/{org}/{index}                             a registration of a dataset
    dataset-newest/{org}/{name}                       which one is the newest under a name
    model/{org}/{model}                               active activation, latest version, stream version
    version/{org}/{model}/{major}.{minor}             a version
    activation/{org}/{model}/{index}                  one activation
    run/{run}                                         a training run's request and result
    file/{org}/{model}/{version}/{index}.{n}          a GGUF file; of a base: file/base/{key}/-/...
    certificate/{id}, certificate-of/{org}/{model}/{version}/{index}
    stream-of/{org}/{model}/{stream}                  streams that tell of a model besides its own
    node/{sha256}                                     an artifact: who introduced it, is it revoked or tainted
    parents/{subject}/{material}, children/{material}/{subject}

Numbers in keys are zero-padded, so that byte order is number order.

The log's rules decide what may be recorded; the fold takes whatever they accepted. Where a record contradicts an
earlier one (a version number given twice, a GGUF not made from the version it claims), the earlier one
counts, and nothing is served on the word of the later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ledger import schema, strict_json
from ledger.errors import Damaged
from ledger.events import KINDS
from ledger.resource_names import BASE_ORG, Number
from ledger.statement import Artifact, Event
from ledger.view_store import MAX_SCAN, ViewRows

REGISTRY_VIEW = "registry"
NO_VERSION = "-"

Document = dict[str, Any]


def fold_registry(event: Event, index: int, rows: ViewRows) -> None:
    """Take in the event at `index`."""
    _fold_lineage(event, index, rows)
    if event.kind in _HANDLERS:
        stream, handler = _HANDLERS[event.kind]
        record = schema.from_data(event.kind, event.data)
        # What an event says about a stream it does not stand in was not checked against that stream's version.
        if event.stream == stream.format(r=record):
            handler(event, record, index, rows)
    if event.stream.startswith("models/"):
        key = f"model/{event.stream.removeprefix('models/')}"
        if model := load(rows, key):
            save(rows, key, model | {"streamVersion": event.version})


def keys_read(event: Event) -> Iterator[str]:
    """The rows that folding an event reads first, for a batch to read them at once."""
    for artifact in (*event.subjects, *event.materials):
        yield f"node/{artifact.sha256}"
    collection, _, rest = event.stream.partition("/")
    if collection == "models":
        yield f"model/{rest}"
    elif collection == "datasets":
        yield f"dataset-newest/{rest}"
    elif collection == "training-runs":
        yield f"run/{rest}"


# Reading and writing documents


def load(rows: ViewRows, key: str) -> Document | None:
    document = rows.get(key)
    return None if document is None else strict_json.loads(document)


def save(rows: ViewRows, key: str, document: Document) -> None:
    rows.put(key, strict_json.document(document))


def everything(rows: ViewRows, prefix: str) -> Iterator[tuple[str, bytes]]:
    """All rows under a prefix, in order."""
    after = ""
    while True:
        batch = rows.scan(prefix, after=after)
        yield from batch
        if len(batch) < MAX_SCAN:
            return
        after = batch[-1][0]


def stored(rows: ViewRows, key: str) -> Document:
    """A document that is there because an earlier one names it."""
    found = load(rows, key)
    if found is None:
        raise Damaged(f"the registry view has no row {key!r}; rebuild the view")
    return found


def node(rows: ViewRows, sha256: str) -> Document:
    """The lineage node of an artifact that the log's rules vouch for."""
    return stored(rows, f"node/{sha256}")


def is_revoked(document: Document) -> bool:
    """Of a node: it was revoked, or something it is made from was."""
    return "revoked" in document or "tainted" in document


def version_key(org: str, model: str, number: tuple[int, int]) -> str:
    return f"version/{org}/{model}/{number[0]:010}.{number[1]:010}"


def by_index(prefix: str, index: int) -> str:
    return f"{prefix}/{index:016}"


# Lineage


def _fold_lineage(event: Event, index: int, rows: ViewRows) -> None:
    kind = KINDS[event.kind]
    if kind.introduces:
        for subject in event.subjects:
            if rows.get(f"node/{subject.sha256}") is None:
                about = {"name": subject.name, "kind": event.kind, "index": index}
                save(rows, f"node/{subject.sha256}", about | {"time": event.time, "actor": event.actor})
            for material in made_from(subject, event.materials):
                _add_edge(rows, material.sha256, subject.sha256, index)
    if kind.revokes:
        for subject in event.subjects:
            save(rows, f"node/{subject.sha256}", node(rows, subject.sha256) | {"revoked": index})
            _taint_children(rows, subject.sha256, subject.sha256)


def made_from(subject: Artifact, materials: Iterable[Artifact]) -> Iterator[Artifact]:
    """The materials that went into one subject: an adapter is not made from the other bases of its run."""
    base = _base_of(subject)
    for material in materials:
        if material.sha256 != subject.sha256 and (not base or _base_of(material) in ("", base)):
            yield material


def _base_of(artifact: Artifact) -> str:
    """The base model's key in the name of a base model or of an adapter; "" for anything else."""
    collection, _, rest = artifact.name.partition("/")
    return rest.rpartition("/")[2] if collection in ("base-models", "adapters") else ""


def _add_edge(rows: ViewRows, material: str, subject: str, index: int) -> None:
    if rows.get(f"parents/{subject}/{material}") is not None:
        return
    save(rows, f"parents/{subject}/{material}", {"index": index})
    save(rows, f"children/{material}/{subject}", {"index": index})
    origin = node(rows, material)
    if is_revoked(origin):
        _taint(rows, subject, origin.get("tainted", material))


def _taint(rows: ViewRows, sha256: str, source: str) -> None:
    document = node(rows, sha256)
    if not is_revoked(document):
        save(rows, f"node/{sha256}", document | {"tainted": source})
        _taint_children(rows, sha256, source)


def _taint_children(rows: ViewRows, start: str, source: str) -> None:
    """Mark everything made from `start`. A loop, for chains may be longer than Python's stack."""
    waiting = [start]
    while waiting:
        for key, _ in everything(rows, f"children/{waiting.pop()}/"):
            child = key.rpartition("/")[2]
            document = node(rows, child)
            if not is_revoked(document):
                save(rows, f"node/{child}", document | {"tainted": source})
                waiting.append(child)


# Documents, kind by kind


def _base_registered(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    for subject in event.subjects:
        if subject.name == event.stream:
            about = {"record": event.data, "sha256": subject.sha256, "index": index}
            save(rows, f"base/{record.key}", about)


def _dataset_registered(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    newest = f"dataset-newest/{record.org}/{record.name}"
    if earlier := load(rows, newest):
        key = by_index(f"dataset/{record.org}", earlier["index"])
        save(rows, key, stored(rows, key) | {"superseded": index})
    for subject in event.subjects:
        if subject.name == event.stream:
            about = {"record": event.data, "sha256": subject.sha256, "index": index}
            save(rows, by_index(f"dataset/{record.org}", index), about)
            save(rows, newest, {"index": index})


def _training_requested(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    key = f"run/{record.run}"
    run = load(rows, key) or {}
    if "request" not in run:
        save(rows, key, run | {"request": event.data, "requestIndex": index})
    save(rows, f"stream-of/{record.org}/{record.model}/{event.stream}", {})


def _training_completed(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    key = f"run/{record.run}"
    run = load(rows, key) or {}
    if "training" not in run:
        save(rows, key, run | {"training": event.data, "trainingIndex": index})


def _version_created(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    number = Number(record.major, record.minor)
    key = version_key(record.org, record.model, number)
    if min(number) < 0 or rows.get(key) is not None:
        return
    adapters = [[subject.name, subject.sha256] for subject in event.subjects]
    save(rows, key, {"record": event.data, "index": index, "time": event.time, "adapters": adapters})
    model_key = f"model/{record.org}/{record.model}"
    model = load(rows, model_key) or {"latest": [0, 0], "versions": 0}
    latest = max(model["latest"], list(number))
    save(rows, model_key, model | {"latest": latest, "versions": model["versions"] + 1})
    save(rows, f"stream-of/{record.org}/{record.model}/training-runs/{record.run}", {})


def _version_activated(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    model_key = f"model/{record.org}/{record.model}"
    model = load(rows, model_key)
    if model is None or find_version(rows, record.org, record.model, record.version) is None:
        return
    prefix = f"activation/{record.org}/{record.model}"
    # `before` is where a rollback leads: the activation this one replaced. A rollback takes over the `before`
    # of the activation it returns to, so that a second rollback leads further back, not forward again.
    before = model.get("active")
    if record.rollback:
        while before is not None:
            earlier = stored(rows, by_index(prefix, before))
            before = earlier.get("before")
            if earlier["version"] == record.version:
                break
    about = {"record": event.data, "index": index, "time": event.time, "version": record.version}
    save(rows, by_index(prefix, index), about | ({} if before is None else {"before": before}))
    save(rows, model_key, model | {"active": index, "activeVersion": record.version})


def find_version(rows: ViewRows, org: str, model: str, text: str) -> Document | None:
    """The document of the version that is written `text`, for example "v1.10"."""
    major, _, minor = text.removeprefix("v").partition(".")
    if not (major.isdecimal() and minor.isdecimal() and max(len(major), len(minor)) <= 10):
        return None
    number = Number(int(major), int(minor))
    return load(rows, version_key(org, model, number)) if str(number) == text else None


def _quantization_requested(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    save(rows, f"stream-of/{record.org}/{record.model}/{event.stream}", {})


def _quantization_completed(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    save(rows, f"stream-of/{record.org}/{record.model}/{event.stream}", {})
    bases = [m.sha256 for m in event.materials if m.name == f"base-models/{record.base}"]
    if len(bases) != 1 or not _made_from_version(event, record, bases[0], rows):
        return
    prefix = f"file/{record.org}/{record.model}/{record.version or NO_VERSION}/{index:016}"
    for position, file in enumerate(record.files):
        about = {"file": schema.to_data(file), "base": record.base, "baseSha256": bases[0], "index": index}
        save(rows, f"{prefix}.{position:04}", about | {"version": record.version})


def _made_from_version(event: Event, record: Any, base_sha256: str, rows: ViewRows) -> bool:
    """Whether the materials are what the version that the record claims consists of over this base."""
    adapters = [m.sha256 for m in event.materials if m.name.startswith("adapters/")]
    if not record.version:
        return bool(record.org == BASE_ORG and record.model == record.base and not adapters)
    version = find_version(rows, record.org, record.model, record.version)
    if version is None:
        return False
    for adapter in schema.from_data("VersionCreated", version["record"]).adapters:  # type: ignore[attr-defined]
        if adapter.base == record.base and adapter.base_sha256 == base_sha256:
            return {artifact.sha256 for artifact in adapter.chain} == set(adapters)
    return False


def _certificate_issued(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    key = f"certificate/{record.certificate}"
    if rows.get(key) is None:
        save(rows, key, {"index": index})
        of = f"certificate-of/{record.org}/{record.model}/{record.version}"
        save(rows, by_index(of, index), {"certificate": record.certificate})
        save(rows, f"stream-of/{record.org}/{record.model}/{event.stream}", {})


def _certificate_revoked(event: Event, record: Any, index: int, rows: ViewRows) -> None:
    key = f"certificate/{record.certificate}"
    if certificate := load(rows, key):
        save(rows, key, certificate | {"revoked": index})


_HANDLERS: dict[str, tuple[str, Callable[[Event, Any, int, ViewRows], None]]] = {
    "BaseModelRegistered": ("base-models/{r.key}", _base_registered),
    "DatasetRegistered": ("datasets/{r.org}/{r.name}", _dataset_registered),
    "TrainingRequested": ("training-runs/{r.run}", _training_requested),
    "TrainingCompleted": ("training-runs/{r.run}", _training_completed),
    "VersionCreated": ("models/{r.org}/{r.model}", _version_created),
    "VersionActivated": ("models/{r.org}/{r.model}", _version_activated),
    "QuantizationRequested": ("quantizations/{r.quantization}", _quantization_requested),
    "QuantizationCompleted": ("quantizations/{r.quantization}", _quantization_completed),
    "CertificateIssued": ("certificates/{r.certificate}", _certificate_issued),
    "CertificateRevoked": ("certificates/{r.certificate}", _certificate_revoked),
}
