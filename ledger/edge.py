"""The right edge of a growing tree: for each level, the hashes that do not fill a tile yet.

A log writes only full tiles, which never change. What is missing from them, at most 255 hashes per
level, is the edge; it is held in memory and rebuilt at start-up from full tiles and the last leaf hashes.

    edge = Edge()
    for hash in leaf_hashes:
        for tile, data in edge.append(hash): ...     # store each full tile once
    edge.size, edge.root()
    LogTiles(full_tiles, edge)                       # a TileReader for every size up to edge.size

An edge holds immutable bytes, so `copy` is cheap: the writer appends to a copy, commits, and only then
lets readers see it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger.merkle import (
    HASH_SIZE,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    TileReader,
    root_from_tiles,
    tile_root,
)

FULL_TILE_SIZE = HASH_SIZE * TILE_WIDTH  # 8,192 bytes


class Edge:
    """The incomplete tiles of a tree of `size` leaves. Not synchronised: one writer, readers take a copy."""

    def __init__(self) -> None:
        self.size = 0
        self._partial: list[bytes] = [b""]  # by level; never a full tile

    @classmethod
    def load(cls, size: int, full: TileReader, leaf_hashes: Sequence[bytes]) -> Edge:
        """The edge of a tree of `size` leaves, from its full tiles and the hashes of its last size % 256 leaves.

        Every hash above level 0 is computed again from the full tile below it, never read, so comparing
        `root()` with a signed checkpoint afterwards proves what was read. Raises ValueError.
        """
        if size < 0 or len(leaf_hashes) != size % TILE_WIDTH:
            raise ValueError(f"size {size} needs {size % TILE_WIDTH} leaf hashes, got {len(leaf_hashes)}")
        if any(len(value) != HASH_SIZE for value in leaf_hashes):
            raise ValueError(f"a leaf hash has {HASH_SIZE} bytes")
        edge = cls()
        edge.size = size
        edge._partial = [b"".join(leaf_hashes)]
        level = 1
        while elements := size >> (TILE_HEIGHT * level):
            first = elements - elements % TILE_WIDTH
            below = [Tile(level - 1, i, TILE_WIDTH) for i in range(first, elements)]
            edge._partial.append(b"".join(tile_root(data) for _, data in _read_full(full, below)))
            level += 1
        return edge

    @classmethod
    def restored(cls, size: int, partial: Sequence[bytes]) -> Edge:
        """An edge as `size` and `partial` of each level described it."""
        edge = cls()
        edge.size, edge._partial = size, list(partial)
        return edge

    def append(self, leaf_hash: bytes) -> list[tuple[Tile, bytes]]:
        """Add one leaf. Returns the tiles this leaf completed, lowest level first, each with its 8,192 bytes."""
        if len(leaf_hash) != HASH_SIZE:
            raise ValueError(f"a leaf hash has {HASH_SIZE} bytes, got {len(leaf_hash)}")
        self.size += 1
        completed: list[tuple[Tile, bytes]] = []
        carry, level = leaf_hash, 0
        while True:
            hashes = self._partial[level] + carry
            if len(hashes) < FULL_TILE_SIZE:
                self._partial[level] = hashes
                return completed
            tile = Tile(level, (self.size >> (TILE_HEIGHT * (level + 1))) - 1, TILE_WIDTH)
            completed.append((tile, hashes))
            self._partial[level] = b""
            carry, level = tile_root(hashes), level + 1
            if level == len(self._partial):
                self._partial.append(b"")

    def extend(self, leaf_hashes: bytes) -> list[tuple[Tile, bytes]]:
        """`append` of several leaves at once, at most as many as the tile at the edge has room for."""
        hashes = self._partial[0] + leaf_hashes
        if len(leaf_hashes) % HASH_SIZE or not HASH_SIZE <= len(leaf_hashes) <= len(hashes) <= FULL_TILE_SIZE:
            raise ValueError(f"{len(leaf_hashes)} bytes of leaf hashes do not fit the tile at the edge")
        self.size += len(leaf_hashes) // HASH_SIZE - 1
        self._partial[0] = hashes[:-HASH_SIZE]
        return self.append(hashes[-HASH_SIZE:])

    def root(self) -> bytes:
        """MTH of all leaves so far, RFC 6962 section 2.1."""
        return root_from_tiles(self, self.size)

    def copy(self) -> Edge:
        other = Edge()
        other.size = self.size
        other._partial = list(self._partial)
        return other

    @property
    def levels(self) -> int:
        """How many levels have, or had, a tile."""
        return len(self._partial)

    def partial(self, level: int) -> bytes:
        """The hashes of the last, incomplete tile of a level; empty when there is none."""
        return self._partial[level] if level < len(self._partial) else b""

    def holds(self, tile: Tile) -> bool:
        """Whether a tile, or the larger one it is a prefix of, stands at the edge and not among the full tiles."""
        return tile.index == self.size >> (TILE_HEIGHT * (tile.level + 1))

    def read_tiles(self, tiles: Sequence[Tile]) -> list[bytes]:
        """TileReader for tiles at the edge, also in the smaller widths they had before. Raises ValueError."""
        result = []
        for tile in tiles:
            hashes, length = self.partial(tile.level), HASH_SIZE * tile.width
            if not self.holds(tile) or length > len(hashes):
                raise ValueError(f"{tile} is not at the edge of a tree of {self.size} leaves")
            result.append(hashes if length == len(hashes) else hashes[:length])
        return result


class LogTiles:
    """Any tile of any size up to `edge.size`: the edge's own, or a prefix of a full tile. One read of `full`."""

    def __init__(self, full: TileReader, edge: Edge) -> None:
        self._full = full
        self._edge = edge

    def read_tiles(self, tiles: Sequence[Tile]) -> list[bytes]:
        elsewhere = [tile for tile in tiles if not self._edge.holds(tile)]
        for tile in elsewhere:
            if tile.index > self._edge.size >> (TILE_HEIGHT * (tile.level + 1)):
                raise ValueError(f"{tile} is beyond a tree of {self._edge.size} leaves")
        stored = [Tile(tile.level, tile.index, TILE_WIDTH) for tile in elsewhere]
        full = iter(_read_full(self._full, stored))
        return [
            self._edge.read_tiles([tile])[0] if self._edge.holds(tile) else _prefix(next(full)[1], tile.width)
            for tile in tiles
        ]


def _prefix(full_tile: bytes, width: int) -> bytes:
    return full_tile if width == TILE_WIDTH else full_tile[: HASH_SIZE * width]


def _read_full(full: TileReader, tiles: Sequence[Tile]) -> list[tuple[Tile, bytes]]:
    data = full.read_tiles(tiles) if tiles else []
    if len(data) != len(tiles):
        raise ValueError(f"asked for {len(tiles)} full tiles, got {len(data)}")
    for tile, hashes in zip(tiles, data, strict=True):
        if len(hashes) != FULL_TILE_SIZE:
            raise ValueError(f"{tile} must have {FULL_TILE_SIZE} bytes, got {len(hashes)}")
    return list(zip(tiles, data, strict=True))
