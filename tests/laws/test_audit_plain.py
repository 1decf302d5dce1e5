"""A bundle of plain events is judged at once exactly as `rules.standing` judges its events one by one."""

from __future__ import annotations

import copy

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ledger import rules
from ledger.audit_plain import Plain
from ledger.events import INFERENCE, TRAINER
from ledger.rules import ActorKey, Candidate, Introduced, Known
from ledger.statement import Artifact, Event

Bundle = list[tuple[Event, str]]  # with the keyid of its signature

NEW, ONCE, TWICE, REVOKED = "1" * 64, "2" * 64, "3" * 64, "4" * 64
KNOWN = Known(
    size=9,
    keys={
        "first": ActorKey("trainer", TRAINER, b"", 1),
        "second": ActorKey("trainer", TRAINER, b"", 2),
        "retired": ActorKey("trainer", TRAINER, b"", 3, retired_at=4),
        "of another role": ActorKey("trainer", INFERENCE, b"", 5),
        "another's": ActorKey("other", TRAINER, b"", 6),
    },
    artifacts={
        ONCE: Introduced(frozenset({"x"}), 7),
        TWICE: Introduced(frozenset({"x", "y"}), 7),
        REVOKED: Introduced(frozenset({"x", "y"}), 7, 8),
    },
    streams={"a": 3, "b": 1},
    ids={"id-known": (3, "")},
)
INTRODUCES, SPEAKS = ("DatasetRegistered", "TrainingRequested"), ("TrainingStarted",)
# What a slip makes of an event; whether it is one depends on the events before it.
SLIPS = {
    "a version too high": lambda event, _: (replace(event, version=event.version + 1), "first"),
    "a version again": lambda event, _: (replace(event, version=event.version - 1), "first"),
    "an id of the log": lambda event, _: (replace(event, id="id-known"), "first"),
    "an id of the bundle": lambda event, _: (replace(event, id="id-0"), "first"),
    "another actor": lambda event, _: (replace(event, actor="other"), "first"),
    "a kind for others": lambda event, _: (replace(event, kind="ModelLoaded"), "first"),
    "a kind that creates": lambda event, _: (replace(event, kind="LogCreated"), "first"),
    "a kind that revokes": lambda event, _: (replace(event, kind="BaseModelWithdrawn", subjects=()), "first"),
    "a kind that ends": lambda event, _: (replace(event, kind="TrainingFailed", subjects=()), "first"),
    "a material": lambda event, artifact: (replace(event, materials=(artifact,)), "first"),
    "a subject": lambda event, artifact: (replace(event, kind="TrainingStarted", subjects=(artifact,)), "first"),
    "a new subject": lambda event, artifact: (replace(event, kind="DatasetRegistered", subjects=(artifact,)), "first"),
} | {f"a key: {keyid}": lambda event, _, keyid=keyid: (event, keyid) for keyid in (*KNOWN.keys, "unknown")}

artifacts = st.builds(Artifact, st.sampled_from(["x", "y"]), st.sampled_from([NEW, ONCE, TWICE, REVOKED]))


@st.composite
def bundles(draw: st.DrawFn) -> Bundle:
    """Events that may follow in the log, all but one at most."""
    known, bundle = copy.deepcopy(KNOWN), []
    count = draw(st.integers(1, 5))
    slip, at = draw(st.sampled_from([None, *SLIPS])), draw(st.integers(0, count - 1))
    for number in range(count):
        usable = {
            Artifact(name, sha256)
            for sha256, item in known.artifacts.items()
            for name in item.names
            if item.revoked_at is None
        }
        used = st.lists(st.sampled_from(sorted(usable)), max_size=2, unique=True)
        new = st.lists(artifacts.filter(lambda a: a.sha256 != REVOKED), min_size=1, max_size=2, unique=True)
        kind, stream = draw(st.sampled_from([*INTRODUCES, *SPEAKS])), draw(st.sampled_from(["a", "b", "c"]))
        event = Event(
            kind=kind,
            stream=stream,
            version=known.streams.get(stream, 0) + 1,
            actor="trainer",
            subjects=tuple(draw(new if kind in INTRODUCES else used)),
            data={},
            materials=tuple(draw(used)),
            id=f"id-{number}",
        )
        keyid = draw(st.sampled_from(["first", "second"]))
        if slip and number == at:
            event, keyid = SLIPS[slip](event, draw(artifacts))
        bundle.append((event, keyid))
        if event.kind in (*INTRODUCES, *SPEAKS):
            rules.learn(known, Candidate(event, "", frozenset()))
    return bundle


def one_by_one(known: Known, bundle: Bundle) -> bool:
    """Whether everything is allowed; then it is learnt."""
    for event, keyid in bundle:
        candidate = Candidate(event, "", frozenset({keyid} & known.keys.keys()))
        if rules.standing(known, candidate) or event.id in known.ids:
            return False
        rules.learn(known, candidate)
    return True


def plain_of(bundle: Bundle) -> Plain | None:
    return Plain.of([event for event, _ in bundle], [keyid for _, keyid in bundle])


@settings(max_examples=300)  # so that every slip meets every place
@example([(Event("DatasetRegistered", "c", 1, "trainer", (Artifact("x", REVOKED),), {}), "first")])
@example([(Event("TrainingStarted", "c", 1, "trainer", (Artifact("x", REVOKED),), {}), "first")])
@given(bundles())
def test_at_once_is_as_one_by_one(bundle: Bundle) -> None:
    at_once, alone = copy.deepcopy(KNOWN), copy.deepcopy(KNOWN)
    allowed = one_by_one(alone, bundle)
    plain = plain_of(bundle)
    if plain is None:
        kinds = {event.kind for event, _ in bundle}
        assert not allowed or kinds & {"LogCreated", "BaseModelWithdrawn", "TrainingFailed"}
        return
    assert plain.fits(at_once) == allowed
    assert at_once == KNOWN, "asking changes nothing"
    if not allowed:
        return
    rows = plain.learn(at_once)
    assert (at_once.size, at_once.streams, at_once.artifacts) == (alone.size, alone.streams, alone.artifacts)
    assert (at_once.keys, at_once.ids.keys()) == (alone.keys, alone.ids.keys())
    assert {(sha256, name) for sha256, name, _ in rows} == _names(alone) - _names(KNOWN)
    for sha256, name, index in rows:
        first = next(i for i, (event, _) in enumerate(bundle, KNOWN.size) if Artifact(name, sha256) in event.subjects)
        assert index == first
    signed = sorted((offset, keyid) for (keyid, _, _), offsets in plain.signed.items() for offset in offsets)
    assert signed == [(offset, keyid) for offset, (_, keyid) in enumerate(bundle)]


@pytest.mark.parametrize("kind", ["LogCreated", "ActorRevoked", "BaseModelWithdrawn", "TrainingFailed"])
def test_keys_revocations_and_what_may_be_of_revoked_are_left_to_the_rules(kind: str) -> None:
    event = Event(kind, "a", 4, "trainer", (), {})
    assert plain_of([(event, "first")]) is None


def test_the_first_event_of_a_log_is_left_to_the_rules() -> None:
    plain = plain_of([(Event("DatasetRegistered", "c", 1, "trainer", (Artifact("x", NEW),), {}), "first")])
    assert plain is not None
    assert plain.fits(KNOWN)
    assert not plain.fits(Known(0, dict(KNOWN.keys)))


def _names(known: Known) -> set[tuple[str, str]]:
    return {(sha256, name) for sha256, item in known.artifacts.items() for name in item.names}
