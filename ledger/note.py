"""C2SP signed notes and cosignatures: text that says who vouches for it.

A signed note is text, a blank line, and signature lines:

    This is an example message.

    — example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=

The signature is over the text with its last newline, without the blank line. The text may hold blank
lines itself, so the LAST one separates. A verifier key (vkey) is `name+hex key ID+base64(type, public
key)`; a line belongs to a key only if name and ID both match, and lines of unknown keys are ignored.

Two key types: 0x01 signs the text (logs); 0x04 signs `cosignature/v1`, a time and the text (witnesses).
All failures are NoteErrors, whose `kind` is a short word for programs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ledger.strict_text import MAX_INT, decode_base64, encode_base64

ED25519: Final = 0x01  # signed-note, "Signature types"
COSIGNATURE_V1: Final = 0x04  # tlog-cosignature

MAX_NOTE_SIZE = 1 << 20
MAX_SIGNATURES = 100  # the specification asks for at least 16

_DASH = "— ".encode()  # U+2014 and a space
_SIGNATURE_LINE = re.compile(rb"\xe2\x80\x94 ([^ \n]+) ([A-Za-z0-9+/]+={0,2})")
_KEY_ID = re.compile(r"[0-9a-f]{8}")


class NoteError(ValueError):
    kind = "note"


class MalformedKey(NoteError):
    kind = "malformed-key"


class MalformedNote(NoteError):
    kind = "malformed-note"


class UnsignedNote(NoteError):
    """No signature line, or none of the kind that is needed."""

    kind = "unsigned"


class UnknownSigner(NoteError):
    """Signed, but by none of the keys the caller trusts."""

    kind = "unknown-signer"


class BadSignature(NoteError):
    """A line claims a trusted key, and the signature does not fit."""

    kind = "bad-signature"


@dataclass(frozen=True)
class Verifier:
    """A trusted public key with its name."""

    name: str
    key_id: bytes  # 4 bytes
    algorithm: int  # ED25519 or COSIGNATURE_V1
    public_key: bytes  # 32 bytes

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """From `name+hex+base64` (signed-note, "Verifier keys"). Raises MalformedKey."""
        parts = vkey.split("+", 2)  # base64 may contain + itself
        if len(parts) != 3 or not _KEY_ID.fullmatch(parts[1]):
            raise MalformedKey(f"verifier key {vkey[:80]!r} is not name+8 hex digits+base64")
        _check_name(parts[0])
        try:
            encoded = decode_base64(parts[2].encode())
        except ValueError as error:
            raise MalformedKey(f"verifier key of {parts[0]!r}: {error}") from None
        if len(encoded) != 33 or encoded[0] not in (ED25519, COSIGNATURE_V1):
            raise MalformedKey(f"verifier key of {parts[0]!r}: only Ed25519, types 0x01 and 0x04, is supported")
        verifier = cls(parts[0], key_id(parts[0], encoded[0], encoded[1:]), encoded[0], encoded[1:])
        if verifier.key_id.hex() != parts[1]:
            raise MalformedKey(f"verifier key of {parts[0]!r}: key ID {parts[1]}, computed {verifier.key_id.hex()}")
        return verifier

    def vkey(self) -> str:
        encoded = encode_base64(bytes([self.algorithm]) + self.public_key)
        return f"{self.name}+{self.key_id.hex()}+{encoded.decode()}"

    def verify(self, text: bytes, signature: bytes) -> int | None:
        """The time of a cosignature in POSIX seconds, None for a plain signature. Raises BadSignature."""
        timestamp = None
        try:
            if self.algorithm == COSIGNATURE_V1:
                if len(signature) != 72:
                    raise BadSignature(f"cosignature of {self.name!r} has {len(signature)} bytes, expected 72")
                timestamp = int.from_bytes(signature[:8], "big")
                text, signature = _cosigned(text, timestamp), signature[8:]
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text)
        except InvalidSignature:
            raise BadSignature(f"signature of {self.name!r}, key {self.key_id.hex()}, does not fit") from None
        return timestamp


@dataclass(frozen=True)
class LogSigner:
    """The log's Ed25519 key with its name, which is also the origin of its checkpoints."""

    name: str
    private_key: Ed25519PrivateKey

    @cached_property
    def verifier(self) -> Verifier:
        return _verifier(self.name, ED25519, self.private_key)

    def vkey(self) -> str:
        return self.verifier.vkey()

    def sign(self, text: bytes) -> bytes:
        """The signed note: text, blank line, one signature line. Raises MalformedNote."""
        _check_text(text)
        if not text.endswith(b"\n"):
            raise MalformedNote("the text of a note must end in a newline")
        return text + b"\n" + _signature_line(self.verifier, self.private_key.sign(text))


@dataclass(frozen=True)
class Cosigner:
    """A witness's Ed25519 key with its name. One key per cosigner: v1 does not sign the name."""

    name: str
    private_key: Ed25519PrivateKey

    @cached_property
    def verifier(self) -> Verifier:
        return _verifier(self.name, COSIGNATURE_V1, self.private_key)

    def vkey(self) -> str:
        return self.verifier.vkey()

    def cosign(self, text: bytes, timestamp: int) -> bytes:
        """The signature line to put behind a signed note of `text`; `timestamp` in POSIX seconds."""
        signature = self.private_key.sign(_cosigned(text, timestamp))
        return _signature_line(self.verifier, timestamp.to_bytes(8, "big") + signature)


@dataclass(frozen=True)
class NoteSignature:
    verifier: Verifier
    timestamp: int | None  # POSIX seconds; cosignatures only
    line: bytes  # with its newline


@dataclass(frozen=True)
class Note:
    text: bytes
    signatures: tuple[NoteSignature, ...]  # the verified ones, in the order of their lines


def open_note(note: bytes, verifiers: Sequence[Verifier]) -> Note:
    """The text, verified by at least one of `verifiers`. Raises a subclass of NoteError.

    A line of a trusted key that does not verify refuses the whole note (signed-note, "Signatures"). A key's
    second line is ignored.
    """
    trusted = {(verifier.name.encode(), verifier.key_id): verifier for verifier in verifiers}
    if len(trusted) != len(verifiers):
        raise MalformedKey("two trusted keys have the same name and key ID")
    text, lines = _split(note)
    verified: dict[tuple[bytes, bytes], NoteSignature] = {}
    for number, line in enumerate(lines, start=text.count(b"\n") + 2):
        match = _SIGNATURE_LINE.fullmatch(line)
        if not match:
            raise MalformedNote(f"line {number} is not a signature line: — name base64")
        try:
            _check_name(match[1].decode())
            blob = decode_base64(match[2])
        except ValueError as error:
            raise MalformedNote(f"line {number}: {error}") from None
        if len(blob) < 5:
            raise MalformedNote(f"line {number}: the signature is shorter than a key ID and one byte")
        key = (match[1], blob[:4])  # name AND id
        if key in trusted and key not in verified:
            timestamp = trusted[key].verify(text, blob[4:])
            verified[key] = NoteSignature(trusted[key], timestamp, line + b"\n")
    if not verified:
        names = ", ".join(sorted({repr(line.split(b" ")[1].decode()) for line in lines[:3]}))
        raise UnknownSigner(f"no signature by a trusted key; the note is signed by {names}")
    return Note(text, tuple(verified.values()))


def key_id(name: str, algorithm: int, public_key: bytes) -> bytes:
    """SHA-256(name || 0x0A || type || public key)[:4] (signed-note, "Signatures")."""
    return sha256(name.encode() + b"\n" + bytes([algorithm]) + public_key).digest()[:4]


def _verifier(name: str, algorithm: int, private_key: Ed25519PrivateKey) -> Verifier:
    _check_name(name)
    public_key = private_key.public_key().public_bytes_raw()
    return Verifier(name, key_id(name, algorithm, public_key), algorithm, public_key)


def _cosigned(text: bytes, timestamp: int) -> bytes:
    if not 0 <= timestamp <= MAX_INT:
        raise BadSignature(f"cosignature time {timestamp} is not from 0 to 2^63-1")
    return b"cosignature/v1\ntime %d\n" % timestamp + text  # tlog-cosignature, "Ed25519 signatures"


def _signature_line(verifier: Verifier, signature: bytes) -> bytes:
    return b"%s%s %s\n" % (_DASH, verifier.name.encode(), encode_base64(verifier.key_id + signature))


def _split(note: bytes) -> tuple[bytes, list[bytes]]:
    """Text with its last newline, and the signature lines without theirs."""
    if len(note) > MAX_NOTE_SIZE:
        raise MalformedNote(f"the note has {len(note)} bytes, more than {MAX_NOTE_SIZE}")
    _check_text(note)
    blank = note.rfind(b"\n\n")
    if blank < 0 or not note.endswith(b"\n"):
        raise MalformedNote("expected text, a blank line, and signature lines that end in a newline")
    text, signatures = note[: blank + 1], note[blank + 2 :]
    if not signatures:
        raise UnsignedNote("the note has no signature line")
    lines = signatures[:-1].split(b"\n")
    if len(lines) > MAX_SIGNATURES:
        raise MalformedNote(f"the note has {len(lines)} signatures, more than {MAX_SIGNATURES}")
    return text, lines


def _check_text(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise MalformedNote(f"not valid UTF-8 at byte {error.start}") from None
    if control := re.search(rb"[\x00-\x09\x0b-\x1f]", text):
        raise MalformedNote(f"control character 0x{control[0].hex()} at byte {control.start()}")


def _check_name(name: str) -> None:
    # Surrogates have no UTF-8; the rest is signed-note, "Format".
    if not name or any(c.isspace() or c == "+" or c < " " or "\ud800" <= c <= "\udfff" for c in name):
        raise MalformedKey(f"key name {name[:80]!r} must not be empty nor contain spaces, control characters or +")
