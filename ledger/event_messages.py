"""Stored rows as messages of the API, and how many of them fit into one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelledger.ledger.v1 import ledger_pb2

from ledger.store import StoredRow

# A response stays below the 4 MiB that gRPC clients accept by default.
MAX_RESPONSE_BYTES = 3 << 20
_FIELDS_BYTES = 500  # of an event beside its entry, at most


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


def fitting(rows: Sequence[StoredRow], most: int = MAX_RESPONSE_BYTES) -> Sequence[StoredRow]:
    """As many of the rows, at least one, as fit one message."""
    total = 0
    for number, row in enumerate(rows):
        total += len(row.entry) + _FIELDS_BYTES
        if total > most and number:
            return rows[:number]
    return rows
