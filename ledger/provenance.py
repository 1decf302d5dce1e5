"""What statements say a version is made of: bases, data, run, adapters, quantisations. Pure.

    about(statements, org, model, version)      those of the statements that tell of the version itself
    trace(statements, org, model, version)      the same as one value; Incomplete when a link is missing

The certification service asks it of the log before it writes a certificate, the auditor asks it of the
bundle, and both get the same answer from the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger.bundle import Statement
from ledger.statement import Artifact, Event


class Incomplete(ValueError):
    """The statements do not tell the whole story; `problems` says what is missing, all at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Base:
    """One base model that was really trained: its registration, and what TrainingCompleted says of it."""

    key: str
    artifact: Artifact
    registered: Statement
    trained: Mapping[str, Any]


@dataclass(frozen=True)
class Provenance:
    """A version's whole story. `bases` by key, `epochs` and `quantizations` by index."""

    org: str
    model: str
    version: str
    created: Statement
    completed: Statement
    requested: Statement | None
    epochs: tuple[Statement, ...]
    bases: tuple[Base, ...]
    dataset: Statement
    quantizations: tuple[Statement, ...]

    @property
    def run(self) -> str:
        return str(self.completed.event.data["run"])

    @property
    def base_keys(self) -> list[str]:
        """The bases really trained, sorted."""
        return [base.key for base in self.bases]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each trained base, as the training or else the version recorded it."""
        recorded = self.completed.event.data.get("weights") or {
            adapter["base"]: adapter.get("weight", 0.0) for adapter in self.created.event.data["adapters"]
        }
        return {key: float(recorded[key]) for key in self.base_keys if key in recorded}

    @property
    def dataset_artifact(self) -> Artifact:
        return self.dataset.event.subjects[0]

    @property
    def subjects(self) -> list[Artifact]:
        """What a certificate speaks of: the version's new adapters and its GGUF files."""
        files = [a for s in self.quantizations for a in s.event.subjects if a.name.startswith("gguf/")]
        return sorted({*self.created.event.subjects, *files})

    @property
    def materials(self) -> list[Artifact]:
        """What a certificate rests on: the bases, the data and the earlier adapters. None of it may be revoked."""
        earlier = [a for a in self.created.event.materials if a.name.startswith("adapters/")]
        return sorted({*(base.artifact for base in self.bases), self.dataset_artifact, *earlier})

    @property
    def artifacts(self) -> list[Artifact]:
        """What it takes to run the version over its bases: every adapter, GGUF file, Modelfile and licence."""
        chain = [a for a in self.created.event.materials if a.name.startswith("adapters/")]
        made = [a for s in self.quantizations for a in s.event.subjects]
        return sorted({*self.created.event.subjects, *chain, *made})


def version_name(data: Mapping[str, Any]) -> str:
    """v<major>.<minor> of a VersionCreated; proto3 JSON leaves a zero out."""
    return f"v{data.get('major', 0)}.{data.get('minor', 0)}"


def is_version(event: Event, org: str, model: str, version: str) -> bool:
    return (
        event.kind == "VersionCreated"
        and (event.data.get("org"), event.data.get("model")) == (org, model)
        and (version_name(event.data) == version)
    )


def about(statements: Iterable[Statement], org: str, model: str, version: str) -> list[Statement]:
    """The statements that tell of the version: itself, its run, its bases and dataset, its quantisations,
    evaluations and approvals; by index."""
    everything = sorted(statements, key=lambda statement: statement.index)
    created = [s for s in everything if is_version(s.event, org, model, version)]
    streams = {f"training-runs/{s.event.data.get('run')}" for s in created}
    inputs = {a for s in created for a in s.event.materials}
    made = {a for s in created for a in s.event.subjects}
    wanted = (org, model, version)
    for statement in everything:
        event = statement.event
        if event.kind == "TrainingCompleted" and event.stream in streams:
            inputs.update(event.materials)
        elif event.kind == "QuantizationCompleted" and _names(event) == wanted:
            streams.add(event.stream)
            made.update(event.subjects)

    def belongs(event: Event) -> bool:
        if event.kind in ("BaseModelRegistered", "DatasetRegistered"):
            return not inputs.isdisjoint(event.subjects)
        if event.kind == "EvaluationCompleted":
            return not made.isdisjoint(event.subjects)
        return event.stream in streams or (event.kind == "ApprovalGiven" and _names(event) == wanted)

    return [s for s in everything if s in created or belongs(s.event)]


def trace(statements: Iterable[Statement], org: str, model: str, version: str) -> Provenance:
    """Follow a version back to its bases and data. Raises Incomplete."""
    story = about(statements, org, model, version)
    created = _only(story, "VersionCreated")
    completed = _only(story, "TrainingCompleted")
    problems = []
    bases = []
    for trained in sorted(completed.event.data.get("trained", []), key=lambda item: str(item.get("key"))):
        key = str(trained.get("key"))
        artifact = Artifact(f"base-models/{key}", str(trained.get("baseSha256")))
        registered = _introducing(story, artifact)
        if registered is None:
            problems.append(f"no BaseModelRegistered of {artifact.name} sha256:{artifact.sha256}")
        else:
            bases.append(Base(key, artifact, registered, trained))
    if not completed.event.data.get("trained"):
        problems.append(f"TrainingCompleted at index {completed.index} names no trained base")
    quantizations = tuple(s for s in story if s.event.kind == "QuantizationCompleted")
    problems += _not_trained_so(created, completed)
    problems += [problem for quantization in quantizations for problem in _not_made_of(quantization, created)]
    datasets = [a for a in completed.event.materials if a.name.startswith("datasets/")]
    digest = completed.event.data.get("datasetSha256")
    dataset = next((_introducing(story, a) for a in datasets if a.sha256 == digest), None)
    if dataset is None:
        problems.append(f"no DatasetRegistered of sha256:{digest}")
    if problems or dataset is None:
        raise Incomplete(problems)
    requests = [s for s in story if s.event.kind == "TrainingRequested"]
    return Provenance(
        org,
        model,
        version,
        created,
        completed,
        requests[0] if requests else None,
        tuple(s for s in story if s.event.kind == "EpochCompleted"),
        tuple(bases),
        dataset,
        quantizations,
    )


def _not_trained_so(created: Statement, completed: Statement) -> Iterator[str]:
    """What the version says of its adapters, and its run does not."""
    where = f"VersionCreated at index {created.index}"
    adapters, bases = created.event.data.get("adapters", []), completed.event.data.get("trained", [])
    claimed = {(a.get("base"), a.get("baseSha256"), *_chain(a)[-1:]) for a in adapters}
    trained = {(b.get("key"), b.get("baseSha256"), *_artifacts([b.get("adapter", {})])) for b in bases}
    for key in sorted({str(key) for key, *_ in claimed ^ trained}):
        yield f"{where} and TrainingCompleted at index {completed.index} disagree about the adapter of base {key}"
    if set(created.event.subjects) != {link for adapter in adapters for link in _chain(adapter)[-1:]}:
        yield f"{where} speaks of other adapters than it lists"
    for adapter in adapters:
        if not set(_chain(adapter)[:-1]) <= set(completed.event.materials):
            yield f"{where} names earlier adapters of base {adapter.get('base')} that its run did not continue"
    used = {a for a in created.event.materials if a.name.startswith("datasets/")}
    if not used <= set(completed.event.materials):
        yield f"{where} names data that its run was not trained on"


def _not_made_of(quantization: Statement, created: Statement) -> Iterator[str]:
    """Whether a quantisation of the version was made from its base and its whole chain, in their order."""
    base = quantization.event.data.get("base")
    expected = [
        [Artifact(f"base-models/{base}", str(adapter.get("baseSha256"))), *_chain(adapter)]
        for adapter in created.event.data.get("adapters", [])
        if adapter.get("base") == base
    ]
    if list(quantization.event.materials) not in expected:
        yield (
            f"QuantizationCompleted at index {quantization.index} was not made from the version's base {base} and "
            "its adapters"
        )


def _chain(adapter: Mapping[str, Any]) -> list[Artifact]:
    """The chain of a version's adapter, in the order it applies."""
    return _artifacts(adapter.get("chain", []))


def _artifacts(refs: Iterable[Mapping[str, Any]]) -> list[Artifact]:
    return [Artifact(str(ref.get("name")), str(ref.get("sha256"))) for ref in refs]


def _only(story: Sequence[Statement], kind: str) -> Statement:
    found = [statement for statement in story if statement.event.kind == kind]
    if len(found) != 1:
        raise Incomplete([f"expected one {kind} of the version, found {len(found)}"])
    return found[0]


def _introducing(story: Sequence[Statement], artifact: Artifact) -> Statement | None:
    return next(
        (
            s
            for s in story
            if artifact in s.event.subjects and s.event.kind in ("BaseModelRegistered", "DatasetRegistered")
        ),
        None,
    )


def _names(event: Event) -> tuple[Any, Any, Any]:
    return event.data.get("org"), event.data.get("model"), event.data.get("version")
