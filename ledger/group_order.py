"""Which events of a group may be delivered now, so that each stream keeps its order and has one consumer at a time.

Two pure functions: `choose` among the events that the group already holds, `take` among the next ones of the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.event_messages import fitting
from ledger.group_store import Held
from ledger.store import StoredRow


@dataclass(frozen=True)
class Taken:
    """From the log: what is delivered, what waits for an earlier event of its stream, and the position behind them."""

    delivered: Sequence[StoredRow] = ()
    waiting: Sequence[StoredRow] = ()
    position: int = 0

    def fitting(self, most: int) -> Taken:
        """The same, with no more delivered than fits one message."""
        delivered = fitting(self.delivered, most)
        if len(delivered) == len(self.delivered):
            return self
        position = self.delivered[len(delivered)].position
        return Taken(delivered, [row for row in self.waiting if row.position < position], position)


def choose(held: Sequence[Held], now: int, limit: int) -> list[Held]:
    """Those to deliver again, or for the first time after they had to wait. `held` is everything, by position.

    A stream with an event that is leased, or whose next attempt is not due, delivers nothing. An event that was
    delivered before comes alone.
    """
    busy = {row.stream for row in held if row.due > now}
    chosen: list[Held] = []
    for row in held:
        if row.stream in busy:
            continue
        if row.attempts:
            return chosen or [row]
        chosen.append(row)
        if len(chosen) == limit:
            break
    return chosen


def take(
    held: Sequence[Held], chosen: Sequence[Held], fresh: Sequence[StoredRow], stop: int, limit: int, room: int
) -> Taken:
    """Deliver at most `limit` of the log's next events, and hold at most `room` more.

    `fresh` are all events before `stop` that the group wants and does not hold; `chosen` are delivered with them.
    """
    taken = {row.position for row in chosen}
    blocked = {row.stream for row in held if row.position not in taken}
    delivered: list[StoredRow] = []
    waiting: list[StoredRow] = []
    for row in fresh:
        full = row.stream not in blocked and len(delivered) == limit
        if full or len(delivered) + len(waiting) == room:
            return Taken(delivered, waiting, row.position)
        (waiting if row.stream in blocked else delivered).append(row)
    return Taken(delivered, waiting, stop)
