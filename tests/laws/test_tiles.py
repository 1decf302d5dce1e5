"""Tile names and entry bundles: one spelling each, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.merkle import Tile
from ledger.tiles import bundle_path, decode_bundle, encode_bundle, parse_bundle_path, parse_tile_path, tile_path

indexes = st.one_of(st.integers(0, 2_000), st.integers(0, 2**55 - 1))
widths = st.integers(1, 256)


@given(level=st.integers(0, 63), index=indexes, width=widths)
def test_tile_paths_are_inverse(level: int, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert parse_tile_path(tile_path(tile)) == tile


@given(index=indexes, width=widths)
def test_bundle_paths_are_inverse(index: int, width: int) -> None:
    assert parse_bundle_path(bundle_path(index, width)) == (index, width)


@given(st.from_regex(r"tile/([0-9]{1,2}|entries)/(x[0-9]{3}/){0,3}[0-9]{2,4}(\.p/[0-9]{1,3})?", fullmatch=True))
def test_an_accepted_path_is_the_one_we_write(path: str) -> None:
    try:
        written = bundle_path(*parse_bundle_path(path)) if "entries" in path else tile_path(parse_tile_path(path))
    except ValueError:
        return
    assert written == path


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=256))
def test_bundles_are_inverse(entries: list[bytes]) -> None:
    assert decode_bundle(encode_bundle(entries)) == entries


@given(st.binary(max_size=2_000))
def test_an_accepted_bundle_is_the_one_we_write(data: bytes) -> None:
    try:
        entries = decode_bundle(data)
    except ValueError:
        return
    assert encode_bundle(entries) == data


def test_bounds() -> None:
    assert decode_bundle(encode_bundle([bytes(65_535)])) == [bytes(65_535)]
    with pytest.raises(ValueError, match="entry 1 has 65536 bytes"):
        encode_bundle([b"", bytes(65_536)])
    for entries in ([], [b""] * 257):
        with pytest.raises(ValueError, match="1 to 256"):
            encode_bundle(entries)
    for level, index, width in [(64, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)]:
        with pytest.raises(ValueError, match="no such tile"):
            Tile(level, index, width)
    for index, width in [(-1, 1), (0, 0), (0, 257)]:
        with pytest.raises(ValueError, match="no such bundle"):
            bundle_path(index, width)
    with pytest.raises(ValueError, match="beyond"):
        tile_path(Tile(0, 2**55, 1))
