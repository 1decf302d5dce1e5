"""One page of a list of events, and where the next one begins.

What a page costs does not depend on how long the log or the stream is. The token of a page in one stream is a version,
since that is what the stream's events are found by; of every other page it is a position.
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
    """`reached`: the version that the page before ended with."""
    after, up_to = request.after_version, None
    if reached is not None:
        after, up_to = (after, reached - 1) if request.descending else (reached, None)
    rows = store.select(
        start=request.start_index,
        stream=request.stream,
        stream_prefix=request.stream_prefix,
        kinds=request.kinds,
        after_version=after or None,
        up_to_version=up_to,
        descending=request.descending,
        limit=size + 1,
    )
    page = fitting(rows[:size])
    return page, str(page[-1].version) if len(rows) > len(page) else ""


def _of_log(store: Store, request: ledger_pb2.ListEventsRequest, size: int, reached: int | None) -> Page:
    """`reached`: the position that the next page begins with or, newest first, the one behind it.

    Unless they are rare, the events of a prefix are looked for in MAX_SCAN positions only: a page may have none.
    """
    first, end = request.start_index, store.head.size
    if reached is not None:
        first, end = (first, min(end, reached)) if request.descending else (max(first, reached), end)
    start, stop = first, end
    rare = bool(request.stream_prefix) and store.is_rare(request.stream_prefix)
    if request.stream_prefix and not rare:
        start, stop = (max(first, end - MAX_SCAN), end) if request.descending else (first, min(end, first + MAX_SCAN))
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
        return page, str(start) if start > first else ""
    return page, str(stop) if stop < end else ""


def _reached(token: str) -> int:
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidInput("page_token: is not one that this method gave out")
    return int(token)
