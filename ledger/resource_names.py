"""Resource names of the API: `orgs/{org}/models/{model}/versions/v1.10` and its relatives, parsed strictly."""

from __future__ import annotations

import re
from typing import NamedTuple

from ledger.errors import InvalidName, Violation

BASE_ORG = "base"  # `base/{key}` is served like `{org}/{model}`: a base model as it is

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"  # what a stream's name may hold, see statement.py
_ORG = re.compile(rf"orgs/(?P<org>{_PART})")
_MODEL = re.compile(rf"orgs/(?P<org>{_PART})/models/(?P<model>{_PART})")
_DATASET = re.compile(rf"orgs/(?P<org>{_PART})/datasets/(?P<dataset>{_PART})")
_VERSION = re.compile(rf"orgs/(?P<org>{_PART})/models/(?P<model>{_PART})/versions/(?P<version>.+)")
_SERVED = re.compile(rf"(?P<org>{_PART})/(?P<model>{_PART})")
_ACTOR = re.compile(rf"actors/(?P<actor>{_PART})")
_GROUP = re.compile(rf"groups/(?P<group>{_PART})")
_NUMBER = re.compile(r"v(0|[1-9]\d{0,9})\.(0|[1-9]\d{0,9})", re.ASCII)


class ModelName(NamedTuple):
    """A model of an organisation."""

    org: str
    model: str

    @property
    def stream(self) -> str:
        return f"models/{self.org}/{self.model}"

    @property
    def resource(self) -> str:
        return f"orgs/{self.org}/models/{self.model}"

    def __str__(self) -> str:
        return f"{self.org}/{self.model}"


class DatasetName(NamedTuple):
    """A dataset of an organisation."""

    org: str
    dataset: str

    @property
    def stream(self) -> str:
        return f"datasets/{self.org}/{self.dataset}"

    @property
    def resource(self) -> str:
        return f"orgs/{self.org}/datasets/{self.dataset}"

    def __str__(self) -> str:
        return f"{self.org}/{self.dataset}"


class Number(NamedTuple):
    """A version's number. A pair of integers, so that v1.10 follows v1.9."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"v{self.major}.{self.minor}"


def parse_org(name: str, field: str) -> str:
    """`orgs/{org}` -> org."""
    return _match(_ORG, name, field, "orgs/{org}")["org"]


def parse_model(name: str, field: str) -> ModelName:
    """`orgs/{org}/models/{model}`."""
    found = _match(_MODEL, name, field, "orgs/{org}/models/{model}")
    return ModelName(found["org"], found["model"])


def parse_dataset(name: str, field: str) -> DatasetName:
    """`orgs/{org}/datasets/{dataset}`."""
    found = _match(_DATASET, name, field, "orgs/{org}/datasets/{dataset}")
    return DatasetName(found["org"], found["dataset"])


def parse_actor(name: str, field: str) -> str:
    """`actors/{actor}` -> actor."""
    return _match(_ACTOR, name, field, "actors/{actor}")["actor"]


def parse_version(name: str, field: str) -> tuple[ModelName, Number]:
    """`orgs/{org}/models/{model}/versions/v{major}.{minor}`."""
    model, text = split_version(name, field)
    return model, parse_number(text, field)


def split_version(name: str, field: str) -> tuple[ModelName, str]:
    """The model and the last part of a version's name, which may be an alias."""
    found = _match(_VERSION, name, field, "orgs/{org}/models/{model}/versions/{version}")
    return ModelName(found["org"], found["model"]), found["version"]


def parse_served(name: str, field: str) -> ModelName:
    """`{org}/{model}` or `base/{key}`, the names that are served."""
    found = _match(_SERVED, name, field, "{org}/{model} or base/{key}")
    return ModelName(found["org"], found["model"])


def parse_group(name: str, field: str) -> str:
    """`groups/{group}` -> group."""
    return _match(_GROUP, name, field, "groups/{group}")["group"]


def below(collection: str, name: str) -> str:
    """`run-…` or `training-runs/run-…` as the resource name."""
    collected, _, identifier = name.rpartition("/")
    if collected not in ("", collection) or not identifier:
        raise InvalidName(f"{name!r} does not have the form {collection}/ID")
    return f"{collection}/{identifier}"


def parse_number(text: str, field: str) -> Number:
    """`v1.10` -> (1, 10)."""
    found = _NUMBER.fullmatch(text)
    if not found:
        raise _invalid(text, field, "v{major}.{minor}, for example v1.0")
    return Number(int(found[1]), int(found[2]))


def _match(form: re.Pattern[str], name: str, field: str, description: str) -> re.Match[str]:
    found = form.fullmatch(name)
    if not found:
        raise _invalid(name, field, description)
    return found


def _invalid(name: str, field: str, form: str) -> InvalidName:
    shown = name if len(name) <= 100 else f"{name[:100]}…"
    description = f"{shown!r} does not have the form {form}"
    return InvalidName(f"{field}: {description}", violations=[Violation(field, "INVALID_NAME", description)])
