"""One page of a list of events, and where the next one begins.

What a page costs does not depend on how long the log or the stream is: where only some of the events may be asked for,
MAX_SCAN of them are looked at, and a page may have few or none. The token of a page in one stream is a version, since
that is what the stream's events are found by; of every other page it is a position.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelledger.ledger.v1 import ledger_pb2

from ledger.errors import InvalidInput
from ledger.event_messages import MAX_SCAN, fitting
from ledger.store import Store, StoredRow

Page = tuple[Sequence[StoredRow], str]


def list_page(store: Store, request: ledger_pb2.ListEventsRequest, size: int) -> Page:
    """At most `size` events that the request asks for, and the next page's token. Raises InvalidInput."""
    reached = _reached(request.page_token) if request.page_token else None
    return (_of_stream if request.stream else _of_log)(store, request, size, reached)


def _of_stream(store: Store, request: ledger_pb2.ListEventsRequest, size: int, reached: int | None) -> Page:
    """Versions low + 1 to high. `reached`: the version that the page before ended with."""
    newest = store.select(stream=request.stream, descending=True, limit=1)
    low, high = max(0, request.after_version), newest[0].version if newest else 0
    if reached is not None:
        low, high = (low, min(high, reached - 1)) if request.descending else (reached, high)
    after, up_to = low, high
    if request.kinds or request.start_index or request.stream_prefix:
        after, up_to = _looked_at(low, high, request.descending)
    rows = store.select(
        start=request.start_index,
        stream=request.stream,
        stream_prefix=request.stream_prefix,
        kinds=request.kinds,
        after_version=after,
        up_to_version=up_to,
        descending=request.descending,
        limit=size + 1,
    )
    page = fitting(rows[:size])
    if len(rows) > len(page):
        return page, str(page[-1].version)
    if request.descending:
        return page, str(after + 1) if after > low else ""
    return page, str(up_to) if up_to < high else ""


def _of_log(store: Store, request: ledger_pb2.ListEventsRequest, size: int, reached: int | None) -> Page:
    """Positions low to high - 1. `reached`: where the next page begins or, newest first, the position behind it."""
    low, high = max(0, request.start_index), store.head.size
    if reached is not None:
        low, high = (low, min(high, reached)) if request.descending else (max(low, reached), high)
    start, stop = low, high
    rare = bool(request.stream_prefix) and store.is_rare(request.stream_prefix)
    if (request.stream_prefix or request.after_version > 0) and not rare:
        start, stop = _looked_at(low, high, request.descending)
    rows = store.select(
        start=start,
        stop=stop,
        stream_prefix=request.stream_prefix,
        kinds=request.kinds,
        after_version=request.after_version or None,
        descending=request.descending,
        limit=size + 1,
        rare=rare,
    )
    page = fitting(rows[:size])
    if len(rows) > len(page):
        return page, str(page[-1].position + (0 if request.descending else 1))
    if request.descending:
        return page, str(start) if start > low else ""
    return page, str(stop) if stop < high else ""


def _looked_at(low: int, high: int, descending: bool) -> tuple[int, int]:
    """The part of low..high that one page is looked for in, when only some of what is there may be asked for."""
    return (max(low, high - MAX_SCAN), high) if descending else (low, min(high, low + MAX_SCAN))


def _reached(token: str) -> int:
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidInput("page_token: is not one that this method gave out")
    return int(token)
