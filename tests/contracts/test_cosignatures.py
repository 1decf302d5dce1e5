"""Cosignatures in the database, and the checkpoints that readers are given with them, on every database."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ledger.cosignature import add_lines
from ledger.cosignature_store import CosignatureStore
from ledger.cosigned import LOOK_BACK, CosignedCheckpoints, PlainCheckpoints, Published
from ledger.errors import NotReady
from ledger.note import Cosigner
from ledger.trust_policy import TrustPolicy, parse_trust_policy
from tests.databases import StoreFactory
from tests.logs import Log
from tests.witnesses import cosigner, signature

W1, W2, W3 = cosigner(1), cosigner(2), cosigner(3)
BOTH = b"".join(b"witness %d %s\n" % (n, w.vkey().encode()) for n, w in ((1, W1), (2, W2)))
BOTH += b"group both all 1 2\nquorum both\n"


class Cosigning:
    """A log, its cosignatures, and the witnesses' keys."""

    def __init__(self, store_factory: StoreFactory) -> None:
        self.log = Log(store_factory())
        self.stored = CosignatureStore(store_factory.url_of(self.log.store))
        self.checkpoints = self.publish(parse_trust_policy(BOTH))

    def publish(self, policy: TrustPolicy) -> CosignedCheckpoints:
        return CosignedCheckpoints(self.log.store, self.stored, policy)

    def grow(self, *witnesses: Cosigner, time: int = 7) -> tuple[int, bytes]:
        """One more event; (size, checkpoint), stored with the cosignatures of these witnesses."""
        self.log.append(self.log.dataset(f"d{self.log.store.head.size}"))
        head = self.log.store.head
        for witness in witnesses:
            self.stored.add(head.size, signature(head.checkpoint, witness, time))
        return head.size, head.checkpoint


@pytest.fixture
def cosigning(store_factory: StoreFactory) -> Iterator[Cosigning]:
    made = Cosigning(store_factory)
    yield made
    made.stored.close()


def test_a_witness_s_first_cosignature_stays(cosigning: Cosigning) -> None:
    size, note = cosigning.grow(W2, W1)
    cosigning.stored.add(size, signature(note, W1, 99))
    assert [line.line for line in cosigning.stored.lines(size)] == [signature(note, w).line for w in (W1, W2)]
    assert cosigning.stored.lines(size + 1) == ()
    assert [cosigning.stored.newest_size(w.verifier) for w in (W1, W2, W3)] == [size, size, 0]


def test_cosignatures_are_never_changed_or_deleted(cosigning: Cosigning) -> None:
    cosigning.grow(W1)
    for statement in ("UPDATE cosignatures SET size = 1", "DELETE FROM cosignatures"):
        refused = pytest.raises(DBAPIError, match="never changed or deleted")
        with refused, cosigning.stored._writer.begin() as connection:
            connection.execute(text(statement))


def test_one_database_is_migrated_once(cosigning: Cosigning, store_factory: StoreFactory) -> None:
    size, _ = cosigning.grow(W1)
    store_factory.reopen(cosigning.log.store)
    assert len(cosigning.stored.lines(size)) == 1


def test_a_database_from_before_there_were_witnesses_is_brought_up(
    cosigning: Cosigning, store_factory: StoreFactory
) -> None:
    with cosigning.stored._writer.begin() as connection:
        connection.execute(text("DROP TABLE cosignatures"))
        connection.execute(text("DELETE FROM migrations WHERE name = 'm002_cosignatures'"))
    store_factory.reopen(cosigning.log.store)
    test_cosignatures_are_never_changed_or_deleted(cosigning)


def test_the_newest_checkpoint_carries_what_is_known_for_it(cosigning: Cosigning) -> None:
    cosigning.grow(W1, W2)
    size, note = cosigning.grow()
    assert cosigning.checkpoints.newest().note == note
    cosigning.stored.add(size, signature(note, W2))
    cosigning.stored.add(size, signature(note, W3))  # no witness of the policy
    newest = cosigning.checkpoints.newest()
    assert (newest.size, newest.note) == (size, add_lines(note, [signature(note, W2).line]))


def test_a_stored_line_that_does_not_fit_is_not_handed_on(
    cosigning: Cosigning, caplog: pytest.LogCaptureFixture
) -> None:
    """Below the others it would make the whole note worthless, for everybody who knows that witness."""
    line_of = {
        "nonsense": lambda note: b"nonsense\n",
        "not a line": lambda note: b"",
        "on another checkpoint": lambda note: signature(first, W2).line,
        "on the note": lambda note: b"\n" + W2.cosign(note, 7),
        "of another witness": lambda note: signature(note, W1).line,
        "with more": lambda note: signature(note, W2).line + signature(note, W3).line,
    }
    _, first = cosigning.grow()
    for what, line in line_of.items():
        size, note = cosigning.grow(W1)
        damaged = replace(signature(note, W2), line=line(note))
        cosigning.stored.add(size, damaged)
        caplog.clear()
        assert cosigning.checkpoints.newest().note == add_lines(note, [signature(note, W1).line]), what
        with pytest.raises(NotReady, match="cosigned by 1; missing 2"):
            cosigning.checkpoints.agreed()
        assert not cosigning.checkpoints.is_agreed(size)
        assert W2.name in caplog.text


def test_without_a_quorum_everything_is_agreed_on(cosigning: Cosigning) -> None:
    size, note = cosigning.grow()
    checkpoints = cosigning.publish(parse_trust_policy(BOTH.replace(b"quorum both", b"quorum none")))
    assert checkpoints.agreed() == Published(size, note)
    began = time.monotonic()
    assert checkpoints.settled(60) == Published(size, note)
    assert time.monotonic() - began < 30, "there is nothing to wait for"
    assert checkpoints.is_agreed(size)


def test_the_agreed_checkpoint_is_the_newest_with_a_quorum(cosigning: Cosigning) -> None:
    with pytest.raises(NotReady, match="both is not met: cosigned by nobody; missing 1, 2"):
        cosigning.checkpoints.agreed()
    cosigning.grow(W1, W3)
    with pytest.raises(NotReady, match="cosigned by 1; missing 2"):
        cosigning.checkpoints.agreed()
    size, note = cosigning.grow(W1, W2)
    agreed = cosigning.checkpoints.agreed()
    assert (agreed.size, agreed.note) == (size, add_lines(note, [signature(note, w).line for w in (W1, W2)]))
    later, later_note = cosigning.grow(W1)
    assert cosigning.checkpoints.agreed() == agreed
    cosigning.grow(W2)
    assert cosigning.checkpoints.agreed() == agreed, "two witnesses on two checkpoints agree on none"
    cosigning.stored.add(later, signature(later_note, W2))
    assert cosigning.checkpoints.agreed().size == later
    one = parse_trust_policy(BOTH.replace(b"group both all", b"group both any"))
    assert cosigning.publish(one).agreed().size == later + 1


def test_a_long_time_without_a_quorum_does_not_hide_the_last_one(
    cosigning: Cosigning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.cosigned.PAGE", 3)
    monkeypatch.setattr("ledger.cosigned.LOOK_BACK", 6)
    assert LOOK_BACK > 6
    size, _ = cosigning.grow(W1, W2)
    for _ in range(10):
        cosigning.grow(W1)
    for checkpoints in (cosigning.publish(parse_trust_policy(BOTH)), cosigning.checkpoints):
        assert [checkpoints.agreed().size for _ in range(3)] == [size] * 3


def test_settled_waits_for_a_quorum_on_everything_there_is(cosigning: Cosigning) -> None:
    cosigning.grow(W1, W2)
    size, note = cosigning.grow(W1)
    began = time.monotonic()
    assert cosigning.checkpoints.settled(0.3).note == add_lines(note, [signature(note, W1).line])
    assert time.monotonic() - began >= 0.3

    def later() -> None:
        cosigning.grow(W1)  # the newest is incomplete again; what holds everything asked for is enough
        cosigning.stored.add(size, signature(note, W2))

    threading.Timer(0.2, later).start()
    settled = cosigning.checkpoints.settled(30)
    assert settled.size == size
    assert settled.note.count("— ".encode()) == 3


def test_without_witnesses_there_is_the_newest_checkpoint_only(cosigning: Cosigning) -> None:
    size, note = cosigning.grow()
    plain = PlainCheckpoints(cosigning.log.store)
    assert (plain.newest().note, plain.settled(9).size) == (note, size)
    with pytest.raises(NotReady, match="asks no witnesses"):
        plain.agreed()
