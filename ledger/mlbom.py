"""The machine-learning bill of materials of a version: CycloneDX 1.7 with a model card. Pure.

https://cyclonedx.org/docs/1.7/json/  The digest of a directory is the SHA-256 of its manifest (ledger/manifest.py),
which a property of the component says.
"""

from __future__ import annotations

from typing import Any

from ledger import bundle
from ledger.bundle import Statement
from ledger.provenance import Base, Provenance
from ledger.statement import Artifact


def bill_of_materials(provenance: Provenance, certificate: Statement) -> dict[str, Any]:
    """The document as JSON values."""
    files = [a for a in provenance.artifacts if a.name.startswith("gguf/")]
    adapters = [a for a in provenance.artifacts if a.name.startswith("adapters/")]
    bases = [base.artifact for base in provenance.bases]
    inputs = sorted({*(a.name for a in bases), provenance.dataset_artifact.name})
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{certificate.event.id}",
        "version": 1,
        "metadata": {
            "timestamp": certificate.event.time,
            "tools": {"components": [{"type": "application", "name": "modelledger"}]},
            "component": _model(provenance, certificate),
        },
        "components": [
            *(_base(base) for base in provenance.bases),
            _dataset(provenance),
            *(_component("machine-learning-model", adapter) for adapter in adapters),
            *(_component("file", file) for file in files),
        ],
        "dependencies": [
            {"ref": _model_ref(provenance), "dependsOn": sorted({a.name for a in adapters} | set(inputs))},
            *({"ref": adapter.name, "dependsOn": inputs} for adapter in adapters),
            *({"ref": file.name, "dependsOn": sorted({a.name for a in adapters})} for file in files),
        ],
        "formulation": [{"workflows": [_workflow(s) for s in (provenance.completed, *provenance.quantizations)]}],
    }


def _model_ref(provenance: Provenance) -> str:
    return f"models/{provenance.org}/{provenance.model}/{provenance.version}"


def _model(provenance: Provenance, certificate: Statement) -> dict[str, Any]:
    card: dict[str, Any] = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-generation",
            "modelArchitecture": ", ".join(
                sorted({base.registered.event.data["architecture"] for base in provenance.bases})
            ),
            "datasets": [{"ref": provenance.dataset_artifact.name}],
        }
    }
    metrics = [
        {"type": name, "value": str(base.trained[field]), "slice": base.key}
        for base in provenance.bases
        for name, field in (("validation loss", "validationLoss"), ("training loss", "trainLoss"))
        if field in base.trained
    ]
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return {
        "type": "machine-learning-model",
        "bom-ref": _model_ref(provenance),
        "group": provenance.org,
        "name": provenance.model,
        "version": provenance.version,
        "modelCard": card,
        "properties": [
            {"name": "modelledger:certificate", "value": certificate.event.data["certificate"]},
            {"name": "modelledger:dna", "value": certificate.event.data["dna"]},
            {"name": "modelledger:run", "value": provenance.run},
        ],
    }


def _base(base: Base) -> dict[str, Any]:
    data = base.registered.event.data
    component = _component("machine-learning-model", base.artifact)
    component["modelCard"] = {"modelParameters": {"modelArchitecture": data["architecture"]}}
    if data.get("licence"):
        component["licenses"] = [{"license": {"name": data["licence"]}}]
    return component


def _dataset(provenance: Provenance) -> dict[str, Any]:
    component = _component("data", provenance.dataset_artifact)
    component["data"] = [{"type": "dataset", "name": provenance.dataset_artifact.name}]
    return component


def _component(kind: str, artifact: Artifact) -> dict[str, Any]:
    what = "directory manifest" if bundle.is_directory(artifact) else "file"
    return {
        "type": kind,
        "bom-ref": artifact.name,
        "name": artifact.name,
        "hashes": [{"alg": "SHA-256", "content": artifact.sha256}],
        "properties": [{"name": "modelledger:digest-of", "value": what}],
    }


def _workflow(statement: Statement) -> dict[str, Any]:
    """A step that made something: what went in, what came out."""
    event = statement.event
    return {
        "bom-ref": f"events/{statement.index}",
        "uid": event.id,
        "name": event.stream,
        "taskTypes": ["build"],
        "inputs": [{"resource": {"ref": name}} for name in sorted({a.name for a in event.materials})],
        "outputs": [
            {"type": "artifact", "resource": {"ref": name}} for name in sorted({a.name for a in event.subjects})
        ],
        "timeEnd": event.time,
    }
