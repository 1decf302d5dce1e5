"""C2SP tlog-cosignature: what witnesses add to a checkpoint.

    modelledger.example/log
    1307
    47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=

    — modelledger.example/log <base64 of: key ID, signature of the text>
    — witness.example/w1 <base64 of: key ID, time, signature of "cosignature/v1", the time and the text>

A cosignature says: at this time, this was the largest tree of this log that I had seen, and it continued all the
smaller ones. It is one more signature line (note.py signs and verifies it, key type 0x04), so whoever does not know
the witness reads the checkpoint as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ledger.note import COSIGNATURE_V1, MalformedNote, NoteSignature, UnknownSigner, Verifier, open_note


def cosignatures(note: bytes, witnesses: Sequence[Verifier]) -> tuple[NoteSignature, ...]:
    """The verified cosignatures of these witnesses on a checkpoint, each witness once; none when there are none.

    Raises NoteError for what is no signed note, and for a line of one of the witnesses that does not fit.
    """
    for witness in witnesses:
        if witness.algorithm != COSIGNATURE_V1:
            raise ValueError(f"{witness.name!r} is not the key of a witness")
    try:
        return open_note(note, witnesses).signatures
    except UnknownSigner:
        return ()


def cosignatures_below(checkpoint: bytes, lines: bytes, witnesses: Sequence[Verifier]) -> tuple[NoteSignature, ...]:
    """The same for lines that are to stand below a checkpoint, from whoever sent them.

    A blank line among them would make all above it the text: what is signed then is another one than the checkpoint's.
    """
    if b"\n\n" in checkpoint[-1:] + lines:
        raise MalformedNote("there is a blank line among the signature lines")
    return cosignatures(add_lines(checkpoint, [lines]), witnesses)


def add_lines(note: bytes, lines: Iterable[bytes]) -> bytes:
    """The note with more signature lines behind its own."""
    return note + b"".join(lines)
