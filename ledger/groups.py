"""Consumer groups: every event that a group wants is delivered at least once, and ends acknowledged or parked.

    log ──take──► leased to a consumer ──ack──► done
                    │  ▲          │
                  retry│        park, or too many attempts
                  lease ends      ▼
                    └► waiting   parked ──replay──► waiting

An event that a group has taken from the log has a row until it is acknowledged, so what is lost with a consumer or
with this process is delivered again. Per stream there is one consumer at a time, in the log's order: while an event is
leased or waits for its next attempt, later ones of its stream wait too. Retrying an event gives back the later ones of
its stream that were delivered with it. An event that was delivered before comes alone: the one that kills its
consumer is found, and takes no others with it. Parking gives up the order for that event alone.

Times are this machine's; ledger processes that share a database need clocks that agree within a lease. A clock that is
set forward ends leases and delays early; when it is set back, those that are under way begin anew. Nothing is lost.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ledger.errors import AlreadyExists, NotFound, NotReady, Overloaded, Refused
from ledger.event_messages import MAX_RESPONSE_BYTES, fitting, message_bytes, read_page
from ledger.group_order import Taken, choose, take
from ledger.group_store import Changing, Counts, Group, GroupStore, Held
from ledger.store import Store, StoredRow

MAX_GROUPS = 1_000  # open ones
MAX_PARKED = 10_000  # of one group, before it delivers nothing more
MAX_REPLAYED = 1_000  # by one call
# A group that found nothing it wants writes down how far it looked only now and then.
WORTH_WRITING = 1_000  # positions


@dataclass(frozen=True)
class State:
    """A group as it is now. behind: positions from the first event on that it wants and has not taken."""

    group: Group
    counts: Counts
    behind: int


@dataclass(frozen=True)
class Delivery:
    """One event for one consumer. attempt: this one included."""

    event: StoredRow
    attempt: int
    last_reason: str


@dataclass(frozen=True)
class Claimed:
    """What a consumer may work on until `end` (milliseconds since 1970)."""

    lease: str = ""
    end: int = 0
    deliveries: tuple[Delivery, ...] = ()


@dataclass(frozen=True)
class Settled:
    """Positions by what became of them; `lost` are those that the lease does not hold any more."""

    done: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    parked: tuple[int, ...] = ()
    released: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()


class Groups:
    """The consumer groups of one log. `clock`: seconds since 1970."""

    def __init__(self, store: Store, groups: GroupStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._groups = groups
        self._clock = clock

    # Groups

    def create(self, group: Group) -> State:
        """Raises AlreadyExists when a group of this name wants something else."""
        if not self._groups.add(group, MAX_GROUPS):
            raise Overloaded(f"there are {MAX_GROUPS} open groups, and more are not allowed; close one first")
        found = self.get(group.name)
        _open(found.group, group.name)
        if replace(found.group, position=group.position, acked=0) != group:
            raise AlreadyExists(f"there is another group named {group.name!r}; choose another name")
        return found

    def get(self, name: str) -> State:
        return self._state(_existing(self._groups.get(name), name))

    def page(self, after: str, limit: int) -> list[State]:
        """Groups by name, beyond `after`."""
        return [self._state(group) for group in self._groups.page(after, limit)]

    def close(self, name: str, reason: str) -> State:
        """Deliver nothing more. The first reason stays."""
        with self._groups.changing(name) as change:
            if not _existing(change.group(), name).closed_reason:
                change.set(closed_reason=reason)
        return self.get(name)

    # Delivering

    def claim(self, name: str, consumer: str, limit: int, lease_seconds: float, *, resume: bool = False) -> Claimed:
        """Lease the next events, at most `limit`; none when there are none at the moment.

        `resume`: the leases that the consumer has from an earlier life end now.
        """
        while True:
            claimed, moved = self._claim(name, consumer, limit, lease_seconds, resume)
            if claimed.deliveries or not moved:
                return claimed

    def extend(self, name: str, lease: str, lease_seconds: float) -> tuple[int, Sequence[int]]:
        """(new end of the lease, events it still holds)"""
        with self._groups.changing(name) as change:
            _existing(change.group(), name)
            held, length = change.leased(lease), _milliseconds(lease_seconds)
            end = self._now() + length
            change.update(held, due=end, length=length)
        return end, _positions(held)

    def ack(self, name: str, lease: str, positions: Sequence[int]) -> Settled:
        with self._groups.changing(name) as change:
            _existing(change.group(), name)
            mine, lost = _mine(change, lease, positions)
            change.settle(mine)
        return Settled(done=_positions(mine), lost=lost)

    def retry(
        self,
        name: str,
        lease: str,
        positions: Sequence[int],
        delay_seconds: float,
        reason: str,
        *,
        counted: bool = True,
    ) -> Settled:
        """`counted` False: the attempt that ends here was none."""
        now, delay = self._now(), _milliseconds(delay_seconds)
        with self._groups.changing(name) as change:
            group = _existing(change.group(), name)
            mine, lost = _mine(change, lease, positions)
            spent = [row for row in mine if counted and row.attempts >= group.max_attempts]
            again = [row for row in mine if not counted or row.attempts < group.max_attempts]
            first = {row.stream: row.position for row in reversed(again)}
            asked = set(positions)
            released = [
                row
                for row in change.leased(lease)
                if row.stream in first and row.position > first[row.stream] and row.position not in asked
            ]
            change.update(spent, parked=True, lease="", due=now, reason=reason)
            change.update(again, lease="", due=now + delay, length=delay, reason=reason)
            if not counted:
                change.uncount(again)
            # Only events that come for the first time come together, so this was their first attempt.
            change.update(released, lease="", due=now, length=0, attempts=0)
        return Settled(waiting=_positions(again), parked=_positions(spent), released=_positions(released), lost=lost)

    def park(self, name: str, lease: str, positions: Sequence[int], reason: str) -> Settled:
        with self._groups.changing(name) as change:
            _existing(change.group(), name)
            mine, lost = _mine(change, lease, positions)
            change.update(mine, parked=True, lease="", due=self._now(), reason=reason)
        return Settled(parked=_positions(mine), lost=lost)

    # Parked events

    def parked(self, name: str, start: int, limit: int) -> list[Held]:
        """Parked events from position `start` on."""
        _existing(self._groups.get(name), name)
        return self._groups.parked(name, start, limit)

    def replay(self, name: str, positions: Sequence[int]) -> tuple[Sequence[int], int]:
        """(events that will be delivered again, how many of those asked for stay parked). All without positions."""
        with self._groups.changing(name) as change:
            group = _open(change.group(), name)
            asked = change.count_parked() if not positions else len(change.parked(positions, len(positions)))
            room = min(group.max_in_flight - len(change.held()), MAX_REPLAYED)
            if asked and room <= 0:
                raise Overloaded(
                    f"{group.max_in_flight} events of the group {name!r} are in flight, and it takes no more at once; "
                    "retry when some of them are settled"
                )
            rows = change.parked(positions, room) if asked else []
            change.update(rows, parked=False, attempts=0, due=self._now(), length=0)
        return _positions(rows), asked - len(rows)

    # How

    def _claim(self, name: str, consumer: str, limit: int, lease_seconds: float, resume: bool) -> tuple[Claimed, bool]:
        """What was claimed, and whether the group has moved on in the log."""
        now = self._now()
        group = _open(self._groups.get(name), name)
        # Read outside the transaction, which on SQLite keeps the log's own writer waiting.
        fresh, stop = self._fresh(group, limit)
        nothing = not fresh and stop - group.position < WORTH_WRITING
        if nothing and not resume and not self._groups.any_due(name, now):
            return Claimed(), False
        with self._groups.changing(name) as change:
            group = _open(change.group(), name)
            now = self._now()  # it may have waited for others, whose leases began meanwhile
            if resume:
                change.update(
                    [row for row in change.held() if row.lease and row.consumer == consumer], due=now, length=0
                )
            held = _park_spent(change, group, _from_now(change, now), now)
            if change.count_parked() < MAX_PARKED:
                return _lease(change, group, held, fresh, stop, _Wish(consumer, limit, lease_seconds, now))
        # Behind the transaction: what was parked in it stays so, or it would be there again for the next claim.
        raise NotReady(
            f"{MAX_PARKED} events of the group {name!r} are parked, so it delivers nothing more; look at them "
            f"(modelledger subscriptions parked {name}), mend the consumer, then replay them"
        )

    def _fresh(self, group: Group, limit: int) -> tuple[Sequence[StoredRow], int]:
        """The next events in the log that the group wants, and the position up to which there are no others."""
        size = self._store.head.size
        rows, stop = read_page(self._store, group.position, size, group.stream_prefix, group.kinds, limit)
        while not rows and stop < size:
            rows, stop = read_page(self._store, stop, size, group.stream_prefix, group.kinds, limit)
        return rows, stop

    def _state(self, group: Group) -> State:
        counts = self._groups.counts(group.name, self._now())
        size = self._store.head.size
        # Not to the log's end, as a claim does: there may be many groups that nobody uses.
        wanted, stop = read_page(self._store, group.position, size, group.stream_prefix, group.kinds, 1)
        return State(group, counts, max(0, size - (wanted[0].position if wanted else stop)))

    def _now(self) -> int:
        return _milliseconds(self._clock())


class _Wish(NamedTuple):
    """What a claim asks for. limit: events; now: milliseconds since 1970."""

    consumer: str
    limit: int
    lease_seconds: float
    now: int


def _lease(
    change: Changing, group: Group, held: list[Held], fresh: Sequence[StoredRow], stop: int, wish: _Wish
) -> tuple[Claimed, bool]:
    """Lease what the group holds and is due, then `fresh` events of the log; what that is, and whether the group has
    moved on in the log, of which nothing else up to `stop` is for it."""
    now = wish.now
    chosen = choose(held, now, wish.limit)
    reasons = [len(row.reason.encode()) for row in chosen]
    events = fitting(change.events(_positions(chosen)), beside=reasons)
    taken = Taken(position=group.position)
    if len(events) == len(chosen) and not any(row.attempts for row in chosen):
        # Another consumer may have moved the group on meanwhile.
        fresh = [row for row in fresh if row.position >= group.position]
        room = group.max_in_flight - len(held)
        taken = take(held, chosen, fresh, max(stop, group.position), wish.limit - len(chosen), room)
        taken = taken.fitting(MAX_RESPONSE_BYTES - sum(map(message_bytes, events)) - sum(reasons))
    chosen = chosen[: len(events)]
    lease, length = uuid.uuid4().hex, _milliseconds(wish.lease_seconds)
    end = now + length
    change.lease(chosen, lease, wish.consumer, end, length)
    change.take([Held(row.position, row.stream, 1, lease, wish.consumer, end, length, "") for row in taken.delivered])
    change.take([Held(row.position, row.stream, 0, "", "", now, 0, "") for row in taken.waiting])
    moved = taken.position > group.position
    if moved:
        change.set(position=taken.position)
    again = [
        Delivery(event, row.attempts + 1, f"the lease of {row.consumer} ended" if row.lease else row.reason)
        for row, event in zip(chosen, events, strict=True)
    ]
    deliveries = (*again, *(Delivery(event, 1, "") for event in taken.delivered))
    return (Claimed(lease, end, deliveries) if deliveries else Claimed()), moved


def _from_now(change: Changing, now: int) -> list[Held]:
    """What the group holds. Where the clock was set back, a lease or delay that is under way begins anew: otherwise
    nothing would be delivered until the clock is again where it was."""
    held = []
    for row in change.held():
        if row.set_back(now):
            row = row._replace(due=now + row.length)
            change.update([row], due=row.due)
        held.append(row)
    return held


def _park_spent(change: Changing, group: Group, held: list[Held], now: int) -> list[Held]:
    """Park what was delivered too often; the others that the group holds."""
    spent: list[Held] = []
    rest: list[Held] = []
    for row in held:
        (spent if row.due <= now and row.attempts >= group.max_attempts else rest).append(row)
    reason = f"delivered {group.max_attempts} times and never settled"
    change.update(spent, parked=True, lease="", due=now, reason=reason)
    return rest


def _mine(change: Changing, lease: str, positions: Sequence[int]) -> tuple[list[Held], tuple[int, ...]]:
    """The rows that the lease holds, and the positions that it does not."""
    wanted = set(positions)
    mine = [row for row in change.leased(lease) if row.position in wanted]
    return mine, tuple(sorted(wanted - set(_positions(mine))))


def _existing(group: Group | None, name: str) -> Group:
    if group is None:
        raise NotFound(f"there is no group {name!r}; CreateGroup makes one")
    return group


def _open(group: Group | None, name: str) -> Group:
    found = _existing(group, name)
    if found.closed_reason:
        raise Refused(f"the group {name!r} was closed: {found.closed_reason}")
    return found


def _positions(rows: Sequence[Held]) -> tuple[int, ...]:
    return tuple(row.position for row in rows)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1_000)
