"""The Merkle tree of RFC 6962 (the same tree as RFC 9162), stored as tiles of 256 hashes (C2SP tlog-tiles).

Everything here is arithmetic on hashes: no storage, no keys, no network.

    leaf_hash, node_hash, root       the tree as section 2.1 defines it
    inclusion_proof, consistency_proof, root_from_tiles
                                     computed from tiles through the one-method `TileReader`; one read per call
    verify_inclusion, verify_consistency
                                     the verifier's side; ValueError says what does not fit

The growing side of the tree is in `ledger/edge.py`; paths and entry bundles are in `ledger/tiles.py`.
A proof is a list of hashes of leaf ranges. The RFC's recursions (PATH, SUBPROOF) only choose the ranges;
`_range_roots` turns ranges into hashes, whatever they are for.

Tile (level, index) holds, as element i, the root of the 256^level leaves that start at
(256 * index + i) * 256^level. Only full tiles contribute to the level above, so element i of the level
above is the root of full tile i, and a partial tile is a prefix of the full tile that will replace it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Protocol

HASH_SIZE = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
EMPTY_ROOT = sha256(b"").digest()  # RFC 6962 section 2.1: MTH({}) = SHA-256()

NODE_HEIGHT = TILE_HEIGHT // 2
NODES_SIZE = HASH_SIZE * TILE_WIDTH >> NODE_HEIGHT  # bytes, of a full tile's
_GROUP = HASH_SIZE << NODE_HEIGHT  # bytes
Range = tuple[int, int]  # leaves begin..end-1


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 || entry), RFC 6962 section 2.1."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), RFC 6962 section 2.1."""
    return sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """MTH of leaf hashes held in memory, RFC 6962 section 2.1."""
    layer = list(leaf_hashes)
    if not layer:
        return EMPTY_ROOT
    while len(layer) > 1:
        # Pairing from the left and carrying an odd last node up unchanged is the RFC's split.
        paired = [node_hash(layer[i], layer[i + 1]) for i in range(0, len(layer) - 1, 2)]
        layer = paired + layer[2 * len(paired) :]
    return layer[0]


@dataclass(frozen=True, slots=True)
class Tile:
    """Where a tile stands: level 0..63, index, and width 1..256 in hashes (256 = full)."""

    level: int
    index: int
    width: int

    def __post_init__(self) -> None:
        if not (0 <= self.level <= 63 and self.index >= 0 and 1 <= self.width <= TILE_WIDTH):
            raise ValueError(f"no such tile: level {self.level}, index {self.index}, width {self.width}")


class TileReader(Protocol):
    def read_tiles(self, tiles: Sequence[Tile]) -> Sequence[bytes]:
        """The hashes of each tile (32 bytes * width), in the order asked."""
        ...


def tile_width(level: int, index: int, size: int) -> int:
    """Width of a tile in a tree of `size` leaves (tlog-tiles, "Partial Tiles"); 0 when it does not exist."""
    elements = size >> (TILE_HEIGHT * level)
    return max(0, min(TILE_WIDTH, elements - TILE_WIDTH * index))


def root_from_tiles(reader: TileReader, size: int) -> bytes:
    """MTH of the first `size` leaves."""
    return _range_roots(reader, [(0, size)], size)[0] if size else EMPTY_ROOT


def inclusion_proof(reader: TileReader, index: int, size: int) -> list[bytes]:
    """Hashes from the leaf's sibling up to the root's child: PATH(m, D[n]), RFC 6962 section 2.1.1."""
    return inclusion_proofs(reader, [index], size)[0]


def inclusion_proofs(reader: TileReader, indexes: Sequence[int], size: int) -> list[list[bytes]]:
    """`inclusion_proof` of many leaves at once: what their paths share is computed once."""
    paths = [_path(index, size) for index in indexes]
    ranges = list({part: None for path in paths for part in path})
    roots = dict(zip(ranges, _range_roots(reader, ranges, size), strict=True))
    return [[roots[part] for part in path] for path in paths]


def _path(index: int, size: int) -> list[Range]:
    """The leaf ranges whose hashes prove a leaf, from its sibling up."""
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size} leaves")
    ranges: list[Range] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    return ranges[::-1]


def consistency_proof(reader: TileReader, old: int, new: int) -> list[bytes]:
    """PROOF(m, D[n]), RFC 6962 section 2.1.2, for 1 <= old <= new; empty when the sizes are equal."""
    if not 1 <= old <= new:
        raise ValueError(f"no consistency proof from size {old} to size {new}")
    ranges: list[Range] = []
    begin, end = 0, new
    while end != old:  # SUBPROOF(m, D[n], b)
        middle = begin + _split(end - begin)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    if begin:  # b = false: the last old subtree is not the whole old tree, so its hash is part of the proof
        ranges.append((begin, end))
    return _range_roots(reader, ranges[::-1], new)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> None:
    """Check that leaf hash `leaf` is leaf `index` of the tree (size, root `expected`), RFC 9162 section 2.1.3.2."""
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size} leaves")
    _check_hashes(leaf=[leaf], root=[expected], proof=proof)
    fn, sn, computed = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            raise ValueError(f"inclusion proof of leaf {index} in size {size} is too long: {len(proof)} hashes")
        if fn & 1 or fn == sn:
            computed = node_hash(sibling, computed)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            computed = node_hash(computed, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise ValueError(f"inclusion proof of leaf {index} in size {size} is too short: {len(proof)} hashes")
    if computed != expected:
        raise ValueError(f"inclusion proof leads to root {computed.hex()}, expected {expected.hex()}")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that tree (old, old_root) is a prefix of tree (new, new_root), RFC 9162 section 2.1.4.2.

    Size 0 is a prefix of everything and proves nothing; asking for such a proof is an error.
    """
    if not 1 <= old <= new:
        raise ValueError(f"no consistency proof from size {old} to size {new}")
    if old == new:
        if proof:
            raise ValueError(f"consistency proof between equal sizes must be empty, has {len(proof)} hashes")
        if old_root != new_root:
            raise ValueError(f"two different roots for size {old}: {old_root.hex()} and {new_root.hex()}")
        return
    _check_hashes(old_root=[old_root], new_root=[new_root], proof=proof)
    if not proof:
        raise ValueError(f"consistency proof from {old} to {new} is empty")
    # When old is a power of two its root is itself the first hash, and the proof leaves it out.
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    computed_old = computed_new = path[0]
    for sibling in path[1:]:
        if sn == 0:
            raise ValueError(f"consistency proof from {old} to {new} is too long: {len(proof)} hashes")
        if fn & 1 or fn == sn:
            computed_old, computed_new = node_hash(sibling, computed_old), node_hash(sibling, computed_new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            computed_new = node_hash(computed_new, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise ValueError(f"consistency proof from {old} to {new} is too short: {len(proof)} hashes")
    if computed_old != old_root:
        raise ValueError(f"consistency proof leads to old root {computed_old.hex()}, expected {old_root.hex()}")
    if computed_new != new_root:
        raise ValueError(f"consistency proof leads to new root {computed_new.hex()}, expected {new_root.hex()}")


def _split(n: int) -> int:
    """The largest power of two strictly less than n (n > 1), RFC 6962 section 2.1."""
    return 1 << ((n - 1).bit_length() - 1)


def _range_roots(reader: TileReader, ranges: Sequence[Range], size: int) -> list[bytes]:
    """MTH of each leaf range of a tree of `size` leaves; the ranges must come from the RFC's splits."""
    wanted: dict[tuple[int, int], Tile] = {}
    cover: list[list[tuple[tuple[int, int], int, int]]] = []
    for begin, end in ranges:
        subtrees = []
        while begin < end:  # the range as complete subtrees, largest first
            height = (end - begin).bit_length() - 1
            level, layer = divmod(height, TILE_HEIGHT)
            element = begin >> (TILE_HEIGHT * level)
            place = (level, element >> TILE_HEIGHT)
            if place not in wanted:
                wanted[place] = Tile(*place, tile_width(*place, size))
            subtrees.append((place, layer, (element & (TILE_WIDTH - 1)) >> layer))
            begin += 1 << height
        cover.append(subtrees)
    tiles = dict(zip(wanted, map(_Tile, _read(reader, list(wanted.values()))), strict=True))
    result = []
    for subtrees in cover:
        computed = b""
        for place, layer, i in reversed(subtrees):
            left = tiles[place].subtree(layer, i)
            computed = node_hash(left, computed) if computed else left
        result.append(computed)
    return result


def _read(reader: TileReader, tiles: list[Tile]) -> Sequence[bytes]:
    if not tiles:
        return []
    data = reader.read_tiles(tiles)
    if len(data) != len(tiles):
        raise ValueError(f"asked for {len(tiles)} tiles, got {len(data)}")
    for tile, hashes in zip(tiles, data, strict=True):
        if len(hashes) != HASH_SIZE * tile.width:
            raise ValueError(f"{tile} must have {HASH_SIZE * tile.width} bytes, got {len(hashes)}")
    return data


class StoredTile(bytes):
    """A full tile's hashes, and its nodes as they were kept beside them: a proof then hashes 30 times, not 255 times.

    Nothing authenticates the nodes. Who believes nothing computes them anew, with `tile_nodes`.
    """

    nodes: bytes

    def __new__(cls, hashes: bytes, nodes: bytes) -> StoredTile:
        tile = super().__new__(cls, hashes)
        tile.nodes = nodes
        return tile


@lru_cache(maxsize=64)  # of the tiles at a tree's edge, which one commit after the other asks for
def tile_nodes(hashes: bytes) -> bytes:
    """The roots of a tile's complete groups of 16 hashes, one after another: layer 4 of the subtrees in a tile."""
    groups = range(0, len(hashes) - len(hashes) % _GROUP, _GROUP)
    return b"".join([group_layers(bytes(hashes[i : i + _GROUP]))[NODE_HEIGHT] for i in groups])


def tile_root(hashes: bytes) -> bytes:
    """The root of a full tile."""
    return group_layers(tile_nodes(hashes))[NODE_HEIGHT]


class _Tile:
    """A tile's subtrees, of which those above a group and those in each group are computed when they are wanted."""

    def __init__(self, hashes: bytes) -> None:
        self._hashes = hashes
        self._groups: dict[int, tuple[bytes, ...]] = {}

    def subtree(self, layer: int, i: int) -> bytes:
        """The root of the tile's i-th complete subtree of 2^layer hashes."""
        group = -1  # above all of them
        if layer >= NODE_HEIGHT:
            layer -= NODE_HEIGHT
        else:
            group, i = divmod(i, 1 << (NODE_HEIGHT - layer))
        layers = self._groups.get(group) or self._layers(group)
        return layers[layer][HASH_SIZE * i : HASH_SIZE * (i + 1)]

    def _layers(self, group: int) -> tuple[bytes, ...]:
        tile = self._hashes
        if group >= 0:
            hashes = bytes(tile[_GROUP * group : _GROUP * (group + 1)])
        else:
            hashes = tile.nodes if isinstance(tile, StoredTile) else tile_nodes(tile)
        layers = self._groups[group] = group_layers(hashes)
        return layers


# A pure function of its bytes, so remembering it needs no invalidation. 16,384 groups are 25 MB at most and cover
# 250,000 leaves; of the tile at a tree's edge, which grows with every commit, only the last one is new.
@lru_cache(maxsize=16_384)
def group_layers(hashes: bytes) -> tuple[bytes, ...]:
    """The layers over at most 16 hashes, themselves first: layer k holds the roots of complete subtrees of 2^k."""
    return _layers(hashes)


def _layers(hashes: bytes) -> tuple[bytes, ...]:
    """The layers over some hashes, themselves first."""
    layers = [hashes]
    while len(below := layers[-1]) >= 2 * HASH_SIZE:
        pairs = range(0, len(below) - HASH_SIZE, 2 * HASH_SIZE)
        layers.append(b"".join([sha256(b"\x01" + below[i : i + 2 * HASH_SIZE]).digest() for i in pairs]))
    return tuple(layers)


def _check_hashes(**named: Sequence[bytes]) -> None:
    for name, hashes in named.items():
        for i, value in enumerate(hashes):
            if len(value) != HASH_SIZE:
                raise ValueError(f"{name} hash {i} has {len(value)} bytes, expected {HASH_SIZE}")
