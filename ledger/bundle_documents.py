"""The four JSON files people know, rendered from statements. Pure: the same statements give the same bytes.

Values are copied from the events; what no event holds is absent. Two are computed: `final_loss` is the bases'
last validation losses weighed by `final_weights`, and `auto_stop_info` names bases that ended before the planned epoch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ledger import bundle, mlbom
from ledger import envelope as dsse
from ledger.bundle import Statement
from ledger.fingerprint import Fingerprint, fingerprint
from ledger.proof_file import LogProof
from ledger.provenance import Provenance
from ledger.strict_text import encode_base64


def dna_of(provenance: Provenance, categories: list[str]) -> Fingerprint:
    """The version's fingerprint; its time is the time at which the version was created."""
    time = provenance.created.event.time
    return fingerprint(provenance.model, provenance.version, provenance.weights, categories, time)


def documents(
    provenance: Provenance, certificate: Statement, proof: LogProof, public_key_der: bytes
) -> dict[str, bytes]:
    """Path -> bytes of every file that follows from the statements. `public_key_der` signed the certificate."""
    values = {
        bundle.dna_path(provenance.model): _dna(provenance, certificate),
        bundle.TRAINING_RESULTS: _training_results(provenance, certificate),
        bundle.LEDGER_PROOF: _ledger_proof(provenance, certificate, proof, public_key_der),
        bundle.LIVE_METRICS: _live_metrics(provenance, certificate),
        bundle.MLBOM: mlbom.bill_of_materials(provenance, certificate),
    }
    return {path: _pretty(value) for path, value in values.items()}


def _dna(provenance: Provenance, certificate: Statement) -> dict[str, Any]:
    data = certificate.event.data
    return {
        "dna": data["dna"],
        "model_name": provenance.model,
        "version": provenance.version,
        "timestamp": provenance.created.event.time,
        "final_weights": provenance.weights,
        "baseModels": provenance.base_keys,
        "categories": data["categories"],
        "immutable_hash": data["immutableHash"],
    }


def _training_results(provenance: Provenance, certificate: Statement) -> dict[str, Any]:
    trained = {base.key: base.trained for base in provenance.bases}
    return _measured(
        {
            "dna": certificate.event.data["dna"],
            "version": provenance.version,
            "baseModels": provenance.base_keys,
            "dataset": provenance.dataset_artifact.name,
            "samples": provenance.dataset.event.data.get("examples"),
            "epochs": max((item.get("epochs", 0) for item in trained.values()), default=0),
            "final_loss": _final_loss(provenance),
            "metrics": {
                key: _measured({"train_loss": item.get("trainLoss"), "validation_loss": item.get("validationLoss")})
                for key, item in trained.items()
            },
            "trained_models": [
                _measured(
                    {
                        "base": base.key,
                        "base_sha256": base.artifact.sha256,
                        "adapter": base.trained.get("adapter", {}).get("name"),
                        "adapter_sha256": base.trained.get("adapter", {}).get("sha256"),
                        "epochs": base.trained.get("epochs"),
                        "train_examples": base.trained.get("trainExamples"),
                        "validation_examples": base.trained.get("validationExamples"),
                        "trainable_parameters": _integer(base.trained.get("trainableParameters")),
                        "seconds": base.trained.get("seconds"),
                    }
                )
                for base in provenance.bases
            ],
            "timestamp": provenance.completed.event.time,
            "duration_seconds": provenance.completed.event.data.get("seconds"),
        }
    )


def _ledger_proof(
    provenance: Provenance, certificate: Statement, proof: LogProof, public_key_der: bytes
) -> dict[str, Any]:
    keyid = dsse.key_id(dsse.load_public_key(public_key_der))
    signature = next(s.sig for s in dsse.parse(certificate.entry).signatures if s.keyid == keyid)
    return {
        "event": certificate.event.kind,
        "model": f"{provenance.org}/{provenance.model}",
        "dna": certificate.event.data["dna"],
        "version": provenance.version,
        "baseModels": provenance.base_keys,
        "dataset_hashes": {provenance.dataset_artifact.name: provenance.dataset_artifact.sha256},
        "final_weights": provenance.weights,
        "immutable_hash": certificate.event.data["immutableHash"],
        "timestamp": certificate.event.time,
        "signer_public_key": encode_base64(public_key_der).decode(),
        "signature": encode_base64(signature).decode(),
        "index": certificate.index,
        "inclusion_proof": [encode_base64(value).decode() for value in proof.hashes],
        "checkpoint": proof.checkpoint.decode(),
    }


def _live_metrics(provenance: Provenance, certificate: Statement) -> dict[str, Any]:
    # By epoch: a run that was resumed may have recorded an epoch twice, and the later record counts.
    epochs: dict[str, dict[int, Mapping[str, Any]]] = {key: {} for key in provenance.base_keys}
    for statement in provenance.epochs:
        data = statement.event.data
        if data["base"] in epochs:
            epochs[data["base"]][data["epoch"]] = data
    last = {base: by_epoch[max(by_epoch)] for base, by_epoch in epochs.items() if by_epoch}
    stopped = {
        base: {"epoch": data["epoch"], "planned": data["epochs"]}
        for base, data in last.items()
        if data["epoch"] < data["epochs"]
    }
    return _measured(
        {
            "dna": certificate.event.data["dna"],
            "version": provenance.version,
            "baseModels": provenance.base_keys,
            "epoch": max((data["epoch"] for data in last.values()), default=None),
            **{name: _series(epochs, field) or None for name, field in _SERIES.items()},
            "weights": provenance.weights,
            "auto_stop_info": stopped or None,
        }
    )


def _series(epochs: Mapping[str, Mapping[int, Mapping[str, Any]]], field: str) -> dict[str, list[Any]]:
    """By base, a measurement of each epoch that has it, in the order of epochs."""
    found = {
        base: [data[field] for _, data in sorted(by_epoch.items()) if field in data]
        for base, by_epoch in epochs.items()
    }
    return {base: values for base, values in found.items() if values}


_SERIES = {"val_losses": "validationLoss", "train_losses": "trainLoss", "learning_rates": "learningRate"}


def _final_loss(provenance: Provenance) -> float | None:
    losses = {base.key: base.trained.get("validationLoss") for base in provenance.bases}
    weights = provenance.weights
    if set(weights) != set(losses):
        return None
    total = 0.0
    for key, loss in losses.items():
        if not isinstance(loss, int | float):  # not measured, or proto3 JSON's text "NaN"
            return None
        total += weights[key] * loss
    return total


def _measured(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what was not measured."""
    return {name: value for name, value in fields.items() if value is not None}


def _integer(text: Any) -> int | None:
    return None if text is None else int(text)  # proto3 JSON writes 64-bit integers as text


def _pretty(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
