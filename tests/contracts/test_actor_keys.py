"""The append contract for actors of either algorithm, and through rotations between the two, over every database."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from ledger.errors import (
    InvalidSignature,
    KindNotAllowed,
    MalformedEvent,
    RevokedActor,
    RevokedMaterial,
    UnknownActor,
)
from ledger.events import ROLES
from ledger.statement import Artifact
from tests.audit import verify_whole_log
from tests.databases import StoreFactory
from tests.logs import ACTORS, Log, ed25519_signer, enrolment, event_of, rotation, signed, signer

MAKERS: dict[str, Callable[[int], Any]] = {
    "P-256": signer,
    "Ed25519": ed25519_signer,
    "mixed": lambda number: signer(number) if number % 2 else ed25519_signer(number),
}


@pytest.fixture(params=MAKERS)
def log(request: pytest.FixtureRequest, store_factory: StoreFactory, monkeypatch: pytest.MonkeyPatch) -> Log:
    for number, role in enumerate(ROLES):
        monkeypatch.setitem(ACTORS, role, MAKERS[request.param](number))
    return Log(store_factory())


def test_one_of_everything_is_appended_once(log: Log) -> None:
    entries = log.history()
    appended = log.append(*entries)
    again = [signed(event, ACTORS[event.actor]) for event in map(event_of, entries)]
    assert log.append(*again).indexes == appended.indexes, "the same events, signed again"
    assert verify_whole_log(log.store) == log.store.head.size == appended.indexes[-1] + 1


def test_a_wrong_signature_is_refused_by_its_reason(log: Log) -> None:
    size = log.store.head.size
    entry = log.base()
    value = json.loads(entry)
    other = json.loads(signed(event_of(log.base("other"))))
    value["signatures"] = other["signatures"]
    with pytest.raises(InvalidSignature):
        log.append(json.dumps(value).encode())
    value["signatures"] = []
    with pytest.raises(MalformedEvent):
        log.append(json.dumps(value).encode())
    with pytest.raises(UnknownActor):
        log.append(signed(event_of(entry), signer(90)))
    with pytest.raises(UnknownActor):
        log.append(signed(event_of(entry), ACTORS["quantizer"]))
    assert log.store.head.size == size
    log.append(entry)


def test_a_key_that_was_revoked_lends_no_role(log: Log) -> None:
    """Not even beside the actor's present one, in whatever order a set holds the two."""
    for number in range(8):
        name, old, new = f"bob{number}", signer(200 + number), signer(300 + number)
        log.append(signed(enrolment(name, old, "trainer")))
        revoked = {"actor": name, "reason": "moved"}
        key = Artifact(f"actors/{name}", old.keyid)
        log.append(log.sign("ledger", "ActorRevoked", f"actors/{name}", [key], revoked, version=2))
        log.append(signed(enrolment(name, new, "quantizer", 3)))
        event = replace(event_of(log.base(f"b{number}")), actor=name)
        with pytest.raises(KindNotAllowed, match="role 'quantizer' may not write BaseModelRegistered"):
            log.append(signed(event, old, new))
    verify_whole_log(log.store)


def test_keys_rotate_between_algorithms_and_each_signs_in_its_time(log: Log, store_factory: StoreFactory) -> None:
    made = [ACTORS["trainer"], ed25519_signer(70), signer(71), ed25519_signer(72)]
    for number, (old, new) in enumerate(pairwise(made)):
        log.append(signed(event_of(log.dataset(f"before{number}")), old))
        (index,) = log.append(signed(rotation("trainer", old, new, 2 + number))).indexes
        late = event_of(log.dataset(f"after{number}"))
        with pytest.raises(RevokedActor, match=f"'trainer' was revoked or replaced at index {index}"):
            log.append(signed(late, old))
        log.append(signed(late, new))
    again = Log(store_factory.reopen(log.store))  # what was learned is learned again at the next start
    with pytest.raises(RevokedActor):
        again.append(signed(event_of(again.dataset("stale")), made[-2]))
    again.append(signed(event_of(again.dataset("fresh")), made[-1]))
    verify_whole_log(again.store)


def test_a_rotation_and_an_event_by_the_new_key_in_one_request_do_not_pass(log: Log) -> None:
    """Signatures are verified by the keys of before the request: the new key signs from the next one on."""
    new, size = signer(70), log.store.head.size
    rotated, event = signed(rotation("trainer", ACTORS["trainer"], new, 2)), signed(event_of(log.dataset("early")), new)
    with pytest.raises(UnknownActor):
        log.append(rotated, event)
    assert log.store.head.size == size
    log.append(rotated)
    log.append(event)
    verify_whole_log(log.store)


def test_a_batch_that_was_begun_before_a_key_changed_is_read_by_the_keys_of_its_turn(log: Log) -> None:
    old, new = ACTORS["trainer"], ed25519_signer(70)
    by_old, by_new = event_of(log.dataset("old")), event_of(log.dataset("new"))
    begun = [
        log.committer.begin(requests)
        for requests in (
            [[signed(rotation("trainer", old, new, 2))]],
            [[signed(by_old, old)], [signed(by_new, new)]],
            [[signed(by_old, new)]],
        )
    ]
    (rotated,), (stale, fresh), (repeated,) = (commit() for commit in begun)
    assert isinstance(stale, RevokedActor)
    assert [answer.indexes[0] for answer in (rotated, fresh, repeated)] == [*range(log.store.head.size)][-3:]
    verify_whole_log(log.store)


def test_a_stolen_possession_and_a_revoked_key_are_refused(log: Log) -> None:
    old, new = ACTORS["trainer"], ed25519_signer(70)
    stolen = rotation("trainer", signer(5), new, 2)  # proven for the replacement of another key
    with pytest.raises(InvalidSignature) as caught:
        log.append(signed(stolen))
    assert [v.field for v in caught.value.violations] == ["envelopes[0].predicate.data.possession"]
    key = Artifact("actors/trainer", old.keyid)
    said = {"actor": "trainer", "reason": "stolen", "compromisedFrom": str(log.store.head.size)}
    log.append(log.sign("ledger", "ActorRevoked", "actors/trainer", [key], said))
    with pytest.raises(RevokedActor):
        log.append(log.base())
    with pytest.raises(RevokedMaterial):
        log.append(signed(enrolment("trainer", old, "trainer", 3)))
    log.append(signed(enrolment("trainer", new, "trainer", 3)))
    log.append(signed(event_of(log.dataset("back")), new))
    verify_whole_log(log.store)
