"""Strict JSON: one reading of every accepted text, one writing of every value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import strict_json

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64) + 1, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc\u00e9\u0000"), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_what_is_written_is_read_back_and_written_the_same(value: object) -> None:
    data = strict_json.canonical(value)
    assert strict_json.loads(data) == value
    assert strict_json.canonical(strict_json.loads(data)) == data


@given(values)
def test_other_spellings_of_a_value_are_read_as_the_same(value: object) -> None:
    spaced = json.dumps(value, indent=1).encode()  # also escapes everything outside ASCII
    assert strict_json.canonical(strict_json.loads(spaced)) == strict_json.canonical(value)


@given(values)
def test_the_quick_reading_is_the_careful_one(value: object) -> None:
    for data in (strict_json.canonical(value), strict_json.document(value), json.dumps(value).encode()):
        assert repr(strict_json.loads(data)) == repr(strict_json._read(data))  # 1 is not 1.0, nor True


@given(values)
def test_a_document_is_read_back(value: object) -> None:
    data = strict_json.document(value)
    assert repr(strict_json.loads(data)) == repr(strict_json.loads(strict_json.canonical(value)))
    assert strict_json.document(strict_json.loads(data)) == data


@pytest.mark.parametrize("value", [-(2**63) - 1, -(2**64) + 1, 2**64 - 1, 1e16, 1e-7, -0.0, 5e-324])
def test_numbers_at_the_limits_of_a_document(value: float) -> None:
    assert repr(strict_json.loads(strict_json.document({"a": value}))) == repr({"a": value})


@given(st.binary(max_size=40))
def test_bytes_are_read_or_refused_with_a_value_error(data: bytes) -> None:
    try:
        value = strict_json.loads(data)
    except ValueError:
        return
    assert strict_json.loads(strict_json.canonical(value)) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":1,"a":2}', "duplicate key 'a'"),
        (b'{"b":{"a":1,"c":2,"a":1}}', "duplicate key 'a'"),
        (b'{"a":1,"\\u0061":2}', "duplicate key 'a'"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[Infinity]", "Infinity is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[1e400]", "too large for a double"),
        (b"[18446744073709551616]", "not an integer below 2\\^64"),
        (b"[" + b"9" * 5_000 + b"]", "not an integer below 2\\^64"),
        (b'"\xff"', "not valid UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "not valid UTF-8"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\uDFFF":1}', "surrogate"),
        (b'["\\ude00\\ud83d"]', "surrogate"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"{}{}", "Extra data"),
        (b"{} x", "Extra data"),
        (b"{}\x00", "Extra data"),
        (b"", "not JSON at character 0"),
        (b"{'a':1}", "not JSON"),
        (b"[1,]", "not JSON"),
        (b"[01]", "not JSON"),
        (b'"\n"', "not JSON"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32"),
        (b'{"a":[' * 17 + b"]}" * 17, "nested deeper than 32"),
        (b"[" * 100_000, "nested deeper than 32"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strict_json.loads(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b' {"a" : [ ] }\n', {"a": []}),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'"{[{[{[{[{[{[{[{[{[{[{[{[{[{[{[{[{[{[{[{[{["', "{[" * 21),
        (b"[" * 32 + b"]" * 32, None),
        (b"18446744073709551615", 2**64 - 1),
        (b"-0.0", 0.0),
        (b'"\\u0000"', "\x00"),
    ],
)
def test_accepted(data: bytes, value: object) -> None:
    read = strict_json.loads(data)
    assert value is None or read == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}, "\ud800"])
def test_what_has_no_json_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|surrogates"):
        strict_json.canonical(value)
