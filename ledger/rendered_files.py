"""The files people know, read out of the log for a model or a version: name of the file -> its bytes."""

from __future__ import annotations

from collections.abc import Callable

from modelledger.ledger.v1 import registry_pb2

from ledger import registry_read, render, strict_json
from ledger.errors import Refused
from ledger.model_history import Recorded, history, ingredients
from ledger.registry_view import everything
from ledger.resource_names import ModelName, Number
from ledger.store import Store
from ledger.view_store import ViewRows

MAX_VERSIONS = 1_000

RenderFile = Callable[[Store, ViewRows, ModelName, Number | None], bytes]
"""A model's file when no number is given, else the version's."""


def _model_log(store: Store, rows: ViewRows, name: ModelName, number: Number | None) -> bytes:
    registry_read.model_document(rows, name)
    title = f"{name} {number}" if number else str(name)
    return render.model_log(title, history(store, rows, name, number))


def _model_registry(store: Store, rows: ViewRows, name: ModelName, number: Number | None) -> bytes:
    """Of the whole model, for a version too."""
    document = registry_read.model_document(rows, name)
    if document["versions"] > MAX_VERSIONS:
        raise Refused(f"{name} has more than {MAX_VERSIONS} versions; list them page by page")
    versions = [
        registry_read.version(rows, name, strict_json.loads(d)) for _, d in everything(rows, f"version/{name}/")
    ]
    activations = [registry_read.activation(strict_json.loads(d)) for _, d in everything(rows, f"activation/{name}/")]
    return render.model_registry(registry_read.model(name, document), versions[::-1], activations[::-1])


def _model_info(store: Store, rows: ViewRows, name: ModelName, number: Number | None) -> bytes:
    version, measured = _version(store, rows, name, number)
    return render.model_info(version, ingredients(store, rows, version), measured)


def _readme(store: Store, rows: ViewRows, name: ModelName, number: Number | None) -> bytes:
    version, measured = _version(store, rows, name, number)
    return render.readme(str(name), version, ingredients(store, rows, version), measured)


def _version(
    store: Store, rows: ViewRows, name: ModelName, number: Number | None
) -> tuple[registry_pb2.Version, list[Recorded]]:
    """The version asked for, or the model's active one, or its latest; and its evaluations."""
    if number is None:
        active = "activeVersion" in registry_read.model_document(rows, name)
        number = registry_read.resolve(rows, name, "active" if active else "latest")
    version = registry_read.version_of(rows, name, number)
    about = {a.sha256 for item in version.record.adapters for a in item.chain[-1:]}
    about |= {file.file.file.sha256 for file in version.files}
    measured = [
        item
        for item in history(store, rows, name, number)
        if item.event.kind == "EvaluationCompleted" and any(s.sha256 in about for s in item.event.subjects)
    ]
    return version, measured


FILES: dict[str, RenderFile] = {
    "MODEL_LOG.md": _model_log,
    "model_registry.json": _model_registry,
    "model_info.json": _model_info,
    "README.md": _readme,
}
