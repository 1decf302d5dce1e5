"""Files people know, as bytes: MODEL_LOG.md, model_registry.json, model_info.json, README.md. Pure.

The same events give the same bytes, so a copy that was edited or cut off differs from a fresh rendering.
A value that was not measured is not there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message
from modelledger.ledger.v1 import registry_pb2

from ledger.model_history import Ingredients, Recorded
from ledger.statement import Artifact

Facts = list[tuple[str, str]]


# JSON


def model_registry(
    model: registry_pb2.Model,
    versions: Iterable[registry_pb2.Version],
    activations: Iterable[registry_pb2.Activation],
) -> bytes:
    """model_registry.json: every version, newest first, and who made what active."""
    return _json(
        {
            **plain(model),
            "versions": [plain(version) for version in versions],
            "activations": [plain(activation) for activation in activations],
        }
    )


def model_info(version: registry_pb2.Version, made_of: Ingredients, measured: Sequence[Recorded]) -> bytes:
    """model_info.json: one version, what it was made from, what was measured."""
    info = {
        **plain(version),
        "bases": [{"sha256": sha256, **plain(record)} for sha256, record in made_of.bases],
        "evaluations": [{"event_index": item.index, **plain(item.record)} for item in measured],
    }
    if made_of.dataset:
        info["dataset"] = {"sha256": made_of.dataset[0], **plain(made_of.dataset[1])}
    return _json(info)


def plain(value: Any) -> Any:
    """A message as JSON values: fields that are set, by their proto names; numbers stay numbers."""
    if isinstance(value, Message):
        return {field.name: plain(child) for field, child in value.ListFields()}
    if isinstance(value, Mapping):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no word for a loss that diverged
    return [plain(child) for child in value]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


# MODEL_LOG.md


def model_log(title: str, events: Iterable[Recorded]) -> bytes:
    """MODEL_LOG.md: one entry per event, oldest first, with its place in the log."""
    lines = [f"# Model log: {_text(title)}", "", "Rendered from the transparency log; an edited copy is not it.", ""]
    for item in events:
        event = item.event
        lines += [f"## {event.time} {_title(event.kind)}", ""]
        facts = [("event", f"{item.index}, by {_text(event.actor)}, in {_text(event.stream)}")]
        facts += _FACTS.get(event.kind, lambda record: [])(item.record)
        facts += [("subject", _artifact(a)) for a in event.subjects]
        facts += [("material", _artifact(a)) for a in event.materials]
        lines += [f"- {label}: {value}" for label, value in facts if value] + [""]
    return "\n".join(lines).encode()


def _title(kind: str) -> str:
    """TrainingCompleted -> Training completed."""
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: " " + found[1].lower(), kind)


def _training_requested(record: Any) -> Facts:
    facts = [("bases", _list(record.bases)), ("dataset", _text(record.dataset))]
    facts += [("continues", _text(record.parent_version)), ("asked by", _caller(record))]
    return facts + [("option", f"{_text(name)} = {_text(record.options[name])}") for name in sorted(record.options)]


def _training_completed(record: Any) -> Facts:
    facts: Facts = []
    for trained in record.trained:
        parts = [f"{trained.epochs} epochs", f"{trained.train_examples} examples"]
        parts += [f"{label} {_number(value)}" for label, value in _losses(trained)]
        facts.append(("trained", f"{_text(trained.key)}: {', '.join(parts)}, {_number(trained.seconds)} s"))
    facts += [("failed", f"{_text(failed.key)}: {_text(failed.reason)}") for failed in record.failed]
    return [*facts, ("seconds", _number(record.seconds))]


def _losses(trained: Any) -> list[tuple[str, float]]:
    names = (("training loss", "train_loss"), ("validation loss", "validation_loss"))
    return [(label, getattr(trained, field)) for label, field in names if trained.HasField(field)]


def _training_failed(record: Any) -> Facts:
    failed = [("failed", f"{_text(base.key)}: {_text(base.reason)}") for base in record.failed]
    return [("reason", _text(record.reason)), *failed]


def _version_created(record: Any) -> Facts:
    facts = [("version", f"v{record.major}.{record.minor}"), ("run", _text(record.run))]
    return [*facts, ("continues", _text(record.parent_version))]


def _version_activated(record: Any) -> Facts:
    facts = [("version", _text(record.version)), ("before", _text(record.previous_version))]
    facts += [("rollback", "yes" if record.rollback else "")]
    return [*facts, ("reason", _text(record.reason)), ("asked by", _caller(record))]


def _quantization_completed(record: Any) -> Facts:
    facts: Facts = [("version", _text(record.version)), ("base", _text(record.base))]
    facts += [("file", f"{_text(file.type)}, {_file_facts(file)}") for file in record.files]
    facts += [("licence", "the base model's folder holds none" if record.licence_missing else "")]
    return [*facts, ("seconds", _number(record.seconds))]


def _file_facts(file: Any) -> str:
    parts = [f"{file.file.size} bytes"]
    if file.original_size:
        parts.append(f"{_number(100 * file.reduction)} % smaller than F16 ({file.original_size} bytes)")
    if file.HasField("agreement_equal") and file.HasField("agreement_prompts"):
        parts.append(f"greedy answers agree on {file.agreement_equal} of {file.agreement_prompts} prompts")
    return ", ".join(parts)


def _told(*fields: str) -> Callable[[Any], Facts]:
    """Facts that are single fields of the record, under their own names, and who asked."""

    def facts(record: Any) -> Facts:
        told = [(field.replace("_", " "), _text(str(getattr(record, field) or ""))) for field in fields]
        return [*told, ("asked by", _caller(record) if hasattr(record, "caller") else "")]

    return facts


_FACTS: dict[str, Callable[[Any], Facts]] = {
    "BaseModelRegistered": _told("display_name", "architecture", "parameters", "licence", "size", "revision"),
    "BaseModelWithdrawn": _told("key", "reason"),
    "DatasetRegistered": _told("form", "examples", "refused_lines", "band", "size"),
    "TrainingRequested": _training_requested,
    "TrainingStarted": _told("worker", "attempt"),
    "TrainingCompleted": _training_completed,
    "TrainingFailed": _training_failed,
    "TrainingCancelled": _told("reason"),
    "VersionCreated": _version_created,
    "VersionActivated": _version_activated,
    "VersionRevoked": _told("version", "reason"),
    "QuantizationRequested": _told("version", "base"),
    "QuantizationStarted": _told("worker", "attempt"),
    "QuantizationCompleted": _quantization_completed,
    "QuantizationFailed": _told("reason"),
    "EvaluationCompleted": lambda record: [("target", _text(record.target)), *_metrics(record)],
    "ApprovalGiven": _told("version", "purpose"),
    "CertificateIssued": _told("certificate", "version", "policy", "dna"),
    "CertificateRevoked": _told("certificate", "reason"),
}


def _metrics(record: Any) -> Facts:
    return [(_text(name), _number(record.metrics[name])) for name in sorted(record.metrics)]


# README.md


def readme(
    title: str,
    version: registry_pb2.Version,
    made_of: Ingredients,
    measured: Sequence[Recorded],
) -> bytes:
    """The model card: front matter as Hugging Face reads it, then what was used and measured."""
    bases = [record for _, record in made_of.bases]
    licences = {record.licence for record in bases}
    front: list[tuple[str, Any]] = [
        ("model_name", f"{title} {version.version}"),
        ("base_model", [record.display_name or record.key for record in bases]),
        ("base_model_relation", "adapter"),
        ("library_name", "peft"),
        ("license", licences.pop() if len(licences) == 1 else ""),
        ("datasets", [f"{d.org}/{d.name}" for _, d in (made_of.dataset,)] if made_of.dataset else ""),
        ("tags", ["modelledger"]),
    ]
    lines = ["---", *(f"{key}: {_yaml(value)}" for key, value in front if value), "---", ""]
    lines += [f"# {_text(title)} {version.version}", ""]
    lines += _section("Version", _version_facts(version))
    lines += _section("Base models", [(_text(r.key), _base_facts(sha256, r)) for sha256, r in made_of.bases])
    if made_of.dataset:
        lines += _section("Data", _data_facts(*made_of.dataset))
    lines += _section("Training options", [(_text(k), _text(v)) for k, v in sorted(version.request.options.items())])
    for trained in version.training.trained:
        lines += _section(f"Training of {_text(trained.key)}", _trained_facts(trained))
    failed = [(_text(base.key), _text(base.reason)) for base in version.training.failed]
    lines += _section("Base models that could not be trained", failed)
    lines += _section("Files", [(_text(f.file.type), f"{_file_facts(f.file)}, {_vouched(f)}") for f in version.files])
    for item in measured:
        lines += _section(f"Evaluation of {_text(item.record.target)}", _metrics(item.record))
    lines += _section("Certificates", [("certificate", _text(name)) for name in version.certificates])
    return "\n".join(lines).encode()


def _section(title: str, facts: Facts) -> list[str]:
    present = [f"- {label}: {value}" for label, value in facts if value]
    return [f"## {title}", "", *present, ""] if present else []


def _version_facts(version: registry_pb2.Version) -> Facts:
    state = "revoked" if version.revoked else "active" if version.active else "not active"
    return [
        ("created", version.create_time),
        ("state", state),
        ("event", str(version.event_index)),
        ("run", _text(version.record.run)),
        ("continues", _text(version.record.parent_version)),
    ]


def _base_facts(sha256: str, record: Any) -> str:
    parts = [_text(record.display_name), _text(record.architecture)]
    parts += [f"{record.parameters} parameters" if record.parameters else ""]
    parts += [f"licence {_text(record.licence)}" if record.licence else "", f"sha256:{sha256}"]
    return ", ".join(part for part in parts if part)


def _data_facts(sha256: str, record: Any) -> Facts:
    about = f"{record.examples} valid examples, {record.band}, sha256:{sha256}"
    return [(_text(f"{record.org}/{record.name}"), about)]


def _trained_facts(trained: Any) -> Facts:
    facts: Facts = [("epochs", str(trained.epochs)), ("examples trained on", str(trained.train_examples))]
    facts += [("examples held out", str(trained.validation_examples or ""))]
    facts += [("lines skipped", str(trained.skipped_lines or ""))]
    facts += [(label, _number(value)) for label, value in _losses(trained)]
    facts += [("parameters trained", str(trained.trainable_parameters or ""))]
    facts += [("seconds", _number(trained.seconds)), ("adapter", f"sha256:{trained.adapter.sha256}")]
    return facts + [(_text(name), _text(trained.environment[name])) for name in sorted(trained.environment)]


def _vouched(file: registry_pb2.ServableFile) -> str:
    return f"sha256:{file.file.file.sha256}, event {file.event_index}" + (", revoked" if file.revoked else "")


# Text

_MARKDOWN = re.compile(r"([\\`*\[\]<>|#~]|(?<!\w)_|_(?!\w))")  # an underscore inside a word formats nothing


def _text(value: str) -> str:
    """Text from outside inside a Markdown line: no line breaks, nothing that formats."""
    printable = "".join(char if char.isprintable() else " " for char in value)
    return _MARKDOWN.sub(r"\\\1", " ".join(printable.split()))


def _list(values: Iterable[str]) -> str:
    return ", ".join(_text(value) for value in values)


def _number(value: float) -> str:
    return f"{value:.6g}"


def _caller(record: Any) -> str:
    caller = record.caller
    return f"{_text(caller.id)} ({_text(caller.method)})" if caller.id else ""


def _artifact(artifact: Artifact) -> str:
    return f"{_text(artifact.name)} sha256:{artifact.sha256[:12]}"


def _yaml(value: str | list[str]) -> str:
    """JSON strings are YAML, once what YAML takes for a line break is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
