"""Trees and proofs: RFC 6962, section 2.1, word for word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from typing import Any

from tests.vectors.make.cases import Case, b64, bad, good


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


LEAVES = [leaf_hash(b"entry %d" % i) for i in range(70_000)]


def split(size: int) -> int:
    k = 1
    while 2 * k < size:
        k *= 2
    return k


@cache
def mth(begin: int, end: int) -> bytes:
    if begin == end:
        return sha256(b"").digest()
    if end - begin == 1:
        return LEAVES[begin]
    middle = begin + split(end - begin)
    return node_hash(mth(begin, middle), mth(middle, end))


def path(index: int, begin: int, end: int) -> list[bytes]:
    if end - begin == 1:
        return []
    middle = begin + split(end - begin)
    if index < middle:
        return [*path(index, begin, middle), mth(middle, end)]
    return [*path(index, middle, end), mth(begin, middle)]


def subproof(old: int, begin: int, end: int, complete: bool = True) -> list[bytes]:
    if old == end:
        return [] if complete else [mth(begin, end)]
    middle = begin + split(end - begin)
    if old <= middle:
        return [*subproof(old, begin, middle, complete), mth(middle, end)]
    return [*subproof(old, middle, end, False), mth(begin, middle)]


def levels(size: int) -> Iterator[Case]:
    """tlog-tiles: only full tiles contribute to the level above."""
    level, hashes = 0, LEAVES[:size]
    while hashes:
        full, rest = divmod(len(hashes), 256)
        tile: Case = {"full": full, "full_sha256": sha256(b"".join(hashes[: 256 * full])).hexdigest(), "partial": None}
        if rest:
            digits = f"{full:03}"
            tile["partial"] = f"tile/{level}/{digits}.p/{rest}"
            tile["partial_sha256"] = sha256(b"".join(hashes[256 * full :])).hexdigest()
        yield tile
        step = 256 ** (level + 1)
        hashes = [mth(i * step, (i + 1) * step) for i in range(full)]
        level += 1


def trees() -> list[Case]:
    sizes = [0, 1, 2, 3, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 70_000]
    return [
        good(f"{size} entries", {"root": b64(mth(0, size)), "levels": list(levels(size))}, size=str(size))
        for size in sizes
    ]


# A tree of 2^62 equal leaves has a root for every height that is easy to compute, and indexes beyond 2^53.
EQUAL = [LEAVES[0]]
for _ in range(62):
    EQUAL.append(node_hash(EQUAL[-1], EQUAL[-1]))


def inclusion() -> list[Case]:
    def given(index: int, size: int, **changed: Any) -> Case:
        proof = changed.pop("proof", None) or path(min(index, size - 1), 0, size)
        values: Case = {"leaf_hash": LEAVES[min(index, size - 1)], "root": mth(0, size), **changed}
        case = {"index": str(index), "size": str(size), **{name: b64(value) for name, value in values.items()}}
        return {**case, "proof": [b64(value) for value in proof]}

    right = path(2, 0, 7)
    doubled = node_hash(node_hash(LEAVES[0], LEAVES[1]), node_hash(LEAVES[2], LEAVES[2]))
    big = {"leaf_hash": LEAVES[0], "proof": [EQUAL[62]], "root": node_hash(EQUAL[62], LEAVES[0])}
    deep = {"leaf_hash": LEAVES[0], "proof": EQUAL[:62], "root": EQUAL[62]}
    word = "not-included"
    places = [(0, 1), (0, 2), (1, 2), (2, 3), (2, 7), (6, 7), (4, 8), (255, 256), (256, 257), (511, 513), (3, 65_537)]
    return [
        *(good(f"entry {index} of {size}", {}, **given(index, size)) for index, size in places),
        good("entry 2^62 of 2^62 + 1", {}, **given(0, 1, **big) | {"index": str(2**62), "size": str(2**62 + 1)}),
        good("entry 2^62 - 1 of 2^62", {}, **given(0, 1, **deep) | {"index": str(2**62 - 1), "size": str(2**62)}),
        bad("index equal to the size", word, **given(7, 7)),
        bad("index beyond the size", word, **given(9, 7)),
        bad("size 0", word, **given(0, 1) | {"size": "0"}),
        bad("hashes in the order root to leaf", word, **given(2, 7, proof=right[::-1])),
        bad("first hash missing", word, **given(2, 7, proof=right[1:])),
        bad("last hash missing", word, **given(2, 7, proof=right[:-1])),
        bad("a hash more", word, **given(2, 7, proof=[*right, mth(0, 7)])),
        bad("a hash twice", word, **given(2, 7, proof=[right[0], *right])),
        bad("a hash in a tree of one entry", word, **given(0, 1, proof=[LEAVES[0]])),
        bad("proof of the neighbour", word, **given(2, 7, proof=path(3, 0, 7))),
        bad("proof for another size", word, **given(2, 7, proof=path(2, 0, 8))),
        bad("root of another size", word, **given(2, 7, root=mth(0, 6))),
        bad("the same root, another size", word, **given(2, 7) | {"size": "9"}),
        bad("the same root, another index", word, **given(2, 7) | {"index": "0"}),
        bad("entry hashed without the prefix 0x00", word, **given(2, 7, leaf_hash=sha256(b"entry 2").digest())),
        bad("an inner node as a leaf", word, **given(1, 4, leaf_hash=mth(2, 4), proof=[mth(0, 2)])),
        bad("last odd node doubled", word, **given(2, 3, root=doubled)),
        bad("children swapped", word, **given(0, 2, root=node_hash(LEAVES[1], LEAVES[0]))),
        bad("a hash of 31 bytes", word, **given(2, 7, proof=[right[0][:31], *right[1:]])),
        bad("a hash of 33 bytes", word, **given(2, 7, proof=[right[0] + b"\x00", *right[1:]])),
        bad("a leaf hash of no bytes", word, **given(2, 7, leaf_hash=b"")),
        bad("a root of 31 bytes", word, **given(2, 7, root=mth(0, 7)[:31])),
    ]


def consistency() -> list[Case]:
    def given(old: int, new: int, proof: Sequence[bytes] | None = None, **changed: Any) -> Case:
        hashes = subproof(old, 0, new) if proof is None else proof
        values: Case = {"old_root": mth(0, old), "new_root": mth(0, new), **changed}
        case = {"old": str(old), "new": str(new), **{name: b64(value) for name, value in values.items()}}
        return {**case, "proof": [b64(value) for value in hashes]}

    three, four = subproof(3, 0, 7), subproof(4, 0, 7)
    big = {"old_root": EQUAL[62], "new_root": node_hash(EQUAL[62], LEAVES[0])}
    word = "not-consistent"
    pairs = [
        (1, 1),
        (1, 2),
        (1, 8),
        (3, 7),
        (4, 7),
        (4, 8),
        (6, 8),
        (7, 8),
        (8, 8),
        (255, 256),
        (256, 257),
        (3, 65_537),
    ]
    swapped = [three[1], three[0], *three[2:]]
    return [
        *(good(f"{old} to {new}", {}, **given(old, new)) for old, new in pairs),
        good(
            "2^62 to 2^62 + 1",
            {},
            **given(1, 2, [LEAVES[0]], **big) | {"old": str(2**62), "new": str(2**62 + 1)},
        ),
        bad("from size 0, empty proof", word, **given(0, 7, [])),
        bad("from size 0, with a proof", word, **given(0, 7, [mth(0, 7)])),
        bad("old larger than new", word, **given(7, 3, three)),
        bad("equal sizes with a proof", word, **given(7, 7, [mth(0, 7)])),
        bad("equal sizes with different roots", word, **given(7, 7, [], new_root=mth(0, 6))),
        bad("empty proof", word, **given(3, 7, [])),
        bad("old root repeated, though old is a power of two", word, **given(4, 7, [mth(0, 4), *four])),
        bad("first hash left out, though old is no power of two", word, **given(3, 7, three[1:])),
        bad("MTH before SUBPROOF", word, **given(3, 7, three[::-1])),
        bad("first two hashes swapped", word, **given(3, 7, swapped)),
        bad("last hash missing", word, **given(3, 7, three[:-1])),
        bad("a hash more", word, **given(3, 7, [*three, mth(0, 7)])),
        bad("roots swapped", word, **given(3, 7, old_root=mth(0, 7), new_root=mth(0, 3))),
        bad("another old root", word, **given(3, 7, old_root=mth(0, 2))),
        bad("another new root", word, **given(3, 7, new_root=mth(0, 8))),
        bad("another old root, old a power of two", word, **given(4, 7, old_root=mth(0, 3))),
        bad("the same roots, other sizes", word, **given(3, 7) | {"old": "2"}),
        bad("proof for another new size", word, **given(3, 7, subproof(3, 0, 8))),
        bad("a hash of 31 bytes", word, **given(3, 7, [three[0][:31], *three[1:]])),
        bad("an old root of 31 bytes", word, **given(3, 7, old_root=mth(0, 3)[:31])),
    ]


FILES = {"tree": trees, "inclusion": inclusion, "consistency": consistency}
