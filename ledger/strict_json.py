"""JSON without surprises: one reading of every accepted text, one writing of every value.

`loads` refuses what RFC 8259 leaves to the reader (duplicate keys, section 4; NaN, Infinity and numbers beyond
64 bits or a double, section 6; invalid UTF-8 and byte order marks, section 8.1; half a surrogate pair,
section 8.2), because two readers that disagree about an event would disagree about what was signed.
`canonical` writes sorted keys without spaces, so equal values have equal bytes and equal digests.

msgspec reads and writes most of it; where it could differ from what is said here, Python's own reader decides.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

MAX_DEPTH = 32
MAX_INTEGER = 2**64

T = TypeVar("T")

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_TWENTY_DIGITS = b"0" * 20  # as many as 2^64 has


class Written(Generic[T]):
    """Reads JSON of one form that is written as we write it: what it reads has that one reading."""

    def __init__(self, form: type[T], *, sort_fields: bool = True) -> None:
        # msgspec's own reading of a number like 9e307 takes a hundred times as long as Python's.
        self._decode = msgspec.json.Decoder(form, float_hook=float).decode
        self.write = msgspec.json.Encoder(order="sorted" if sort_fields else None).encode

    def read(self, data: bytes) -> T | None:
        """None says nothing yet: a text in another spelling, of another form, or no JSON.

        Where `form` leaves a value open, ask `is_bounded` of it.
        """
        # Written again it is the same: nothing in it is there twice, is left out, or could be read otherwise.
        try:
            value = self._decode(data)
            return value if self.write(value) == data else None
        except (ValueError, RecursionError):  # whoever reads it in another way says what is wrong
            return None

    def recall(self, data: bytes) -> T:
        """What was accepted before, in whatever spelling; nothing is checked again."""
        return self._decode(data)


def is_bounded(data: bytes, value: Any, depth: int = 0) -> bool:
    """Whether a value that was read from within `data`, so many levels down, keeps to the bounds that `loads` has."""
    shallow = data.count(b"{") + data.count(b"[") <= MAX_DEPTH
    return (shallow or _fits(value, MAX_DEPTH - depth)) and _TWENTY_DIGITS not in data.translate(_DIGITS)


def loads(data: bytes) -> Any:
    """Parse UTF-8 JSON bytes. Raises ValueError naming what is wrong."""
    value = _ANYTHING.read(data)
    return value if value is not None and is_bounded(data, value) else _read(data)


def _read(data: bytes) -> Any:
    """Any JSON, in four times the time."""
    try:
        text = data.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise ValueError("starts with a byte order mark")
    # A bound on nesting keeps hostile input from exhausting the parser's stack.
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at character {error.pos}: {error.msg}") from None
    if _ESCAPED_SURROGATE.search(text):
        try:
            canonical(value)
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair is not Unicode text") from None
    return value


def canonical(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8. Raises ValueError for NaN and Infinity."""
    return _ENCODER.encode(value).encode()


def document(value: Any) -> bytes:
    """`canonical` in a quarter of the time, for what was read by `loads` and is only to be read again: numbers with an
    exponent are spelled in another way."""
    return msgspec.json.encode(value, order="sorted")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key[:40]!r}")
            seen.add(key)
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _bounded(text: str) -> int:
    # 2^64 has 20 digits. Longer numbers are read differently by different readers (RFC 8259, section 6).
    if len(text) > 21 or not -MAX_INTEGER < (value := int(text)) < MAX_INTEGER:
        raise ValueError(f"{text[:24]}… is not an integer below 2^64")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:24]} is too large for a double")
    return value


# Made once: json.loads would make one for every text.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_bounded, parse_float=_finite
)


def _fits(value: Any, depth: int) -> bool:
    """Whether a value is nested at most so deep."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return children is None or (depth > 0 and all(_fits(child, depth - 1) for child in children))


def _depth(text: str) -> int:
    deepest = depth = 0
    inside_string = escaped = False
    for char in text:
        if inside_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                inside_string = False
        elif char == '"':
            inside_string = True
        elif char in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "}]":
            depth -= 1
    return deepest


_ANYTHING: Written[Any] = Written(Any)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
