"""C2SP tlog-witness: the body of `POST /add-checkpoint`, written by logs and read by witnesses.

    old 20852014                                         size of the newest checkpoint the witness cosigned, else 0
    PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=         consistency proof from there; at most 63 hashes

    <the signed checkpoint, byte for byte>

The FIRST blank line ends the proof; the checkpoint has a blank line of its own. A witness that is at another size
answers 409 with that size, as `text/x.tlog.size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.merkle import HASH_SIZE
from ledger.strict_text import decode_base64, decode_decimal, encode_base64

MAX_HASHES = 63
MAX_BODY = 256 << 10  # room for MAX_SIGNATURES lines of the larger kinds of key
SIZE_TYPE = "text/x.tlog.size"


@dataclass(frozen=True)
class AddCheckpoint:
    old_size: int
    proof: tuple[bytes, ...]
    checkpoint: bytes  # a signed note, not verified yet


def encode_request(old_size: int, proof: Sequence[bytes], checkpoint: bytes) -> bytes:
    """The body."""
    return b"\n".join([b"old %d" % old_size, *map(encode_base64, proof), b"", checkpoint])


def parse_request(body: bytes) -> AddCheckpoint:
    """Inverse of `encode_request`. Raises ValueError with the line."""
    if len(body) > MAX_BODY:
        raise ValueError(f"the request has {len(body)} bytes, more than {MAX_BODY}")
    head, blank, checkpoint = body.partition(b"\n\n")
    if not blank or not checkpoint:
        raise ValueError("expected the old size, the consistency proof, a blank line, and the checkpoint")
    first, *lines = head.split(b"\n")
    if not first.startswith(b"old "):
        raise ValueError("line 1: expected old <size>")
    if len(lines) > MAX_HASHES:
        raise ValueError(f"the consistency proof has {len(lines)} lines, more than {MAX_HASHES}")
    try:
        old_size = decode_decimal(first[4:])
    except ValueError as error:
        raise ValueError(f"line 1: {error}") from None
    return AddCheckpoint(old_size, tuple(_hash(line, n) for n, line in enumerate(lines, start=2)), checkpoint)


def encode_size(size: int) -> bytes:
    """The body of a 409."""
    return b"%d\n" % size


def parse_size(body: bytes) -> int:
    """Inverse of `encode_size`. Raises ValueError."""
    if not body.endswith(b"\n"):
        raise ValueError("expected a size and a newline")
    return decode_decimal(body[:-1])


def _hash(line: bytes, number: int) -> bytes:
    try:
        value = decode_base64(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if len(value) != HASH_SIZE:
        raise ValueError(f"line {number}: hash of {len(value)} bytes, expected {HASH_SIZE}")
    return value
