"""Finding evidence in the log: everything a version stands on, and everything needed to trust it offline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ledger.bundle import Statement
from ledger.errors import NotFound
from ledger.events import KINDS
from ledger.key_rules import KEY_KINDS
from ledger.provenance import is_version, version_name
from ledger.reading import read_event
from ledger.statement import Artifact, Event
from ledger.store import Store, StoredRow

PAGE = 500
# Streams that are shown whole, so that a left-out event is noticed: ledger/verify.py expects them so.
WHOLE_STREAMS = ("training-runs/", "quantizations/")


def of_version(store: Store, org: str, model: str, version: str) -> list[Statement]:
    """Every event that a certificate of the version may rest on, by index. Raises NotFound for an unknown version.

    That is what tells of the version, and, link by link, the events that introduced what those speak of.
    """
    found: dict[int, Statement] = {}
    stream = f"models/{org}/{model}"
    history = [statement_of(row) for row in _all(store, stream=stream)]
    created = [s for s in history if is_version(s.event, org, model, version)]
    if not created:
        existing = [version_name(s.event.data) for s in history if s.event.kind == "VersionCreated"]
        raise NotFound(f"{org}/{model} has no version {version}; it has {', '.join(existing) or 'none'}")
    found.update({s.index: s for s in created})
    adapters = {subject for s in created for subject in s.event.subjects}
    for statement in history:
        event = statement.event
        approves = event.kind == "ApprovalGiven" and event.data.get("version") == version
        measures = event.kind == "EvaluationCompleted" and not adapters.isdisjoint(event.subjects)
        if approves or measures:
            found[statement.index] = statement
    # What was quantised before it was created is of another one; a long log has many such.
    for row in _all(store, kinds=("QuantizationCompleted",), start=created[0].index):
        statement = statement_of(row)
        data = statement.event.data
        if (data.get("org"), data.get("model"), data.get("version")) == (org, model, version):
            found[statement.index] = statement
    return closure(store, found.values())


def closure(store: Store, statements: Iterable[Statement], size: int | None = None) -> list[Statement]:
    """The statements, and what introduced everything they consume or speak of; runs and quantisations whole."""
    found = {statement.index: statement for statement in statements}
    waiting, streams = list(found.values()), set()
    while waiting:
        event = waiting.pop().event
        more = []
        if event.stream.startswith(WHOLE_STREAMS) and event.stream not in streams:
            streams.add(event.stream)
            more += [row for row in _all(store, stream=event.stream, stop=size) if row.position not in found]
        for artifact in _mentioned(event):
            position = store.introduction(artifact.sha256, artifact.name)
            if position is None:
                raise NotFound(f"no event introduced {artifact.name} sha256:{artifact.sha256}")
            if position not in found:
                more.append(store.get(position))
        for row in more:
            if row.position not in found:
                found[row.position] = statement_of(row)
                waiting.append(found[row.position])
    return [found[index] for index in sorted(found)]


def key_history(store: Store, statements: Iterable[Statement], signer: str, size: int) -> list[Statement]:
    """Creation of the log, and every key event before `size` of the actors that signed, and of `signer`."""
    actors = {statement.event.actor for statement in statements} | {signer}
    found = {0: statement_of(store.get(0))}
    waiting = sorted(actors | {found[0].event.actor})
    while waiting:
        actor = waiting.pop()
        for row in _all(store, stream=f"actors/{actor}", kinds=KEY_KINDS, stop=size):
            found[row.position] = statement_of(row)
            if (by := found[row.position].event.actor) not in actors:
                actors.add(by)
                waiting.append(by)
    return [found[index] for index in sorted(found)]


def revoking(store: Store, statements: Iterable[Statement], size: int) -> list[Statement]:
    """The events before `size` that revoked anything the statements are about or consume."""
    digests = {a.sha256 for s in statements for a in (*s.event.subjects, *s.event.materials)}
    positions = (position for position in store.revocations(digests).values() if position < size)
    return [statement_of(row) for row in store.get_all(positions)]


def statement_of(row: StoredRow) -> Statement:
    return Statement(row.position, row.entry, read_event(row))


def _mentioned(event: Event) -> tuple[Artifact, ...]:
    return event.materials if KINDS[event.kind].introduces else (*event.materials, *event.subjects)


def _all(
    store: Store, *, stream: str = "", kinds: tuple[str, ...] = (), start: int = 0, stop: int | None = None
) -> Iterator[StoredRow]:
    after = None
    while rows := store.select(start=start, stop=stop, stream=stream, kinds=kinds, after_version=after, limit=PAGE):
        yield from rows
        # Each of them is in an index behind what is asked for.
        start, after = (start, rows[-1].version) if stream else (rows[-1].position + 1, None)
