"""Names of tiles and the contents of entry bundles, as C2SP tlog-tiles writes them.

    tile/<L>/<N>[.p/<W>]          hashes of level L; N in groups of three digits, all but the last behind an x
    tile/entries/<N>[.p/<W>]      the entries themselves, 256 to a bundle: uint16 big-endian length, bytes

Each name has exactly one spelling: the readers accept what the writers write and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ledger.merkle import TILE_WIDTH, Tile

MAX_ENTRY = 65_535  # the largest length a uint16 can say
# Six x-groups reach 21 digits; the largest index of a tree of 2^63 leaves has 17.
_PATH = re.compile(
    r"tile/(?P<level>0|[1-9][0-9]?|entries)/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_MAX_INDEX = 2**63 // TILE_WIDTH


def tile_path(tile: Tile) -> str:
    """`tile/<L>/<N>`, with `.p/<W>` for a partial tile (tlog-tiles, "Merkle Tree")."""
    return f"tile/{tile.level}/{_encode_index(tile.index, tile.width)}"


def parse_tile_path(path: str) -> Tile:
    """Inverse of `tile_path`. Raises ValueError."""
    level, index, width = _parse(path)
    if level == "entries" or int(level) > 63:
        raise ValueError(f"tile path {path[:80]!r}: the level must be a number from 0 to 63")
    return Tile(int(level), index, width)


def bundle_path(index: int, width: int = TILE_WIDTH) -> str:
    """`tile/entries/<N>`, with `.p/<W>` for a partial bundle (tlog-tiles, "Log Entries")."""
    if index < 0 or not 1 <= width <= TILE_WIDTH:
        raise ValueError(f"no such bundle: index {index}, width {width}")
    return f"tile/entries/{_encode_index(index, width)}"


def parse_bundle_path(path: str) -> tuple[int, int]:
    """Inverse of `bundle_path`: (index, width). Raises ValueError."""
    level, index, width = _parse(path)
    if level != "entries":
        raise ValueError(f"bundle path {path[:80]!r} must start with tile/entries/")
    return index, width


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """1 to 256 entries of at most 65,535 bytes. Raises ValueError."""
    if not 1 <= len(entries) <= TILE_WIDTH:
        raise ValueError(f"a bundle holds 1 to {TILE_WIDTH} entries, got {len(entries)}")
    parts: list[bytes] = []
    for i, entry in enumerate(entries):
        if len(entry) > MAX_ENTRY:
            raise ValueError(f"entry {i} has {len(entry)} bytes, at most {MAX_ENTRY} fit")
        parts += (len(entry).to_bytes(2, "big"), entry)
    return b"".join(parts)


def decode_bundle(data: bytes) -> list[bytes]:
    """Inverse of `encode_bundle`. The caller compares the count with the width it asked for. Raises ValueError."""
    entries: list[bytes] = []
    position = 0
    while position < len(data):
        if len(entries) == TILE_WIDTH:
            raise ValueError(f"bundle goes on at byte {position} after {TILE_WIDTH} entries")
        start = position + 2
        end = start + int.from_bytes(data[position:start], "big")
        if end > len(data):  # also when the length itself is cut off
            raise ValueError(f"bundle ends inside entry {len(entries)}, which starts at byte {position}")
        entries.append(data[start:end])
        position = end
    if not entries:
        raise ValueError("bundle is empty")
    return entries


def _encode_index(index: int, width: int) -> str:
    if index >= _MAX_INDEX:
        raise ValueError(f"tile index {index} is beyond a tree of 2^63 leaves")
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    name = "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])
    return name if width == TILE_WIDTH else f"{name}.p/{width}"


def _parse(path: str) -> tuple[str, int, int]:
    match = _PATH.fullmatch(path)  # [0-9] in the pattern: \d would read other alphabets' digits too
    if not match:
        raise ValueError(f"not a tile path: {path[:80]!r}, expected tile/<level or entries>/<index>[.p/<width>]")
    index = int(match["index"].replace("/", "").replace("x", ""))
    width = int(match["width"] or TILE_WIDTH)
    if match["width"] and width >= TILE_WIDTH:
        raise ValueError(f"tile path {path!r}: a partial width is 1 to {TILE_WIDTH - 1}")
    if index >= _MAX_INDEX or match["index"] != _encode_index(index, TILE_WIDTH):
        raise ValueError(f"tile path {path!r}: index out of range or written with leading zero groups")
    return match["level"], index, width
