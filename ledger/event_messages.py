"""Stored rows as messages of the API: which come next, and how many of them fit into one answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from modelledger.ledger.v1 import ledger_pb2

from ledger.store import Store, StoredRow

# A response stays below the 4 MiB that gRPC clients accept by default.
MAX_RESPONSE_BYTES = 3 << 20
_FIELDS_BYTES = 500  # of an event beside its entry, roughly at most
# A filter that matches next to nothing must not keep one query at work for minutes.
MAX_SCAN = 100_000  # positions


def event(row: StoredRow) -> ledger_pb2.Event:
    return ledger_pb2.Event(
        index=row.position, envelope=row.entry, id=row.id, stream=row.stream, version=row.version, kind=row.kind
    )


def fill(events: Any, rows: Sequence[StoredRow]) -> None:
    """Add the rows to a repeated field of events; made in place, the entries are copied once."""
    for row in rows:
        events.add(
            index=row.position, envelope=row.entry, id=row.id, stream=row.stream, version=row.version, kind=row.kind
        )


def message_bytes(row: StoredRow) -> int:
    """How much of a message an event takes, at most."""
    return len(row.entry) + _FIELDS_BYTES


def fitting(
    rows: Sequence[StoredRow], most: int = MAX_RESPONSE_BYTES, *, beside: Iterable[int] = repeat(0)
) -> Sequence[StoredRow]:
    """As many of the rows, at least one, as fit one message; `beside`: bytes that each needs for something else."""
    total = 0
    for number, (row, more) in enumerate(zip(rows, beside, strict=False)):
        total += message_bytes(row) + more
        if total > most and number:
            return rows[:number]
    return rows


def read_page(
    store: Store,
    start: int,
    size: int,
    stream_prefix: str,
    kinds: Sequence[str],
    limit: int,
    most: int = MAX_RESPONSE_BYTES,
) -> tuple[Sequence[StoredRow], int]:
    """The next events in a log of `size` that match, as many as fit one message, and the position to go on from.

    There may be none although there are some later: no more than MAX_SCAN positions are looked at.
    """
    rare = bool(stream_prefix) and store.is_rare(stream_prefix)
    stop = size if rare else min(size, start + MAX_SCAN)
    rows = store.select(start=start, stop=stop, stream_prefix=stream_prefix, kinds=kinds, limit=limit, rare=rare)
    page = fitting(rows, most)
    if len(page) < len(rows) or len(rows) == limit:
        stop = page[-1].position + 1
    return page, max(start, stop)
