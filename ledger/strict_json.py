"""JSON without surprises: one reading of every accepted text, one writing of every value.

`loads` refuses what RFC 8259 leaves to the reader (duplicate keys, section 4; NaN, Infinity and numbers beyond
64 bits or a double, section 6; invalid UTF-8 and byte order marks, section 8.1; half a surrogate pair,
section 8.2), because two readers that disagree about an event would disagree about what was signed.
`canonical` writes sorted keys without spaces, so equal values have equal bytes and equal digests.

orjson reads and writes most of it; where it could differ from what is said here, Python's own reader decides.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import Any, NoReturn

import orjson

MAX_DEPTH = 32
MAX_INTEGER = 2**64

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(data: bytes) -> Any:
    """Parse UTF-8 JSON bytes. Raises ValueError naming what is wrong."""
    # What is written as we write it has one reading: nothing in it can be twice, or be read otherwise.
    with contextlib.suppress(ValueError, TypeError):  # what is wrong with it is said below
        value = orjson.loads(data)
        if orjson.dumps(value, option=orjson.OPT_SORT_KEYS) == data and (
            data.count(b"{") + data.count(b"[") <= MAX_DEPTH or _fits(value, MAX_DEPTH)
        ):
            return value
    return _read(data)


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
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer below -2^63
        return canonical(value)


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


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
