"""The law of consumer groups: whatever consumers and processes do, every event that a group wants ends acknowledged
exactly once or parked; per stream there is one consumer at a time, in the log's order.

Hypothesis plays consumers that die, come late, retry and park, a ledger that restarts, and a clock that is set forward
and back, against a model that knows nothing but what it was told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.groups import World, group, indexes, write

STREAMS = ("mail/1", "mail/1", "mail/2", "other/1")
MAX_ATTEMPTS, MAX_IN_FLIGHT = 2, 6
_names = itertools.count(1)


@dataclass
class Lease:
    """What one consumer believes to hold."""

    name: str
    consumer: str
    end: float
    length: float
    positions: list[int] = field(default_factory=list)


class Consumers(RuleBasedStateMachine):
    """One group of one log; `world` is set by the test."""

    world: World

    @initialize()
    def begin(self) -> None:
        self.name = f"group-{next(_names)}"
        start = self.world.store.head.size
        self.world.now = 1_000_000.0  # so that it is never set back beyond 1970
        self.world.groups.create(
            group(
                self.name,
                stream_prefix="mail/",
                max_attempts=MAX_ATTEMPTS,
                max_in_flight=MAX_IN_FLIGHT,
                start_index=start,
                position=start,
            )
        )
        self.stream: dict[int, str] = {}  # of every event the group wants
        self.leases: list[Lease] = []
        self.holder: dict[int, Lease] = {}  # the last lease of each event that was delivered and not settled
        self.attempts: dict[int, int] = {}
        self.not_before: dict[int, float] = {}
        self.delay: dict[int, float] = {}
        self.acked: set[int] = set()
        self.parked: set[int] = set()
        self.replayed: set[int] = set()

    @rule(streams=st.lists(st.sampled_from(STREAMS), min_size=1, max_size=8))
    def append(self, streams: list[str]) -> None:
        for position, stream in zip(write(self.world.store, streams), streams, strict=True):
            if stream.startswith("mail/"):
                self.stream[position] = stream

    @rule(
        consumer=st.sampled_from("ab"),
        limit=st.integers(1, 5),
        seconds=st.sampled_from([1, 10, 100]),
        resume=st.booleans(),
    )
    def claim(self, consumer: str, limit: int, seconds: int, resume: bool) -> None:
        now = self.world.now
        if resume:  # the consumer knows that its earlier life is over
            for mine in self.holder.values():
                if mine.consumer == consumer:
                    mine.end, mine.length = now, 0
        claimed = self.world.groups.claim(self.name, consumer, limit, seconds, resume=resume)
        before = dict(self.holder)
        self._begin_anew(now)
        lease = Lease(claimed.lease, consumer, now + seconds, seconds, indexes(claimed))
        self._learn_what_was_parked()
        assert len(lease.positions) <= limit
        for delivery in claimed.deliveries:
            position = delivery.event.position
            stream = self.stream[position]
            assert position not in self.acked | self.parked
            assert self.not_before.get(position, 0) <= now
            self.attempts[position] = self.attempts.get(position, 0) + 1
            assert delivery.attempt == self.attempts[position] <= MAX_ATTEMPTS
            assert delivery.attempt == 1 or len(lease.positions) == 1, "an event that comes again comes alone"
            for other, of in self.stream.items():
                if of == stream and other != position:
                    held = before.get(other)
                    assert held is None or held.end <= now, "two consumers at work on one stream"
                    settled = other in self.acked | self.parked or other in lease.positions or other in self.replayed
                    assert other > position or settled, "an event overtook an earlier one of its stream"
            self.holder[position] = lease
        if lease.positions:
            assert lease.positions == sorted(lease.positions)
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        lease, positions = self._some(data)
        settled = self.world.groups.ack(self.name, lease.name, positions)
        mine = self._mine(lease, positions)
        assert (set(settled.done), set(settled.lost)) == (mine, set(positions) - mine)
        assert not mine & self.acked, "acknowledged twice"
        self.acked |= mine
        self._settle(mine)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), delay=st.sampled_from([0, 5, 50]), counted=st.booleans())
    def retry(self, data: st.DataObject, delay: int, counted: bool) -> None:
        lease, positions = self._some(data)
        settled = self.world.groups.retry(self.name, lease.name, positions, delay, "again", counted=counted)
        mine = self._mine(lease, positions)
        spent = {position for position in mine if counted and self.attempts[position] >= MAX_ATTEMPTS}
        assert (set(settled.waiting), set(settled.parked)) == (mine - spent, spent)
        later = {
            other
            for other, held in self.holder.items()
            if held is lease
            and other not in mine
            and any(self.stream[other] == self.stream[first] and first < other for first in mine - spent)
        }
        assert set(settled.released) == later
        for position in later:
            self.attempts[position] = 0
        for position in mine:
            self.not_before[position] = self.world.now + delay
            self.delay[position] = delay
            self.attempts[position] -= not counted
        self.parked |= spent
        self._settle(mine | later)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        lease, positions = self._some(data)
        settled = self.world.groups.park(self.name, lease.name, positions, "look at it")
        assert set(settled.parked) == self._mine(lease, positions)
        self.parked |= set(settled.parked)
        self._settle(set(settled.parked))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        _, held = self.world.groups.extend(self.name, lease.name, 20)
        assert set(held) == {position for position, holder in self.holder.items() if holder is lease}
        lease.end, lease.length = self.world.now + 20, 20

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        asked = data.draw(st.lists(st.sampled_from(sorted(self.parked)), min_size=1, unique=True))
        if (
            self.world.groups.get(self.name).counts.leased + self.world.groups.get(self.name).counts.waiting
            < MAX_IN_FLIGHT
        ):
            self._replay(asked)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A consumer is never heard of again."""
        self.leases.remove(data.draw(st.sampled_from(self.leases)))

    @rule(seconds=st.sampled_from([1, 9, 40, 200]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += seconds

    @rule(seconds=st.sampled_from([5, 30, 5_000]))
    def the_clock_is_set_back(self, seconds: int) -> None:
        self.world.now -= seconds

    @rule()
    def the_ledger_restarts(self) -> None:
        self.world.restart()

    @invariant()
    def the_numbers_are_right(self) -> None:
        if not hasattr(self, "name"):
            return
        state = self.world.groups.get(self.name)
        assert state.group.acked == len(self.acked)
        assert state.counts.parked >= len(self.parked)
        taken = [position for position in self.stream if position < state.group.position]
        counted = state.counts.leased + state.counts.waiting
        assert len(taken) == len(self.acked) + state.counts.parked + counted
        assert counted <= MAX_IN_FLIGHT

    def teardown(self) -> None:
        """The consumers mend: everything ends acknowledged or parked, and after a replay everything is acknowledged."""
        if not hasattr(self, "name"):
            return
        self._drain()
        assert self.acked | self.parked == set(self.stream)
        assert not self.acked & self.parked
        while self.parked:
            self._replay([])
            self._drain()
        assert self.acked == set(self.stream)
        self.the_numbers_are_right()

    def _drain(self) -> None:
        self.claim("a", 1, 10, False)  # whoever claims finds out that the clock was set back
        self.world.now += 1_000
        while True:
            before = len(self.leases)
            self.claim("a", 5, 10, False)
            if len(self.leases) == before:
                return
            lease = self.leases[-1]
            done = self.world.groups.ack(self.name, lease.name, lease.positions).done
            assert set(done) == set(lease.positions)
            assert not set(done) & self.acked, "acknowledged twice"
            self.acked |= set(done)
            self._settle(set(done))

    def _replay(self, asked: list[int]) -> None:
        replayed, left = self.world.groups.replay(self.name, asked)
        assert replayed
        assert len(replayed) + left == len(asked or self.parked)
        assert set(replayed) <= self.parked
        self.parked -= set(replayed)
        self.replayed |= set(replayed)
        for position in replayed:
            self.attempts[position] = 0
            self.not_before[position] = 0

    def _begin_anew(self, now: float) -> None:
        """What was decided at a time that is yet to come lasts as long as it was to last, from now on."""
        for lease in {id(lease): lease for lease in self.holder.values()}.values():
            if lease.end - lease.length > now:
                lease.end = now + lease.length
        for position, delay in self.delay.items():
            if self.not_before[position] - delay > now:
                self.not_before[position] = now + delay

    def _learn_what_was_parked(self) -> None:
        """Only what was delivered too often, and whose lease is over, is parked without being asked for."""
        for row in self.world.groups.parked(self.name, 0, 1_000):
            if row.position not in self.parked:
                assert row.attempts == MAX_ATTEMPTS
                assert self.holder[row.position].end <= self.world.now
                self.parked.add(row.position)
                self._settle({row.position})

    def _some(self, data: st.DataObject) -> tuple[Lease, list[int]]:
        lease = data.draw(st.sampled_from(self.leases))
        return lease, data.draw(st.lists(st.sampled_from(lease.positions), min_size=1, unique=True))

    def _mine(self, lease: Lease, positions: list[int]) -> set[int]:
        return {position for position in positions if self.holder.get(position) is lease}

    def _settle(self, positions: set[int]) -> None:
        for position in positions:
            self.holder.pop(position, None)


@pytest.mark.slow  # some hundred small transactions for each of the stories that hypothesis makes up
def test_every_event_is_acknowledged_exactly_once_or_parked(world: World) -> None:
    made: Callable[[], Any] = type("Machine", (Consumers,), {"world": world})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        made,
        settings=settings(
            max_examples=80 if world.factory.kind == "sqlite" else 15,  # a transaction costs more there
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
