"""Fingerprints: the known answers, and names with dots that read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InvalidName
from ledger.fingerprint import Fingerprint, LanguageFingerprint, fingerprint, language_fingerprint, parse

MODEL, WEIGHTS = "OneSeek-7B-Zero", {"mistral-7b": 0.6, "llama-2": 0.4}
CATEGORIES, TIME = ["CivicID", "SwedID"], "2025-11-21T12:00:00Z"

names = st.text("abcXYZ019.-_", min_size=1, max_size=30)
versions = st.builds("v{}.{}".format, st.integers(0, 99), st.integers(0, 99))
category_lists = st.lists(st.text("abcDEF019_", min_size=1, max_size=9), min_size=1, max_size=4)
weights = st.dictionaries(names, st.floats(0, 1), max_size=3)


def test_known_answers() -> None:
    plain = fingerprint(MODEL, "v1.0", WEIGHTS, CATEGORIES, TIME)
    language = language_fingerprint(MODEL, "v1.0", "en", WEIGHTS, CATEGORIES, TIME)
    assert str(plain) == "OneSeek-7B-Zero.v1.0.6b30afe8.4539991e.a16f0dd0"
    assert str(language) == "OneSeek-7B-Zero.v1.0.en.dsCivicID-SwedID.6b30afe8.a16f0dd0"


def test_order_does_not_matter() -> None:
    turned = fingerprint(MODEL, "v1.0", dict(reversed(WEIGHTS.items())), CATEGORIES[::-1], TIME)
    assert turned == fingerprint(MODEL, "v1.0", WEIGHTS, CATEGORIES, TIME)


@given(names, versions, weights, category_lists)
def test_plain_form_round_trips(model: str, version: str, of: dict[str, float], categories: list[str]) -> None:
    label = fingerprint(model, version, of, categories, TIME)
    assert parse(str(label)) == label
    assert isinstance(label, Fingerprint)


@given(names, versions, st.sampled_from(["en", "sv", "nds"]), category_lists)
def test_language_form_round_trips(model: str, version: str, language: str, categories: list[str]) -> None:
    label = language_fingerprint(model, version, language, WEIGHTS, categories, TIME)
    assert parse(str(label)) == label
    assert isinstance(label, LanguageFingerprint)


def test_a_name_that_looks_like_a_fingerprint_reads_back() -> None:
    inner = str(fingerprint("a.b", "v1.0", WEIGHTS, CATEGORIES, TIME))
    assert parse(str(fingerprint(inner, "v2.10", WEIGHTS, CATEGORIES, TIME))) == fingerprint(
        inner, "v2.10", WEIGHTS, CATEGORIES, TIME
    )


@pytest.mark.parametrize(
    ("model", "version"), [("", "v1.0"), ("a/b", "v1.0"), ("a b", "v1.0"), ("a", "1.0"), ("a", "v01.0")]
)
def test_what_would_not_read_back_is_refused(model: str, version: str) -> None:
    with pytest.raises(InvalidName):
        fingerprint(model, version, WEIGHTS, CATEGORIES, TIME)


@pytest.mark.parametrize(
    ("language", "category"), [("english", "a"), ("EN", "a"), ("en", "a-b"), ("en", "a.b"), ("en", "")]
)
def test_language_form_refuses_parts_that_hold_its_separators(language: str, category: str) -> None:
    with pytest.raises(InvalidName):
        language_fingerprint("m", "v1.0", language, WEIGHTS, [category], TIME)
