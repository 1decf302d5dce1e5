"""What can happen to bytes on their way, as a Hypothesis strategy: changed, lost, doubled, swapped, mixed up."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[int]], int]

# Bytes that mean something in one of our formats.
TELLING = [0, 1, 9, 10, 13, 31, 32, 127, 128, 192, 255, *b'"+,-./:=[]{}\\0189ABabxnulleE_@\xe2\x80\x94']


@st.composite
def changed(draw: Draw, data: bytes, other: bytes = b"") -> bytes:
    """`data` after one to three changes; pieces of `other` may get into it. It may come out as it was."""
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from(CHANGES))
        data = change(draw, data, other)
    return data


def _place(draw: Draw, data: bytes) -> int:
    return draw(st.integers(0, max(0, len(data) - 1)))


def _span(draw: Draw, data: bytes) -> tuple[int, int]:
    start = _place(draw, data)
    return start, min(len(data), start + draw(st.sampled_from([1, 1, 2, 3, 8, 64, 1_000])))


def _flip(draw: Draw, data: bytes, other: bytes) -> bytes:
    place, mask = _place(draw, data), 1 << draw(st.integers(0, 7))
    return data[:place] + bytes(byte ^ mask for byte in data[place : place + 1]) + data[place + 1 :]


def _put(draw: Draw, data: bytes, other: bytes) -> bytes:
    place, byte = _place(draw, data), draw(st.sampled_from(TELLING))
    return data[:place] + bytes([byte]) + data[place + draw(st.integers(0, 1)) :]


def _delete(draw: Draw, data: bytes, other: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:start] + data[end:]


def _truncate(draw: Draw, data: bytes, other: bytes) -> bytes:
    return data[: _place(draw, data)]


def _double(draw: Draw, data: bytes, other: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:end] + data[start:end] * draw(st.sampled_from([1, 2, 100])) + data[end:]


def _swap(draw: Draw, data: bytes, other: bytes) -> bytes:
    start, end = _span(draw, data)
    place = _place(draw, data[end:]) + end
    return data[:start] + data[end:place] + data[start:end] + data[place:]


def _splice(draw: Draw, data: bytes, other: bytes) -> bytes:
    source = other or data
    return data[: _place(draw, data)] + source[_place(draw, source) :]


def _double_line(draw: Draw, data: bytes, other: bytes) -> bytes:
    lines = data.split(b"\n")
    place = draw(st.integers(0, len(lines) - 1))
    return b"\n".join([*lines[:place], lines[place], *lines[place:]])


def _swap_lines(draw: Draw, data: bytes, other: bytes) -> bytes:
    lines = data.split(b"\n")
    one, two = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    lines[one], lines[two] = lines[two], lines[one]
    return b"\n".join(lines)


def _delete_line(draw: Draw, data: bytes, other: bytes) -> bytes:
    lines = data.split(b"\n")
    del lines[draw(st.integers(0, len(lines) - 1))]
    return b"\n".join(lines)


CHANGES = (
    _flip,
    _put,
    _delete,
    _truncate,
    _double,
    _swap,
    _splice,
    _double_line,
    _swap_lines,
    _delete_line,
)
