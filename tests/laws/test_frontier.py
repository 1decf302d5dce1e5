"""The root of a growing tree, kept in a few hashes, is the root of all its leaves, however they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.edge import Edge
from ledger.frontier import Frontier
from ledger.merkle import TILE_HEIGHT, TILE_WIDTH, leaf_hash, root, tile_root

LEAVES = [leaf_hash(b"%d" % i) for i in range(700)]


def test_every_size_has_the_root_of_rfc_6962() -> None:
    frontier = Frontier()
    assert frontier.root() == root([])
    for size, leaf in enumerate(LEAVES[:300], 1):
        frontier.append(leaf)
        assert (frontier.size, frontier.root()) == (size, root(LEAVES[:size]))


def test_a_tile_at_once_is_its_leaves_one_by_one() -> None:
    frontier = Frontier()
    for start in (0, TILE_WIDTH):
        tile = b"".join(LEAVES[start : start + TILE_WIDTH])
        frontier.append(tile_root(tile), TILE_HEIGHT)
    for leaf in LEAVES[2 * TILE_WIDTH :]:
        frontier.append(leaf)
    assert frontier.root() == root(LEAVES)
    with pytest.raises(ValueError, match="cannot stand at position 700"):
        frontier.append(LEAVES[0], TILE_HEIGHT)


@given(st.lists(st.integers(1, TILE_WIDTH), max_size=8))
def test_an_edge_extended_is_an_edge_appended_to(counts: list[int]) -> None:
    one, many, size = Edge(), Edge(), 0
    for count in counts:
        count = min(count, TILE_WIDTH - size % TILE_WIDTH, len(LEAVES) - size)
        if not count:
            return
        leaves = LEAVES[size : size + count]
        completed = [tile for leaf in leaves for tile in one.append(leaf)]
        assert many.extend(b"".join(leaves)) == completed
        size += count
        assert (many.size, many.root()) == (one.size, one.root())
        again = Edge.restored(many.size, [many.partial(level) for level in range(many.levels)])
        assert again.root() == one.root()


@pytest.mark.parametrize("length", [0, 31, 32 * (TILE_WIDTH - 9)])
def test_an_edge_takes_no_more_than_its_tile_has_room_for(length: int) -> None:
    edge = Edge()
    edge.extend(b"".join(LEAVES[:10]))
    with pytest.raises(ValueError, match="do not fit"):
        edge.extend(bytes(length))
