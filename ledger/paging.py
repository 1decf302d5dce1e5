"""Pages of a list: a scan over a view's rows, and the opaque token that says where the next page begins."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import TypeVar

from google.protobuf.message import Message

from ledger.errors import InvalidInput, Violation
from ledger.view_store import MAX_SCAN, ViewRows

DEFAULT_PAGE, MAX_PAGE = 100, 1_000
MAX_PAGE_BYTES = 1 << 20  # gRPC clients take messages of up to 4 MiB

Item = TypeVar("Item", bound=Message)


def page(
    rows: ViewRows,
    prefix: str,
    page_size: int,
    page_token: str,
    read: Callable[[str, bytes], Item | None],
    *,
    descending: bool = False,
) -> tuple[list[Item], str]:
    """One page of the rows under `prefix`, and the next page's token ("" at the end).

    `read` makes a row (key, document) an item, or None to leave it out. A page holds at most `page_size` items
    and about MAX_PAGE_BYTES, whichever comes first.
    """
    size, after = page_limit(page_size), _decode(rows, page_token, prefix)
    items: list[Item] = []
    total = 0
    while True:
        batch = rows.scan(prefix, after=after, limit=min(size + 1, MAX_SCAN), descending=descending)
        for key, document in batch:
            if len(items) == size or total >= MAX_PAGE_BYTES:
                return items, _encode(after)
            item = read(key, document)
            after = key
            if item is not None:
                items.append(item)
                total += item.ByteSize()
        if len(batch) < min(size + 1, MAX_SCAN):
            return items, ""


def within(items: Iterable[Item], size: int) -> list[Item]:
    """The first of the items, as many as a page holds: `size` of them, and about MAX_PAGE_BYTES."""
    held: list[Item] = []
    total = 0
    for item in items:
        if len(held) == size or total >= MAX_PAGE_BYTES:
            break
        held.append(item)
        total += item.ByteSize()
    return held


def page_limit(page_size: int) -> int:
    """How many items a page has: 0 is the default, more than the maximum is the maximum (AIP-158)."""
    if page_size < 0:
        raise _invalid("page_size", f"{page_size} is negative")
    return min(page_size or DEFAULT_PAGE, MAX_PAGE)


def _encode(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _decode(rows: ViewRows, token: str, prefix: str) -> str:
    """The key a token holds: that of a row of the same list, for rows of a list never go away."""
    if not token:
        return ""
    try:
        key = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except (binascii.Error, ValueError):
        key = ""
    ours = key.startswith(prefix) and key.isprintable() and _encode(key) == token
    if not ours or rows.get(key) is None:
        raise _invalid("page_token", "is not a token that this list gave; begin again without one")
    return key


def _invalid(field: str, description: str) -> InvalidInput:
    return InvalidInput(f"{field}: {description}", violations=[Violation(field, "INVALID_INPUT", description)])
