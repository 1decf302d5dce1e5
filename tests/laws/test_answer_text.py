"""Text of an answer: however the bytes are cut into tokens, the same text comes out, and never part of a stop."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from inference.answer_text import AnswerText

ALPHABET = "abé😀"  # 1, 1, 2 and 4 bytes; few letters, so that stop strings overlap themselves and each other
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=4)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(bounds)]


def expected(text: str, stops: list[str]) -> str:
    """By the definition, slowly: read on until the text ends with a stop string; take the longest such one off."""
    for end in range(len(text) + 1):
        ends = [stop for stop in stops if text[:end].endswith(stop)]
        if ends:
            return text[: end - max(map(len, ends))]
    return text


@given(st.text(ALPHABET, max_size=40), STOPS, st.lists(st.integers(0, 200), max_size=20))
def test_the_text_is_cut_before_the_first_complete_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    answer, shown = AnswerText(stops), ""
    for piece in pieces_of(text.encode(), cuts):
        shown += answer.push(piece)
        assert text.startswith(shown)
        assert len(shown) <= len(expected(text, stops))
    shown += answer.finish()
    assert shown == expected(text, stops)
    assert answer.stopped == (shown != text)


@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=20))
def test_any_bytes_become_text(data: bytes, cuts: list[int]) -> None:
    answer = AnswerText()
    shown = "".join(answer.push(piece) for piece in pieces_of(data, cuts)) + answer.finish()
    assert shown == data.decode(errors="replace")


def test_nothing_waits_longer_than_it_must() -> None:
    answer = AnswerText(["stop"])
    assert answer.push(b"a st") == "a "
    assert answer.push(b"ay") == "stay"
    assert answer.push("é".encode()[:1]) == ""
    assert answer.push("é".encode()[1:]) == "é"
