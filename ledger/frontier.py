"""The root of a tree that is read from its beginning, at every size on the way: at most 63 hashes in memory.

    frontier = Frontier()
    frontier.append(leaf_hash)
    frontier.root()              # of all leaves so far

A tree of n leaves is a row of complete subtrees, one for each bit of n, the largest first; a new leaf joins
equal neighbours as a carry runs through a binary counter.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger.merkle import EMPTY_ROOT, node_hash

Subtree = tuple[int, bytes]  # (height, root) of a complete subtree of 2^height leaves


class Frontier:
    """The complete subtrees of a tree of `size` leaves."""

    def __init__(self, subtrees: Iterable[Subtree] = ()) -> None:
        self.subtrees: list[Subtree] = list(subtrees)

    @property
    def size(self) -> int:
        return sum(1 << height for height, _ in self.subtrees)

    def append(self, root: bytes, height: int = 0) -> None:
        """Add a leaf hash, or the root of a complete subtree that is no larger than the last one here."""
        subtrees = self.subtrees
        while subtrees and subtrees[-1][0] == height:
            root = node_hash(subtrees.pop()[1], root)
            height += 1
        if subtrees and subtrees[-1][0] < height:
            raise ValueError(f"a subtree of 2^{height} leaves cannot stand at position {self.size}")
        subtrees.append((height, root))

    def root(self) -> bytes:
        """MTH of all leaves so far, RFC 6962 section 2.1."""
        if not self.subtrees:
            return EMPTY_ROOT
        *larger, (_, computed) = self.subtrees
        for _, left in reversed(larger):
            computed = node_hash(left, computed)
        return computed
