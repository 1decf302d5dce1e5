"""The tree against a naive reading of RFC 6962, published cases, and every single changed byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.edge import Edge, LogTiles
from ledger.merkle import (
    EMPTY_ROOT,
    TILE_WIDTH,
    StoredTile,
    Tile,
    consistency_proof,
    inclusion_proof,
    inclusion_proofs,
    leaf_hash,
    node_hash,
    root,
    root_from_tiles,
    tile_nodes,
    tile_root,
    tile_width,
    verify_consistency,
    verify_inclusion,
)

BIG = 66_000  # beyond 256 * 256, so three levels of tiles
LEAVES = [leaf_hash(i.to_bytes(4, "big")) for i in range(BIG)]
REFUSALS = "no leaf|leads to|too (long|short)|no consistency|different roots|must be empty|is empty|bytes"
INTERESTING = [1, 2, 3, 7, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, BIG]


class FullTiles(dict[Tile, bytes]):
    """What a store holds: full tiles. Counts the reads."""

    reads = 0

    def read_tiles(self, tiles: Sequence[Tile]) -> list[bytes]:
        self.reads += 1
        return [self[tile] for tile in tiles]


def grow(size: int) -> tuple[FullTiles, Edge]:
    full, edge = FullTiles(), Edge()
    for value in LEAVES[:size]:
        for tile, data in edge.append(value):
            assert tile not in full
            full[tile] = data
    return full, edge


FULL, EDGE = grow(BIG)
LOG = LogTiles(FULL, EDGE)

sizes = st.one_of(st.integers(1, 1_000), st.integers(1, BIG), st.sampled_from(INTERESTING))


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def naive_path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH, RFC 6962 section 2.1.1, word for word."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), mth(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), mth(leaves[:k])]


def naive_subproof(m: int, leaves: Sequence[bytes], complete: bool = True) -> list[bytes]:
    """SUBPROOF, RFC 6962 section 2.1.2, word for word."""
    if m == len(leaves):
        return [] if complete else [mth(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, leaves[:k], complete), mth(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def test_known_answers() -> None:
    # RFC 6962 reference entries, as certificate-transparency-go publishes them.
    entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [leaf_hash(bytes.fromhex(entry)) for entry in entries]
    assert leaves[0].hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert root(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_every_small_size_against_the_definition() -> None:
    edge = Edge()
    for size in range(70):
        expected = mth(LEAVES[:size])
        assert root(LEAVES[:size]) == edge.root() == root_from_tiles(LOG, size) == expected
        for index in range(size):
            assert inclusion_proof(LOG, index, size) == naive_path(index, LEAVES[:size])
        for old in range(1, size + 1):
            assert consistency_proof(LOG, old, size) == naive_subproof(old, LEAVES[:size])
        edge.append(LEAVES[size])


@pytest.mark.parametrize("size", INTERESTING)
def test_interesting_sizes_against_the_definition(size: int) -> None:
    assert root_from_tiles(LOG, size) == root(LEAVES[:size]) == mth(LEAVES[:size])
    for index in {0, size // 2, size - 1}:
        assert inclusion_proof(LOG, index, size) == naive_path(index, LEAVES[:size])
    for old in {1, size // 2 or 1, size - 1 or 1, size}:
        assert consistency_proof(LOG, old, size) == naive_subproof(old, LEAVES[:size])


@given(size=sizes, data=st.data())
@settings(deadline=None)
def test_proofs_made_together_are_the_proofs_made_alone(size: int, data: st.DataObject) -> None:
    indexes = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    assert inclusion_proofs(LOG, indexes, size) == [inclusion_proof(LOG, index, size) for index in indexes]


@given(size=sizes, data=st.data())
@settings(deadline=None)
def test_every_inclusion_proof_verifies(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof, expected = inclusion_proof(LOG, index, size), root_from_tiles(LOG, size)
    verify_inclusion(LEAVES[index], index, size, proof, expected)
    with pytest.raises(ValueError, match="too long"):
        verify_inclusion(LEAVES[index], index, size, [*proof, EMPTY_ROOT], expected)
    if proof:
        with pytest.raises(ValueError, match="too short"):
            verify_inclusion(LEAVES[index], index, size, proof[:-1], expected)
    other = data.draw(st.integers(0, size))
    if other != index:
        with pytest.raises(ValueError, match=r"leads to root|too long|too short|no leaf"):
            verify_inclusion(LEAVES[index], other, size, proof, expected)


@given(old=sizes, new=sizes)
@settings(deadline=None)
def test_every_consistency_proof_verifies(old: int, new: int) -> None:
    old, new = min(old, new), max(old, new)
    roots = (root_from_tiles(LOG, old), root_from_tiles(LOG, new))
    proof = consistency_proof(LOG, old, new)
    verify_consistency(old, new, *roots, proof)
    with pytest.raises(ValueError, match=r"too long|must be empty"):
        verify_consistency(old, new, *roots, [*proof, EMPTY_ROOT])
    if proof:
        with pytest.raises(ValueError, match=r"too short|is empty"):
            verify_consistency(old, new, *roots, proof[:-1])


def flips(*values: bytes) -> list[list[bytes]]:
    """All variants of `values` with one byte changed."""
    result = []
    for which, value in enumerate(values):
        for position in range(len(value)):
            changed = value[:position] + bytes([value[position] ^ 0x01]) + value[position + 1 :]
            result.append([*values[:which], changed, *values[which + 1 :]])
    return result


@pytest.mark.parametrize(("index", "size"), [(0, 1), (4, 5), (300, 700), (65_700, BIG)])
def test_inclusion_refuses_every_changed_byte(index: int, size: int) -> None:
    proof, expected = inclusion_proof(LOG, index, size), root_from_tiles(LOG, size)
    for leaf, changed_root, *changed in flips(LEAVES[index], expected, *proof):
        with pytest.raises(ValueError, match="leads to root"):
            verify_inclusion(leaf, index, size, changed, changed_root)


@pytest.mark.parametrize(("old", "new"), [(5, 5), (4, 5), (3, 7), (256, 700), (300, BIG)])
def test_consistency_refuses_every_changed_byte(old: int, new: int) -> None:
    proof = consistency_proof(LOG, old, new)
    for old_root, new_root, *changed in flips(root_from_tiles(LOG, old), root_from_tiles(LOG, new), *proof):
        with pytest.raises(ValueError, match=r"leads to (old|new) root|different roots"):
            verify_consistency(old, new, old_root, new_root, changed)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 1), (1, 1)])
def test_no_such_leaf(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        inclusion_proof(LOG, index, size)
    with pytest.raises(ValueError, match="no leaf"):
        verify_inclusion(EMPTY_ROOT, index, size, [], EMPTY_ROOT)


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (2, 1), (-1, 1)])
def test_no_consistency_proof_between_such_sizes(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="no consistency proof"):
        consistency_proof(LOG, old, new)
    with pytest.raises(ValueError, match="no consistency proof"):
        verify_consistency(old, new, EMPTY_ROOT, EMPTY_ROOT, [])


def test_a_hash_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="proof hash 0 has 31 bytes"):
        verify_inclusion(LEAVES[0], 0, 2, [LEAVES[1][:31]], EMPTY_ROOT)
    with pytest.raises(ValueError, match="new_root hash 0 has 33 bytes"):
        verify_consistency(1, 2, EMPTY_ROOT, EMPTY_ROOT + b"\x00", [EMPTY_ROOT])


def test_a_proof_reads_storage_once() -> None:
    full, edge = grow(BIG)
    log = LogTiles(full, edge)
    inclusion_proof(log, 5, edge.size)
    assert full.reads == 1
    consistency_proof(log, 300, edge.size)
    assert full.reads == 2


def test_a_reader_that_lies_about_lengths_is_refused() -> None:
    class Short:
        def read_tiles(self, tiles: Sequence[Tile]) -> list[bytes]:
            return [bytes(32) for _ in tiles]

    class Nothing:
        def read_tiles(self, tiles: Sequence[Tile]) -> list[bytes]:
            return []

    with pytest.raises(ValueError, match="must have 96 bytes, got 32"):
        root_from_tiles(Short(), 3)
    with pytest.raises(ValueError, match="asked for 1 tiles, got 0"):
        root_from_tiles(Nothing(), 3)


@given(size=sizes)
@settings(deadline=None, max_examples=40)
def test_an_edge_loads_from_what_is_stored(size: int) -> None:
    loaded = Edge.load(size, FULL, LEAVES[size - size % TILE_WIDTH : size])
    assert loaded.size == size
    assert loaded.root() == root_from_tiles(LOG, size)
    for more in LEAVES[size : size + 300]:
        for tile, data in loaded.append(more):
            assert FULL[tile] == data
    assert loaded.root() == root_from_tiles(LOG, loaded.size)


def test_an_edge_does_not_load_from_other_bytes() -> None:
    size = 66_000
    tail = LEAVES[size - size % TILE_WIDTH : size]
    last = Tile(0, 256, TILE_WIDTH)
    damaged = FullTiles(FULL)
    damaged[last] = FULL[last][:-1] + bytes([FULL[last][-1] ^ 1])
    assert Edge.load(size, damaged, tail).root() != EDGE.root()
    damaged[last] = FULL[last][:-1]
    with pytest.raises(ValueError, match="must have 8192 bytes, got 8191"):
        Edge.load(size, damaged, tail)
    with pytest.raises(ValueError, match="needs 208 leaf hashes, got 207"):
        Edge.load(size, FULL, tail[1:])


def test_the_tiles_of_the_specification_s_own_example() -> None:
    # tlog-tiles: a tree of 256 has a full level 0 tile AND a level 1 tile of width 1.
    assert [tile_width(level, 0, 256) for level in range(3)] == [256, 1, 0]
    assert LogTiles(*grow(256)).read_tiles([Tile(1, 0, 1)]) == [root(LEAVES[:256])]
    # 70,000: 273 full tiles and 112 hashes; one full tile and 17; one hash.
    assert [tile_width(0, 272, 70_000), tile_width(0, 273, 70_000), tile_width(0, 274, 70_000)] == [256, 112, 0]
    assert [tile_width(1, 0, 70_000), tile_width(1, 1, 70_000), tile_width(2, 0, 70_000)] == [256, 17, 1]


@given(size=sizes, data=st.data())
@settings(deadline=None, max_examples=60)
def test_every_tile_of_every_published_size_is_served(size: int, data: st.DataObject) -> None:
    level = data.draw(st.sampled_from([level for level in range(3) if size >> (8 * level)]))
    index = data.draw(st.integers(0, ((size >> (8 * level)) - 1) // TILE_WIDTH))
    tile = Tile(level, index, tile_width(level, index, size))
    span = 256**level
    first = index * TILE_WIDTH * span
    expected = [root(LEAVES[begin : begin + span]) for begin in range(first, first + tile.width * span, span)]
    assert LOG.read_tiles([tile]) == [b"".join(expected)]


def test_tiles_that_do_not_exist_yet_are_refused() -> None:
    width = BIG % TILE_WIDTH
    for tile in [Tile(0, BIG // TILE_WIDTH, width + 1), Tile(0, BIG, 1), Tile(2, 0, 2), Tile(3, 0, 1), Tile(9, 1, 1)]:
        with pytest.raises(ValueError, match=r"not at the edge|beyond a tree"):
            LOG.read_tiles([tile])


def test_a_copy_of_an_edge_stands_still() -> None:
    edge = grow(255)[1]
    copy = edge.copy()
    edge.append(LEAVES[255])
    assert (copy.size, copy.root(), copy.partial(0)) == (255, root(LEAVES[:255]), b"".join(LEAVES[:255]))
    assert (edge.partial(0), edge.partial(1), edge.partial(7)) == (b"", root(LEAVES[:256]), b"")
    with pytest.raises(ValueError, match="32 bytes"):
        edge.append(b"short")


def test_the_nodes_of_a_tile_of_every_width_are_the_roots_of_its_complete_groups() -> None:
    for width in range(TILE_WIDTH + 1):
        groups = [LEAVES[i : i + 16] for i in range(0, width - width % 16, 16)]
        assert tile_nodes(b"".join(LEAVES[:width])) == b"".join(map(root, groups)), width
    assert tile_root(b"".join(LEAVES[:TILE_WIDTH])) == root(LEAVES[:TILE_WIDTH])


class Stored(FullTiles):
    """With their nodes, as a database keeps them; or with other ones."""

    def __init__(self, full: FullTiles, nodes: Callable[[bytes], bytes] = tile_nodes) -> None:
        super().__init__({tile: StoredTile(hashes, nodes(hashes)) for tile, hashes in full.items()})


def test_proofs_from_nodes_that_were_kept_are_the_proofs_from_hashes() -> None:
    kept = LogTiles(Stored(FULL), EDGE)
    for size in INTERESTING:
        indexes = [*range(0, size, max(1, size // 37)), size - 1]
        assert inclusion_proofs(kept, indexes, size) == inclusion_proofs(LOG, indexes, size)
        for old in range(1, size, max(1, size // 51)):
            assert consistency_proof(kept, old, size) == consistency_proof(LOG, old, size)


def test_nodes_that_were_kept_save_the_hashing_and_nothing_believes_them_that_recomputes() -> None:
    """A proof from wrong nodes does not verify; a root of what is below them is computed from hashes alone."""
    wrong = Stored(FULL, lambda hashes: bytes(len(tile_nodes(hashes))))
    kept, leaf = LogTiles(wrong, EDGE), LEAVES[3]
    with pytest.raises(ValueError, match="leads to root"):
        verify_inclusion(leaf, 3, BIG, inclusion_proof(kept, 3, BIG), EDGE.root())
    assert Edge.load(BIG, wrong, LEAVES[BIG - BIG % TILE_WIDTH : BIG]).root() == EDGE.root()
    for size in (*INTERESTING, *range(1, BIG, 997)):
        assert root_from_tiles(kept, size) == root_from_tiles(LOG, size)
