"""A certification policy is data: which kinds of evidence a version needs, and how much of each.

    name = "default"
    description = "..."
    [[require]]
    kind = "QuantizationCompleted"      # an event about the version, its run, its bases or its dataset
    at_least = 1                        # 1 when left out

TOML or JSON. ledger/policies/ holds the ones that are shipped. Whatever a policy says, evidence that is
revoked never counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ledger import strict_json, strict_toml
from ledger.errors import InvalidConfig

# Where evidence of a kind is found; ledger/evidence.py and ledger/provenance.py look there.
EVIDENCE_KINDS = (
    "VersionCreated",
    "TrainingRequested",
    "TrainingStarted",
    "EpochCompleted",
    "TrainingCompleted",
    "BaseModelRegistered",
    "DatasetRegistered",
    "QuantizationRequested",
    "QuantizationStarted",
    "QuantizationCompleted",
    "EvaluationCompleted",
    "ApprovalGiven",
)
# Without these there is nothing to certify, so every policy needs them.
ESSENTIAL_KINDS = ("VersionCreated", "TrainingCompleted", "BaseModelRegistered", "DatasetRegistered")
MAX_POLICY = 64 << 10

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class Policy:
    """require: kind of event -> how many of it a version needs."""

    name: str
    description: str
    require: Mapping[str, int]

    def missing(self, kinds: Iterable[str]) -> list[str]:
        """What the events found, by kind, lack; one sentence each."""
        found = list(kinds)
        lacking = []
        for kind, least in self.require.items():
            if (count := found.count(kind)) < least:
                lacking.append(f"{kind}: {count} in the log, policy {self.name!r} needs at least {least}")
        return lacking


def read(data: bytes, where: str) -> Policy:
    """A policy document in TOML or JSON. Raises InvalidConfig naming the field."""
    if len(data) > MAX_POLICY:
        raise InvalidConfig(f"{where}: larger than {MAX_POLICY} bytes")
    try:
        value = strict_json.loads(data) if data.lstrip().startswith(b"{") else strict_toml.loads(data)
    except ValueError as error:
        raise InvalidConfig(f"{where}: {error}") from None
    if not isinstance(value, dict) or set(value) - {"name", "description", "require"}:
        raise InvalidConfig(f"{where}: a policy has the fields name, description and require")
    name, description, rows = value.get("name"), value.get("description", ""), value.get("require")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidConfig(f"{where}: name: lower-case letters, digits and hyphens, at most 64")
    if not isinstance(description, str):
        raise InvalidConfig(f"{where}: description: must be a text")
    if not isinstance(rows, list) or not rows:
        raise InvalidConfig(f"{where}: require: must list at least one kind of evidence")
    require: dict[str, int] = {}
    for number, row in enumerate(rows):
        kind, least = _requirement(row, f"{where}: require[{number}]")
        if kind in require:
            raise InvalidConfig(f"{where}: require[{number}].kind: {kind} stands twice")
        require[kind] = least
    absent = [kind for kind in ESSENTIAL_KINDS if kind not in require]
    if absent:
        raise InvalidConfig(f"{where}: require: a certificate is not possible without {', '.join(absent)}")
    return Policy(name, description, require)


def shipped() -> dict[str, Policy]:
    """The policies that come with the package, by name."""
    folder = resources.files("ledger") / "policies"
    found = [read(item.read_bytes(), item.name) for item in folder.iterdir() if item.name.endswith(".toml")]
    return {policy.name: policy for policy in found}


def _requirement(row: Any, where: str) -> tuple[str, int]:
    if not isinstance(row, dict) or not {"kind"} <= set(row) <= {"kind", "at_least"}:
        raise InvalidConfig(f"{where}: must have the field kind, and may have at_least")
    kind, least = row["kind"], row.get("at_least", 1)
    if kind not in EVIDENCE_KINDS:
        raise InvalidConfig(f"{where}.kind: {kind!r} is not one of {', '.join(EVIDENCE_KINDS)}")
    if type(least) is not int or not 1 <= least <= 1_000:
        raise InvalidConfig(f"{where}.at_least: must be a number from 1 to 1000")
    return kind, least
