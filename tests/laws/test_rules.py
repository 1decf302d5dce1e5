"""The append rules as a pure function: what they say does not depend on the database, nor on being asked before."""

from __future__ import annotations

import copy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import envelope, rules
from ledger.events import KINDS, ROLES
from ledger.kit.keys import FileSigner
from ledger.rules import Candidate, Known
from ledger.schema import MESSAGES
from ledger.statement import Artifact, Event
from tests.databases import log_signer
from tests.logs import ACTORS, Log, artifact, event_of, founding, rotation, signer


class _Nowhere:
    """As much of a store as the log builder asks for; the rules need no database."""

    signer = log_signer()


def history() -> list[bytes]:
    log = Log.__new__(Log)
    log._versions = {}
    return [entry for request in founding(_Nowhere()) for entry in request] + log.history()  # type: ignore[arg-type]


HISTORY = history()


def candidate(entry: bytes, *, verified: bool = True) -> Candidate:
    parsed = envelope.parse(entry)
    keys = frozenset(signature.keyid for signature in parsed.signatures) if verified else frozenset()
    return Candidate(event_of(entry), envelope.payload_digest(parsed), keys)


def known_after(number: int) -> Known:
    known = Known()
    for entry in HISTORY[:number]:
        assert rules.check(known, candidate(entry)) == []
        rules.learn(known, candidate(entry))
    return known


def test_the_history_is_accepted_in_its_order() -> None:
    known = known_after(len(HISTORY))
    assert known.size == len(HISTORY)
    assert known.artifacts[artifact("base-models/tiny").sha256].revoked_at == len(HISTORY) - 1


def needs(number: int) -> set[int]:
    """The earlier events that an event of the history cannot do without."""
    event = event_of(HISTORY[number])
    kind = KINDS[event.kind]
    used = {*event.materials, *(() if kind.introduces else event.subjects)}
    found = {0} if number else set()
    for earlier, other in enumerate(map(event_of, HISTORY[:number])):
        enrols_actor = other.kind == "ActorEnrolled" and other.data["actor"] == event.actor != "ledger"
        introduces = KINDS[other.kind].introduces and used & set(other.subjects)
        if enrols_actor or introduces or other.stream == event.stream:
            found.add(earlier)
    return found


@given(st.integers(0, len(HISTORY)), st.integers(0, len(HISTORY) - 1))
def test_an_event_is_accepted_once_and_only_after_what_it_needs(size: int, number: int) -> None:
    violations = rules.check(known_after(size), candidate(HISTORY[number]))
    assert (violations == []) == (number >= size > max(needs(number), default=-1))


@given(st.integers(0, len(HISTORY) - 1))
def test_asking_changes_nothing(number: int) -> None:
    known = known_after(number)
    before = copy.deepcopy(known)
    rules.check(known, candidate(HISTORY[number]))
    fork = known.fork()
    rules.learn(fork, candidate(HISTORY[number]))
    assert known == before != fork


@pytest.mark.parametrize("number", range(len(HISTORY)))
def test_nothing_unsigned_is_accepted(number: int) -> None:
    found = rules.check(known_after(number), candidate(HISTORY[number], verified=False))
    assert "UNKNOWN_ACTOR" in {violation.reason for violation in found}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_vocabulary_agrees_with_itself(kind: rules.Kind) -> None:
    fields = MESSAGES[kind.name].DESCRIPTOR.fields
    assert set(kind.required) <= {field.json_name for field in fields}
    assert kind.roles
    assert set(kind.roles) <= set(ROLES)
    assert not (kind.introduces and kind.revokes)
    assert set(re.findall(r"{(\w+)}", kind.stream)) <= set(kind.required)


def test_the_first_event_creates_the_log_and_no_other_does() -> None:
    created, enrolled = HISTORY[0], HISTORY[1]
    assert {v.reason for v in rules.check(Known(), candidate(enrolled))} >= {"REFUSED", "UNKNOWN_ACTOR"}
    again = rules.check(known_after(1), candidate(created))
    assert "REFUSED" in {violation.reason for violation in again}


def test_current_key_is_the_one_that_is_not_retired() -> None:
    known = known_after(7)
    key = rules.current_key(known, "trainer")
    assert key is not None
    event = Event("ActorRevoked", "actors/trainer", 2, "ledger", (), {"actor": "trainer", "reason": "x"})
    rules.learn_keys(known, event, 7)
    assert rules.current_key(known, "trainer") is None
    assert {k.retired_at for k in known.keys.values() if k.actor == "trainer"} == {7}


def test_the_same_digest_may_have_many_names_and_each_counts() -> None:
    known = known_after(len(HISTORY) - 1)
    base = artifact("base-models/tiny")
    twin = Artifact("base-models/twin", base.sha256)
    event = Event("BaseModelRegistered", twin.name, 1, "trainer", (twin,), {})
    rules.learn(known, Candidate(event, "0" * 64, frozenset()))
    assert known.artifacts[base.sha256].names == {base.name, twin.name}
    assert known.artifacts[base.sha256].index < known.size - 1, "the first introduction stays"


def test_the_founding_key_does_not_come_back_after_it_was_replaced() -> None:
    known = known_after(1)

    def rotated(old: FileSigner, new: FileSigner, version: int) -> Candidate:
        signers = frozenset({signer(50).keyid, ACTORS["ledger"].keyid})
        return Candidate(rotation("ledger", old, new, version), "0" * 64, signers)

    replaced = rotated(ACTORS["ledger"], signer(50), 1)
    assert rules.check(known, replaced) == []
    rules.learn(known, replaced)
    found = rules.check(known, rotated(signer(50), ACTORS["ledger"], 2))
    assert "ALREADY_EXISTS" in {violation.reason for violation in found}
