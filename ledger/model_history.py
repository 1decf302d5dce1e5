"""What the log tells about a model or a version and about everything it is made from, for the rendered files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from modelledger.ledger.v1 import events_pb2, registry_pb2

from ledger import registry_read
from ledger.errors import Refused
from ledger.reading import read_event
from ledger.registry_view import everything, find_version, node
from ledger.resource_names import ModelName, Number
from ledger.schema import from_data
from ledger.statement import Event
from ledger.store import Store
from ledger.view_store import ViewRows

MAX_EVENTS = 5_000

# Every epoch is in the run's own stream; a history tells what came of them.
_UNTOLD = ("EpochCompleted",)
_ENDED_WITHOUT_VERSION = {"TrainingFailed", "TrainingCancelled"}


@dataclass(frozen=True)
class Recorded:
    """An event and its index in the log."""

    index: int
    event: Event

    @property
    def record(self) -> Any:
        """The message of its kind."""
        return from_data(self.event.kind, self.event.data)


@dataclass(frozen=True)
class Ingredients:
    """What a version was made from, as it was recorded: (digest, record) of the bases and of the dataset."""

    bases: Sequence[tuple[str, events_pb2.BaseModelRegistered]]
    dataset: tuple[str, events_pb2.DatasetRegistered] | None


def history(store: Store, rows: ViewRows, name: ModelName, number: Number | None = None) -> list[Recorded]:
    """The events about a model, or about one version and its ancestors, oldest first.

    Includes failed runs and quantisations, and the events that introduced or revoked what it is made from.
    Raises Refused beyond MAX_EVENTS.
    """
    told = _Told(store, rows.next_position)
    streams = [name.stream]
    streams += [key.removeprefix(f"stream-of/{name}/") for key, _ in everything(rows, f"stream-of/{name}/")]
    lineage = None if number is None else _Versions(rows, name, number)
    for stream in streams:
        events = told.read(stream)
        told.add(events if lineage is None else lineage.about(stream, events))
    told.add_ancestors(rows)
    return told.in_order()


def ingredients(store: Store, rows: ViewRows, version: registry_pb2.Version) -> Ingredients:
    """The registrations of a version's bases and of its dataset."""

    def registration(sha256: str) -> Any:
        row = store.get(node(rows, sha256)["index"])
        return from_data(row.kind, read_event(row).data)

    bases = [(a.base_sha256, registration(a.base_sha256)) for a in version.record.adapters]
    dataset = version.training.dataset_sha256
    return Ingredients(bases, (dataset, registration(dataset)) if dataset else None)


class _Told:
    """The events gathered so far, each once."""

    def __init__(self, store: Store, stop: int) -> None:
        self._store = store
        self._stop = stop
        self._events: dict[int, Event] = {}

    def read(self, stream: str) -> list[Recorded]:
        rows = self._store.select(stream=stream, stop=self._stop, limit=None)
        return [Recorded(row.position, read_event(row)) for row in rows if row.kind not in _UNTOLD]

    def add(self, events: Iterable[Recorded]) -> None:
        self._events.update({item.index: item.event for item in events})
        if len(self._events) > MAX_EVENTS:
            raise Refused(f"the history has more than {MAX_EVENTS} events; ask for a single version, or read the log")

    def add_ancestors(self, rows: ViewRows) -> None:
        """The events that introduced and revoked whatever went into what is told so far."""
        waiting = [a.sha256 for event in self._events.values() for a in (*event.subjects, *event.materials)]
        seen = set(waiting)
        for sha256 in waiting:
            about = node(rows, sha256)
            for index in {about["index"], about.get("revoked", about["index"])} - self._events.keys():
                self.add([Recorded(index, read_event(self._store.get(index)))])
            for key, _ in everything(rows, f"parents/{sha256}/"):
                parent = key.rpartition("/")[2]
                if parent not in seen:
                    seen.add(parent)
                    waiting.append(parent)

    def in_order(self) -> list[Recorded]:
        return [Recorded(index, event) for index, event in sorted(self._events.items())]


class _Versions:
    """A version and the versions it continues: which events are about them?"""

    def __init__(self, rows: ViewRows, name: ModelName, number: Number) -> None:
        self._numbers: set[str] = set()
        self._runs: set[str] = set()
        self._artifacts: set[str] = set()
        self._created_at = registry_read.version_document(rows, name, number)["index"]
        text = str(number)
        while text and text not in self._numbers:
            document = find_version(rows, *name, text)
            if document is None:
                break  # the parent was never recorded; what the log does not hold is not told
            record: Any = from_data("VersionCreated", document["record"])
            self._numbers.add(text)
            self._runs.add(record.run)
            self._artifacts |= {a.sha256 for a in registry_read.new_adapters(document)}
            self._artifacts |= {file.file.file.sha256 for file in registry_read.files(rows, name, text)}
            text = record.parent_version

    def about(self, stream: str, events: Sequence[Recorded]) -> list[Recorded]:
        """Those events of a stream that are about these versions, or about attempts that led to none."""
        if stream.startswith("models/"):
            return [item for item in events if self._names(item) or self._speaks(item)]
        if stream.startswith("training-runs/"):
            made = stream.removeprefix("training-runs/") in self._runs
            failed = any(item.event.kind in _ENDED_WITHOUT_VERSION for item in events)
            return list(events) if made or (failed and events[0].index < self._created_at) else []
        return list(events) if any(self._names(item) for item in events) else []

    def _names(self, item: Recorded) -> bool:
        record = item.record
        if item.event.kind == "VersionCreated":
            return str(Number(record.major, record.minor)) in self._numbers
        return getattr(record, "version", None) in self._numbers

    def _speaks(self, item: Recorded) -> bool:
        """An evaluation names no version; it speaks of the version's artifacts."""
        subjects = {subject.sha256 for subject in item.event.subjects}
        return item.event.kind == "EvaluationCompleted" and not subjects.isdisjoint(self._artifacts)
