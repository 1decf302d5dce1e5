"""C2SP tlog-proof files: one entry's place in the log, in a file that verifies offline.

    c2sp.org/tlog-proof@v1
    extra <base64>                  optional, and NOT authenticated by anything
    index 73894
    <base64 hash>                   inclusion proof, the leaf's sibling first; none when the log has one entry

    <the signed checkpoint, byte for byte>

Size and root come from the checkpoint, and only after its signature is verified. The FIRST blank line ends
the proof; the checkpoint has a blank line of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.merkle import HASH_SIZE, leaf_hash, verify_inclusion
from ledger.note import MAX_NOTE_SIZE, NoteError, Verifier
from ledger.strict_text import decode_base64, decode_decimal, encode_base64

MAX_HASHES = 63  # a tree of 2^63 leaves is 63 high
MAX_PROOF_SIZE = 2 * MAX_NOTE_SIZE

_HEADER = b"c2sp.org/tlog-proof@v1"


class MalformedProof(NoteError):
    kind = "malformed-proof"


class NotIncluded(NoteError):
    """The checkpoint is valid and the proof does not lead to its root."""

    kind = "not-included"


@dataclass(frozen=True)
class LogProof:
    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes  # a signed note, not verified yet
    extra: bytes | None = None


def encode_proof(index: int, hashes: Sequence[bytes], checkpoint: bytes, extra: bytes | None = None) -> bytes:
    """The file. Raises MalformedProof for values that have no file."""
    lines = [_HEADER]
    if extra is not None:
        lines.append(b"extra " + encode_base64(extra))
    lines += [b"index %d" % index, *map(encode_base64, hashes), b"", checkpoint]
    data = b"\n".join(lines)
    parse_proof(data)
    return data


def parse_proof(data: bytes) -> LogProof:
    """Inverse of `encode_proof`. Raises MalformedProof."""
    if len(data) > MAX_PROOF_SIZE:
        raise MalformedProof(f"the proof has {len(data)} bytes, more than {MAX_PROOF_SIZE}")
    head, blank, checkpoint = data.partition(b"\n\n")
    if not blank or not checkpoint:
        raise MalformedProof("expected the proof, a blank line, and the checkpoint")
    lines = head.split(b"\n")
    if lines[0] != _HEADER:
        raise MalformedProof(f"line 1 must be {_HEADER.decode()}")
    number, extra = 1, None
    try:
        if len(lines) > number and lines[number].startswith(b"extra "):
            extra = decode_base64(lines[number][6:])
            if not extra:
                raise ValueError("extra is empty; leave the line out")
            number += 1
        if len(lines) <= number or not lines[number].startswith(b"index "):
            raise ValueError("expected index <decimal>")
        index = decode_decimal(lines[number][6:])
        if len(lines) - number - 1 > MAX_HASHES:
            raise ValueError(f"more than {MAX_HASHES} hashes follow")
        hashes = []
        for line in lines[number + 1 :]:
            number += 1
            hashes.append(decode_base64(line))
            if len(hashes[-1]) != HASH_SIZE:
                raise ValueError(f"hash of {len(hashes[-1])} bytes, expected {HASH_SIZE}")
    except ValueError as error:
        raise MalformedProof(f"line {number + 1}: {error}") from None
    return LogProof(index, tuple(hashes), checkpoint, extra)


def verify_proof(proof: LogProof, entry: bytes, verifiers: Sequence[Verifier], origin: str) -> Checkpoint:
    """Check that `entry` is in log `origin` at `proof.index`; returns the verified checkpoint. Raises NoteError."""
    checkpoint = open_checkpoint(proof.checkpoint, verifiers, origin)
    try:
        verify_inclusion(leaf_hash(entry), proof.index, checkpoint.size, proof.hashes, checkpoint.root)
    except ValueError as error:
        raise NotIncluded(str(error)) from None
    return checkpoint
