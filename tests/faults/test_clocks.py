"""The wall clock is set forward and back while a ledger runs: what is in the log depends on positions alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from modelledger.client import Client

from ledger.cosignature import cosignatures
from ledger.errors import RevokedActor
from ledger.witness.serving import open_witness
from tests.databases import log_signer
from tests.faults.clock import Clock
from tests.faults.ledger_process import FOUNDING, ledger_process
from tests.logs import dataset, event_of, signer
from tests.witnesses import TinyLog

HOUR = 3_600


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


def test_positions_and_keys_follow_the_log_and_not_the_clock(tmp_path: Path, clock: Clock) -> None:
    written = FOUNDING
    for start, *jumps in ((0, 5 * HOUR, -7 * HOUR), (-9 * HOUR, 40 * 24 * HOUR, -1)):  # from the machine's own clock
        clock.set(start)
        with ledger_process(tmp_path, **clock.environment) as ledger, Client(ledger.address) as client:
            watching = client.watch()
            assert len(next(watching).events) == written
            key = signer(written) if written > FOUNDING else ledger.trainer
            for jump in jumps:
                clock.set(jump)
                assert ledger.append(dataset(f"d{written}", key)[1]) == [written]
                [trainer] = [actor for actor in client.actors() if actor.name == "actors/trainer"]
                old, key = key, signer(written + 2)
                client.rotate_actor_key(trainer, key, "the clock was set")
                with pytest.raises(RevokedActor):
                    ledger.append(dataset("refused", old)[1])
                written += 2
            seen: list[int] = []
            while len(seen) < 2 * len(jumps):
                seen += [event.index for event in next(watching).events]
            assert seen == list(range(written - len(seen), written))
            assert ledger.verify() == written
            rotations = [event_of(client.event(index).envelope) for index in range(FOUNDING + 1, written, 2)]
    times = [event.time for event in rotations]
    assert {event.kind for event in rotations} == {"ActorKeyRotated"}
    assert [later < earlier for earlier, later in pairwise(times)] == [True, False, True], "the clock was set"


def test_consumer_groups_lose_nothing_and_wait_no_longer_than_a_lease(tmp_path: Path, clock: Clock) -> None:
    with ledger_process(tmp_path, **clock.environment) as ledger, Client(ledger.address) as client:
        client.create_group("mail", kinds=["DatasetRegistered"])
        ledger.append(dataset("one", ledger.trainer)[1])
        dead = client.claim("mail", "dead", lease_seconds=1)
        assert [(one.event.index, one.attempt) for one in dead.deliveries] == [(FOUNDING, 1)]
        clock.set(-2 * HOUR)
        slow = client.claim("mail", "slow", lease_seconds=3_000, wait_seconds=30)
        assert [(one.event.index, one.attempt) for one in slow.deliveries] == [(FOUNDING, 2)]
        assert not client.claim("mail", "third").deliveries
        clock.set(2 * HOUR)
        third = client.claim("mail", "third")
        assert [(one.event.index, one.attempt) for one in third.deliveries] == [(FOUNDING, 3)]
        clock.set(-2 * HOUR)
        assert list(client.ack("mail", slow.lease, [FOUNDING]).lost) == [FOUNDING]
        assert list(client.ack("mail", third.lease, [FOUNDING]).acked) == [FOUNDING]
        group = client.group("mail")
        assert (group.acked, group.leased, group.waiting, group.parked) == (1, 0, 0, 0)
        assert ledger.verify() == FOUNDING + 1


def test_a_witness_cosigns_what_continues_whatever_its_clock_says(tmp_path: Path) -> None:
    log, old = TinyLog(log_signer()), 0
    witness, _ = open_witness(tmp_path, "witness.example/w", [log.signer.verifier])
    for size, now in ((3, 2_000_000_000), (5, 1_000_000_000), (5, 1_000_000_001), (9, 3_000_000_000)):
        witness._now = lambda now=now: float(now)
        answer = witness.add_checkpoint(log.request(old, size))
        assert answer.status == 200
        [line] = cosignatures(log.grow(size) + answer.body, [witness.cosigner.verifier])
        assert line.timestamp == now
        old = size
    fork = TinyLog(log_signer(), "fork")
    witness._now = lambda: 1.0
    assert witness.add_checkpoint(fork.request(5, 9)).status == 409
    assert witness.add_checkpoint(fork.request(9, 10)).status == 422
