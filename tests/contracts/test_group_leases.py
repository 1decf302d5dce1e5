"""How long a consumer of a group has what it was given, on every database: consumers that die, clocks that are set."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
from sqlalchemy import text

from ledger.group_store import Changing
from ledger.groups import Claimed
from tests.databases import StoreFactory
from tests.groups import World, group, indexes, write

HOURS = 5 * 3_600.0


def test_an_event_of_a_dead_consumer_is_delivered_again_and_its_late_ack_is_refused(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1"])
    dead = world.groups.claim("mail", "a", 10, 60)
    world.now += 59
    assert world.groups.claim("mail", "b", 10, 60).deliveries == ()
    world.now += 2
    world.restart()
    again = world.groups.claim("mail", "b", 10, 60)
    assert [(d.event.position, d.attempt, d.last_reason) for d in again.deliveries] == [(0, 2, "the lease of a ended")]
    assert world.groups.ack("mail", dead.lease, [0]).lost == (0,)
    assert world.groups.ack("mail", again.lease, [0]).done == (0,)
    assert world.groups.ack("mail", again.lease, [0]).lost == (0,)


def test_a_consumer_that_starts_anew_gets_what_it_held_at_once(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1", "s/2", "s/3"])
    dead = world.groups.claim("mail", "a", 1, 60)
    other = world.groups.claim("mail", "b", 1, 60)
    again = world.groups.claim("mail", "a", 10, 60, resume=True)
    assert [(d.event.position, d.attempt, d.last_reason) for d in again.deliveries] == [(0, 2, "the lease of a ended")]
    assert world.groups.ack("mail", dead.lease, [0]).lost == (0,)
    assert indexes(world.groups.claim("mail", "a", 10, 60)) == [2]
    assert world.groups.ack("mail", other.lease, [1]).done == (1,), "what others hold stays theirs"


def test_a_late_ack_counts_while_nobody_else_has_the_event(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1"])
    late = world.groups.claim("mail", "a", 10, 1)
    world.now += 100
    assert world.groups.ack("mail", late.lease, [0]).done == (0,)


def test_a_lease_can_be_extended(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1", "s/2"])
    lease = world.groups.claim("mail", "a", 10, 60).lease
    world.groups.ack("mail", lease, [0])
    world.now += 50
    assert world.groups.extend("mail", lease, 60) == ((1_000_050 + 60) * 1_000, (1,))
    world.now += 50
    assert world.groups.claim("mail", "b", 10, 60).deliveries == ()
    assert world.groups.extend("mail", "0" * 32, 60)[1] == ()


def test_when_the_clock_is_set_back_leases_and_delays_begin_anew(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1", "s/2", "s/2", "s/3"])
    dead = world.groups.claim("mail", "a", 10, 60).lease
    world.groups.retry("mail", dead, [1], 30, "x")
    world.now -= HOURS
    assert world.groups.claim("mail", "b", 10, 60).deliveries == (), "their time begins now"
    assert world.groups.get("mail").counts.leased == 2
    world.now += 29
    assert world.groups.claim("mail", "b", 10, 60).deliveries == ()
    world.now += 1
    again = world.groups.claim("mail", "b", 10, 60)
    assert indexes(again) == [1]
    world.groups.ack("mail", again.lease, [1])
    assert indexes(world.groups.claim("mail", "b", 10, 60)) == [2], "it was given back, and waits for no clock"
    world.now += 29
    assert world.groups.claim("mail", "b", 10, 60).deliveries == ()
    world.now += 1
    assert world.groups.ack("mail", dead, [0]).done == (0,), "nobody else has it yet"
    assert indexes(world.groups.claim("mail", "b", 10, 60)) == [3]


def test_a_claim_that_waits_for_the_database_ends_nobodys_lease(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else claims while it waits: by its own older time that lease looks as if the clock were set back."""
    world.groups.create(group())
    write(world.store, ["s/1", "s/2"])
    changing, others = world.groups._groups.changing, list[Claimed]()

    def slow(name: str) -> AbstractContextManager[Changing]:
        monkeypatch.setattr(world.groups._groups, "changing", changing)
        world.now += 20
        others.append(world.groups.claim("mail", "a", 1, 10))
        return changing(name)

    monkeypatch.setattr(world.groups._groups, "changing", slow)
    late = world.groups.claim("mail", "b", 2, 10)
    [early] = others
    assert (indexes(early), indexes(late)) == ([0], [1])
    assert early.end == late.end == (1_000_000 + 20 + 10) * 1_000
    assert world.groups.claim("mail", "c", 2, 10).deliveries == (), "both have their leases"


def test_when_the_clock_is_set_forward_leases_end_early_and_nothing_is_lost(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1", "s/2"])
    early = world.groups.claim("mail", "a", 10, 60).lease
    world.now += HOURS
    again = world.groups.claim("mail", "b", 10, 60)
    assert indexes(again) == [0]
    assert world.groups.ack("mail", early, [0, 1]).lost == (0,)
    world.now -= HOURS
    assert world.groups.ack("mail", again.lease, [0]).done == (0,)
    assert world.groups.get("mail").group.acked == 2


def test_a_database_from_before_lengths_were_kept_is_brought_up(world: World, store_factory: StoreFactory) -> None:
    world.groups.create(group())
    write(world.store, ["s/1"])
    lease = world.groups.claim("mail", "a", 10, 86_400).lease
    with world.store._writer.begin() as connection:
        connection.execute(text("ALTER TABLE group_deliveries DROP COLUMN length"))
        connection.execute(text("DELETE FROM migrations WHERE name = 'm004_lengths'"))
    store_factory.reopen(world.store)
    assert world.groups.claim("mail", "b", 10, 60).deliveries == (), "a lease lasts as long as was said"
    assert world.groups.ack("mail", lease, [0]).done == (0,)
