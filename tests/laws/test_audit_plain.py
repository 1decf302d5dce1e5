"""A bundle of plain events is judged at once exactly as `rules.standing` judges its events one by one."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ledger import rules
from ledger.audit_plain import Plain
from ledger.events import INFERENCE, LEDGER, TRAINER
from ledger.rules import ActorKey, Candidate, Introduced, Known
from ledger.statement import Artifact, Event

KEYIDS = ["first", "second", "third"]
ACTORS = ["trainer", "other"]
STREAMS = ["a", "b", "c"]
NAMES = ["x", "y"]
DIGESTS = ["1" * 64, "2" * 64, "3" * 64, "4" * 64]
PLAIN = ["DatasetRegistered", "TrainingRequested", "TrainingStarted"]  # introduce, and speak of
KINDS = [
    *PLAIN * 4,
    "TrainingFailed",  # may speak of what is revoked
    "BaseModelWithdrawn",  # revokes
    "ModelLoaded",  # not for trainers
    "LogCreated",
]

artifacts = st.builds(Artifact, st.sampled_from(NAMES), st.sampled_from(DIGESTS))
rarely = st.sampled_from([False] * 7 + [True])


@st.composite
def logs(draw: st.DrawFn) -> Known:
    """Something that may be known; most keys may sign as the trainer, most artifacts may be used."""
    keys = {
        keyid: ActorKey(
            "other" if draw(rarely) else "trainer",
            draw(st.sampled_from([TRAINER] * 6 + [LEDGER, INFERENCE])),
            b"",
            0,
            retired_at=1 if draw(rarely) else None,
        )
        for keyid in KEYIDS
        if not draw(rarely)
    }
    introduced = {
        digest: Introduced(frozenset(draw(st.sets(st.sampled_from(NAMES), min_size=1))), 1, 2 if draw(rarely) else None)
        for digest in draw(st.sets(st.sampled_from(DIGESTS[1:])))
    }
    versions = draw(st.dictionaries(st.sampled_from(STREAMS), st.integers(1, 3)))
    return Known(0 if draw(rarely) else 9, keys, introduced, versions, {"id-known": (3, "")})


@st.composite
def bundles(draw: st.DrawFn, known: Known) -> list[tuple[Event, str]]:
    """Events with their signers' keyids: half of the bundles may stand in the log, the others only nearly."""
    known, found, sloppy = copy.deepcopy(known), [], draw(st.booleans())
    signers = [
        k for k, key in known.keys.items() if (key.actor, key.role, key.retired_at) == ("trainer", TRAINER, None)
    ]

    def slips() -> bool:
        return sloppy and draw(rarely)

    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(KINDS if sloppy else PLAIN))
        stream = draw(st.sampled_from(STREAMS))
        usable = [
            Artifact(name, digest)
            for digest, item in known.artifacts.items()
            for name in sorted(item.names)
            if item.revoked_at is None or slips()
        ]
        some = st.lists(st.sampled_from(usable), max_size=2, unique=True) if usable else st.just([])
        new = st.lists(artifacts.filter(lambda a: _unrevoked(known, a)), min_size=1, max_size=2, unique=True)
        any_ = st.lists(artifacts, min_size=1, max_size=2, unique=True)
        event = Event(
            kind=kind,
            stream=stream,
            version=draw(st.integers(1, 4)) if slips() else known.streams.get(stream, 0) + 1,
            actor="other" if slips() else "trainer",
            subjects=tuple(draw(any_ if slips() else new if rules.KINDS[kind].introduces else some)),
            data={},
            materials=tuple(draw(any_ if slips() else some)),
            id=draw(st.sampled_from(["id-known", "id-0"])) if slips() else f"id-{number}",
        )
        found.append((event, draw(st.sampled_from(KEYIDS if slips() or not signers else signers))))
        if kind in PLAIN:
            rules.learn(known, Candidate(event, "", frozenset()))
    return found


def _unrevoked(known: Known, artifact: Artifact) -> bool:
    item = known.artifacts.get(artifact.sha256)
    return item is None or item.revoked_at is None


def one_by_one(known: Known, bundle: list[tuple[Event, str]]) -> bool:
    """Whether everything is allowed; then it is learnt, as the auditor does it event by event."""
    for event, keyid in bundle:
        candidate = Candidate(event, "", frozenset({keyid} & known.keys.keys()))
        if rules.standing(known, candidate) or event.id in known.ids:
            return False
        rules.learn(known, candidate)
    return True


@given(st.data())
def test_at_once_is_as_one_by_one(data: Any) -> None:
    known = data.draw(logs())
    bundle = data.draw(bundles(known))
    plain = Plain.of([event for event, _ in bundle], [keyid for _, keyid in bundle])
    if plain is None:
        return
    start, at_once, alone = known.size, copy.deepcopy(known), copy.deepcopy(known)
    allowed = plain.fits(known)
    assert known == at_once, "asking changes nothing"
    assert allowed == (one_by_one(alone, bundle) and start > 0)
    if allowed:
        rows = plain.learn(at_once)
        assert (at_once.size, at_once.streams, at_once.artifacts) == (alone.size, alone.streams, alone.artifacts)
        assert at_once.ids.keys() == alone.ids.keys()
        assert at_once.keys == alone.keys
        names = {(digest, name) for digest, item in alone.artifacts.items() for name in item.names}
        before = {(digest, name) for digest, item in known.artifacts.items() for name in item.names}
        assert {(digest, name) for digest, name, _ in rows} == names - before
        for digest, name, index in rows:
            event = bundle[index - start][0]
            assert Artifact(name, digest) in event.subjects
        offsets = sorted((offset, keyid) for (keyid, _, _), at in plain.signed.items() for offset in at)
        assert offsets == [(offset, keyid) for offset, (_, keyid) in enumerate(bundle)]


@given(st.data())
def test_what_is_not_plain_is_left_to_the_rules(data: Any) -> None:
    bundle = data.draw(bundles(data.draw(logs())))
    kinds, ids = {event.kind for event, _ in bundle}, {event.id for event, _ in bundle}
    plain = Plain.of([event for event, _ in bundle], [keyid for _, keyid in bundle])
    if kinds & {"LogCreated", "BaseModelWithdrawn", "TrainingFailed"} or len(ids) < len(bundle):
        assert plain is None
