"""Pages of the lists that a service holds itself. Lists of the registry's view: ledger/paging.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ledger.errors import InvalidInput, InvalidName

PAGE_SIZE, MAX_PAGE_SIZE = 100, 1_000

Item = TypeVar("Item")


def page_size(asked: int) -> int:
    """How many items a page has: 0 is the default, more than the maximum is the maximum (AIP-158)."""
    if asked < 0:
        raise InvalidInput("page_size: is negative")
    return min(asked or PAGE_SIZE, MAX_PAGE_SIZE)


def page(items: Sequence[Item], asked: int, token: str) -> tuple[Sequence[Item], str]:
    """One page, and the next page's token ("" at the end). The token is the place where the page begins."""
    if token and not (token.isascii() and token.isdigit() and len(token) < 10):
        raise _not_ours()
    start = int(token or 0)
    end = start + page_size(asked)
    return items[start:end], str(end) if end < len(items) else ""


def last_name(token: str, parse: Callable[[str, str], str]) -> str:
    """Of a list by name: what the page before ended with, "" for the first. The token is that resource name."""
    try:
        return parse(token, "page_token") if token else ""
    except InvalidName:
        raise _not_ours() from None


def _not_ours() -> InvalidInput:
    return InvalidInput("page_token: is not one that this method gave out")
