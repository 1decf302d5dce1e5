"""Aggregates whose events are ledger events.

An aggregate is a stream: it folds the recorded events of its stream into state, and `trigger` adds the next one.
The eventsourcing library's Application saves what `collect_events` hands out and rebuilds an aggregate with
`repository.get(stream, projector_func=MyAggregate.project)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import Message

from ledger import statement
from ledger.statement import Artifact

Self = TypeVar("Self", bound="LedgerAggregate")


@dataclass(frozen=True)
class Recorded:
    """A domain event: what the eventsourcing library moves between aggregate and recorder."""

    originator_id: str
    originator_version: int
    data: Message
    subjects: tuple[Artifact, ...] = ()
    materials: tuple[Artifact, ...] = ()
    event_id: str = field(default_factory=statement.new_id)
    time: str = field(default_factory=statement.now)
    correlation: str = ""
    causation: str = ""
    actor: str = ""

    @property
    def kind(self) -> str:
        return self.data.DESCRIPTOR.name


class LedgerAggregate:
    """Base of all aggregates. A subclass has a method `on_<Kind>(event)` for every kind that changes its state."""

    def __init__(self, stream: str) -> None:
        self.id = stream
        self.version = 0
        self._pending: list[Recorded] = []

    def trigger(
        self,
        data: Message,
        subjects: Sequence[Artifact],
        materials: Sequence[Artifact] = (),
        *,
        event_id: str = "",
        causation: str = "",
    ) -> Recorded:
        """The next event of the stream, applied at once and saved with the aggregate."""
        event = Recorded(
            originator_id=self.id,
            originator_version=self.version + 1,
            data=data,
            subjects=tuple(subjects),
            materials=tuple(materials),
            event_id=event_id or statement.new_id(),
            causation=causation,
        )
        self.apply(event)
        self._pending.append(event)
        return event

    def apply(self, event: Recorded) -> None:
        """Fold one event. Kinds without a method only count as a version."""
        handler = getattr(self, f"on_{event.kind}", None)
        if handler is not None:
            handler(event)
        self.version = event.originator_version

    def collect_events(self) -> Sequence[Recorded]:
        collected, self._pending = self._pending, []
        return collected

    @classmethod
    def project(cls: type[Self], aggregate: Self | None, events: Iterable[Recorded]) -> Self | None:
        """The library's projector: events of one stream to an aggregate."""
        for event in events:
            aggregate = aggregate or cls(event.originator_id)
            aggregate.apply(event)
        return aggregate
