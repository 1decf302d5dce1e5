"""C2SP checkpoints: the signed note in which a log commits to everything it holds.

    modelledger.example/log                              origin: which log
    1307                                                 size: how many entries
    47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=         root: base64 of the Merkle tree hash

    — modelledger.example/log <base64 of: 4-byte key ID, signature>

Non-empty extension lines may follow the root. A log must never sign two checkpoints that are not
consistent; that is the sequencer's duty (persist, then sign), not this file's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.merkle import EMPTY_ROOT, HASH_SIZE
from ledger.note import COSIGNATURE_V1, LogSigner, NoteError, UnknownSigner, UnsignedNote, Verifier, open_note
from ledger.strict_text import decode_base64, decode_decimal, encode_base64


class MalformedCheckpoint(NoteError):
    kind = "malformed-checkpoint"


class WrongEmptyRoot(MalformedCheckpoint):
    """Size 0 with the root of another tree than the empty one."""


class WrongOrigin(NoteError):
    """A valid checkpoint of another log."""

    kind = "wrong-origin"


@dataclass(frozen=True)
class Checkpoint:
    """What a log commits to: its first `size` entries have Merkle root `root` (tlog-checkpoint)."""

    origin: str
    size: int
    root: bytes  # 32 bytes
    extensions: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The note text. Raises MalformedCheckpoint for values that have no text."""
        lines = [self.origin, str(self.size), encode_base64(self.root).decode(), *self.extensions]
        try:
            text = "".join(f"{line}\n" for line in lines).encode()
        except UnicodeEncodeError as error:
            raise MalformedCheckpoint(f"a line of a checkpoint is not Unicode text: {error}") from None
        if Checkpoint.parse(text) != self:
            raise MalformedCheckpoint("a line of a checkpoint must not contain a newline")
        return text

    @classmethod
    def parse(cls, text: bytes) -> Checkpoint:
        """Inverse of `encode`. Raises MalformedCheckpoint."""
        try:
            # Bytes and b"\n" only: str.splitlines would also split at U+0085 and U+2028.
            lines = text.decode().split("\n")
            if len(lines) < 4 or lines.pop() != "" or "" in lines:
                raise ValueError("expected origin, size and root, one non-empty line each, with a last newline")
            size, root = decode_decimal(lines[1].encode()), decode_base64(lines[2].encode())
            if len(root) != HASH_SIZE:
                raise ValueError(f"root has {len(root)} bytes, expected {HASH_SIZE}")
        except ValueError as error:
            raise MalformedCheckpoint(f"not a checkpoint: {error}") from None
        if size == 0 and root != EMPTY_ROOT:
            raise WrongEmptyRoot("not a checkpoint: size 0 has another root than the empty tree")
        return cls(lines[0], size, root, tuple(lines[3:]))


def sign_checkpoint(signer: LogSigner, size: int, root: bytes) -> bytes:
    """The signed note of a checkpoint whose origin is the signer's name."""
    return signer.sign(Checkpoint(signer.name, size, root).encode())


def open_checkpoint(note: bytes, verifiers: Sequence[Verifier], origin: str) -> Checkpoint:
    """The verified checkpoint of log `origin`. Cosignatures alone do not make one. Raises NoteError."""
    opened = open_note(note, verifiers)
    signers = {s.verifier.name for s in opened.signatures if s.verifier.algorithm != COSIGNATURE_V1}
    if not signers:
        raise UnsignedNote("the checkpoint is cosigned by witnesses, but not signed by the log itself")
    checkpoint = Checkpoint.parse(opened.text)
    if checkpoint.origin != origin:
        raise WrongOrigin(f"checkpoint of log {checkpoint.origin!r}, expected {origin!r}")
    if origin not in signers:  # who trusts several logs must not let one of them speak for another
        raise UnknownSigner(
            f"the checkpoint of log {origin!r} is signed by {', '.join(map(repr, sorted(signers)))} only"
        )
    return checkpoint
