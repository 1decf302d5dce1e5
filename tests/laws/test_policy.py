"""Policies as documents: the shipped one, and what is refused with its field."""

from __future__ import annotations

import json

import pytest

from ledger.errors import InvalidConfig
from ledger.policy import ESSENTIAL_KINDS, read, shipped

ESSENTIAL = [{"kind": kind} for kind in ESSENTIAL_KINDS]


def document(**fields: object) -> bytes:
    return json.dumps({"name": "strict", "require": ESSENTIAL, **fields}).encode()


def test_default_lists_every_step() -> None:
    default = shipped()["default"]
    assert default.missing(default.require) == []
    assert len(default.missing([])) == len(default.require) == 9


def test_at_least_counts() -> None:
    policy = read(document(require=[*ESSENTIAL, {"kind": "ApprovalGiven", "at_least": 2}]), "p.json")
    assert policy.missing([*ESSENTIAL_KINDS, "ApprovalGiven"]) == [
        "ApprovalGiven: 1 in the log, policy 'strict' needs at least 2"
    ]
    assert policy.missing([*ESSENTIAL_KINDS, "ApprovalGiven", "ApprovalGiven"]) == []


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (document(name="Not A Name"), "name"),
        (document(require=[]), "require"),
        (document(require=[*ESSENTIAL, {"kind": "Nothing"}]), "require[4].kind"),
        (document(require=[*ESSENTIAL, {"kind": "ApprovalGiven", "at_least": 0}]), "require[4].at_least"),
        (document(require=[*ESSENTIAL, ESSENTIAL[0]]), "require[4].kind"),
        (document(require=ESSENTIAL[1:]), "VersionCreated"),
        (document(more=1), "fields"),
        (b"{", "p.json"),
        (b"name = ", "p.json"),
        (b"name = " + b"[" * 60_000, "nested too deep"),
        (b"name = 1" + b"0" * 6_000, "p.json"),
        (b"a = 1\n" + b"a." * 101 + b"a = 1", "line 2 has more than 100 dots"),
        (b"\xff", "p.json"),
    ],
)
def test_refused_with_the_field(data: bytes, field: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        read(data, "p.json")
    assert field in refusal.value.message
