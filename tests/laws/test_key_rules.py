"""The rules for events about keys, as pure functions, for actors of both algorithms."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from ledger import rules
from ledger.rules import ActorKey, Candidate, Known
from ledger.statement import Artifact, Event
from tests.logs import ACTORS, ed25519_signer, enrolment, rotation, signer

LEDGER = ACTORS["ledger"]
ENROLLED, SIZE = 10, 50
KINDS = pytest.mark.parametrize("make", [signer, ed25519_signer], ids=["P-256", "Ed25519"])


def known(key: Any, size: int = SIZE) -> Known:
    """A log of `size` events in which `key` was enrolled for the trainer at index 10."""
    found = Known(size=size, streams={"actors/trainer": 1})
    found.keys = {
        LEDGER.keyid: ActorKey("ledger", "ledger", LEDGER.public_key_der, 0),
        key.keyid: ActorKey("trainer", "trainer", key.public_key_der, ENROLLED),
    }
    found.artifacts = {key.keyid: rules.Introduced(frozenset({"actors/trainer"}), ENROLLED)}
    return found


def check(state: Known, event: Event) -> dict[str, str]:
    """place -> reason of every violation."""
    candidate = Candidate(event, "0" * 64, frozenset({LEDGER.keyid}))
    return {v.field: v.reason for v in rules.check(state, candidate)}


def revocation(key: Any, **data: Any) -> Event:
    said = {"actor": "trainer", "reason": "lost", **data}
    return Event("ActorRevoked", "actors/trainer", 2, "ledger", (Artifact("actors/trainer", key.keyid),), said)


@KINDS
def test_a_rotation_proves_possession(make: Any) -> None:
    old, new = make(1), make(2)
    event = rotation("trainer", old, new, 2)
    assert check(known(old), event) == {}
    stolen = rotation("trainer", signer(5), new, 2)  # made for another rotation
    assert check(known(old), stolen) == {"predicate.data.possession": "INVALID_SIGNATURE"}
    for wrong in ("", "not base64", base64.b64encode(b"x").decode(), base64.b64encode(bytes(64)).decode(), 7, None):
        refused = check(known(old), replace(event, data={**event.data, "possession": wrong}))
        assert refused.get("predicate.data.possession") in ("INVALID_SIGNATURE", "MALFORMED_EVENT"), wrong
    without = {name: value for name, value in event.data.items() if name != "possession"}
    assert "predicate.data.possession" in check(known(old), replace(event, data=without))


@KINDS
def test_an_enrolment_may_prove_it_and_then_must_be_right(make: Any) -> None:
    event = enrolment("second", make(2), "trainer")
    assert check(known(make(1)), event) == {}
    proof = rotation("second", signer(1), make(2), 1).data["possession"]  # for a rotation, not for an enrolment
    assert check(known(make(1)), replace(event, data={**event.data, "possession": proof})) == {
        "predicate.data.possession": "INVALID_SIGNATURE"
    }


@given(st.integers(1, 100), st.booleans(), st.booleans(), st.booleans())
@example(ENROLLED - 1, True, False, False)
@example(ENROLLED, True, False, False)
@example(SIZE, True, False, True)
@example(SIZE + 1, True, False, True)
def test_compromised_from_lies_between_enrolment_and_now(index: int, text: bool, snake: bool, rotated: bool) -> None:
    old, new = signer(1), ed25519_signer(2)
    said = {"compromised_from" if snake else "compromisedFrom": str(index) if text else index}
    event = rotation("trainer", old, new, 2, **said) if rotated else revocation(old, **said)
    state = known(old)
    found = check(state, event)
    assert (found == {}) == (ENROLLED <= index <= SIZE)
    if found:
        assert found == {"predicate.data.compromisedFrom": "MALFORMED_EVENT"}
        return
    rules.learn(state, Candidate(event, "0" * 64, frozenset()))
    assert (state.keys[old.keyid].retired_at, state.keys[old.keyid].compromised_from) == (SIZE, index)
    if rotated:
        assert state.keys[new.keyid] == ActorKey("trainer", "trainer", new.public_key_der, SIZE)


@pytest.mark.parametrize("value", [0, "0", None], ids=str)
def test_nothing_said_is_nothing_compromised(value: Any) -> None:
    key = signer(1)
    event = revocation(key) if value is None else revocation(key, compromisedFrom=value)
    state = known(key)
    assert check(state, event) == {}
    rules.learn(state, Candidate(event, "0" * 64, frozenset()))
    assert state.keys[key.keyid].compromised_from is None


@pytest.mark.parametrize(
    "value", [-1, "-1", "1e1", 20.0, True, None, [], {}, "٣", " 20", "2_0", "9" * 19, "x"], ids=str
)
def test_what_is_no_index(value: Any) -> None:
    key = signer(1)
    found = check(known(key), revocation(key, compromisedFrom=value))
    assert found == {"predicate.data.compromisedFrom": "MALFORMED_EVENT"}


@given(st.integers(0, 200), st.integers(ENROLLED, SIZE))
def test_the_append_rules_refuse_from_the_revocation_on_and_not_before(at: int, compromised: int) -> None:
    """Whatever was compromised: appending stays simple, and the log's past is never judged anew."""
    key = signer(1)
    state = known(key)
    rules.learn(state, Candidate(revocation(key, compromisedFrom=compromised), "0" * 64, frozenset()))
    base = Artifact("base-models/tiny", "ab" * 32)
    data = {"key": "tiny", "architecture": "llama", "size": "9"}
    event = Event("BaseModelRegistered", base.name, 1, "trainer", (base,), data)
    found = rules.check(state, Candidate(event, "0" * 64, frozenset({key.keyid})))
    assert {v.reason for v in found} == {"REVOKED_ACTOR"}
    assert f"index {SIZE}" in found[0].description
    assert rules.check(known(key, at + 1), Candidate(event, "0" * 64, frozenset({key.keyid}))) == []
