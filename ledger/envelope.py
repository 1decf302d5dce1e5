"""DSSE v1 envelopes: the exact bytes that are signed, and the exact bytes the log stores.

    {"payload": "<base64>", "payloadType": "application/vnd.in-toto+json",
     "signatures": [{"keyid": "<hex>", "sig": "<base64>"}]}

A signature covers PAE(payloadType, payload), so the JSON around it needs no canonical form. An envelope
is parsed once and never written again: the bytes that came in are the log entry.

    entry = sign(payload, [signer])
    envelope = parse(entry)                       # structure only
    verify(envelope, keyid, load_public_key(der)) # then the signature

A keyid is a hint that nothing authenticates: look the key up by it, then trust what the key verifies.

ECDSA signatures are strict DER with r and s from 1 to n-1. A high s is accepted: key services make them, and
an event is known by its payload, never by its signature, so a second spelling of one gains nobody anything.
tests/vectors/signatures.json has the edge cases.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Any, Protocol

from cryptography import exceptions
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from msgspec import Meta, Struct

from ledger import strict_json
from ledger.errors import EventTooLarge, InvalidInput, InvalidSignature, MalformedEvent
from ledger.strict_text import decode_any_base64

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENTRY = 65_535  # an entry bundle writes the length as uint16 (tlog-tiles, "Log Entries")
MAX_SIGNATURES = 16
MAX_KEYID = 128  # characters; ours have 64
MAX_KEY_DER = 1_024  # bytes; P-256 needs 91

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_ECDSA_SHA256 = ec.ECDSA(hashes.SHA256())

# Ed25519 points are written as y and the sign of x. Under a key of small order anybody can sign (RFC 8032 leaves the
# check to us), and a y of p or more is a second spelling of a key.
_FIELD = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = {0, 1, _FIELD - 1, _ORDER_8, _FIELD - _ORDER_8}

_PAYLOAD_FIRST = b'{"payload":"'
_STANDARD_BASE64 = bytes.maketrans(b"-_", b"+/")


class Signer(Protocol):
    @property
    def keyid(self) -> str:
        """Hex SHA-256 of `public_key_der`."""

    @property
    def public_key_der(self) -> bytes:
        """DER SubjectPublicKeyInfo."""

    def sign(self, data: bytes) -> bytes:
        """P-256: DER ECDSA signature over SHA-256 of `data`. Ed25519: 64 bytes."""
        ...


class Signature(Struct, frozen=True, forbid_unknown_fields=True):
    keyid: Annotated[str, Meta(min_length=1, max_length=MAX_KEYID)]
    sig: bytes


class Envelope(Struct, frozen=True, forbid_unknown_fields=True, rename={"payload_type": "payloadType"}):
    payload: bytes
    payload_type: str
    signatures: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=MAX_SIGNATURES)]


# Nearly every entry is spelled as `encode` does it: fields in this order, bytes as standard base64.
_WRITTEN = strict_json.Written(Envelope, sort_fields=False)


def pae(payload_type: str, payload: bytes) -> bytes:
    """`DSSEv1 <len type> <type> <len payload> <payload>`, lengths in bytes (DSSE protocol, "Signature Definition")."""
    encoded_type = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(encoded_type), encoded_type, len(payload), payload)


def payload_digest(envelope: Envelope) -> str:
    """Hex SHA-256 of the payload. Two envelopes with one payload say the same, whatever their signatures."""
    return sha256(envelope.payload).hexdigest()


def key_id(public_key: PublicKey) -> str:
    """Hex SHA-256 of the DER SubjectPublicKeyInfo."""
    return sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@lru_cache(1_000)
def load_public_key(der: bytes) -> PublicKey:
    """ECDSA P-256 or Ed25519 from DER SubjectPublicKeyInfo. Raises InvalidInput for anything else."""
    if len(der) > MAX_KEY_DER:
        raise InvalidInput(f"public key has {len(der)} bytes, more than {MAX_KEY_DER}")
    try:
        key = load_der_public_key(der)
    except (ValueError, exceptions.UnsupportedAlgorithm):
        raise InvalidInput("public key is not DER SubjectPublicKeyInfo") from None
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise InvalidInput(f"public key is on curve {key.curve.name}, expected P-256 or Ed25519")
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise InvalidInput(f"public key is {type(key).__name__}, expected ECDSA P-256 or Ed25519")
    else:
        y = int.from_bytes(key.public_bytes_raw(), "little") % 2**255
        if y >= _FIELD or y in _SMALL_ORDER:
            raise InvalidInput("public key is not a usable Ed25519 point: of small order, or not in its canonical form")
    # One key, one DER, one keyid: a compressed point would give the same key a second identity.
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != der:
        raise InvalidInput("public key is not in its canonical DER form (uncompressed point, no extra bytes)")
    return key


def sign(payload: bytes, signers: Sequence[Signer], payload_type: str = PAYLOAD_TYPE) -> bytes:
    """The envelope as compact JSON bytes, ready to be stored. Raises EventTooLarge, InvalidInput."""
    keyids = [signer.keyid for signer in signers]
    if not 1 <= len(keyids) <= MAX_SIGNATURES or len(set(keyids)) != len(keyids):
        raise InvalidInput(f"an envelope needs 1 to {MAX_SIGNATURES} signers with different keys")
    message = pae(payload_type, payload)
    signatures = tuple(Signature(signer.keyid, signer.sign(message)) for signer in signers)
    data = encode(Envelope(payload, payload_type, signatures))
    check_size(data)
    return data


def encode(envelope: Envelope) -> bytes:
    """The one spelling that `sign` writes: compact JSON, fields in this order, standard base64."""
    return _WRITTEN.write(envelope)


def parse(data: bytes, payload_type: str = PAYLOAD_TYPE) -> Envelope:
    """Check the structure of an envelope; signatures are not verified. Raises MalformedEvent, EventTooLarge."""
    check_size(data)
    written = _WRITTEN.read(data)
    if written is not None and written.payload_type == payload_type and _are_sound(written.signatures):
        return written
    try:
        value = strict_json.loads(data)
        fields = _fields(value, "envelope", {"payload", "payloadType", "signatures"})
        if fields["payloadType"] != payload_type:
            raise ValueError(f"payloadType must be {payload_type!r}")
        listed = fields["signatures"]
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SIGNATURES:
            raise ValueError(f"signatures must be a list of 1 to {MAX_SIGNATURES}")
        payload = _base64(fields["payload"], "payload")
        signatures = tuple(_signature(item, f"signatures[{i}]") for i, item in enumerate(listed))
        # (t, n) thresholds count keys (DSSE protocol): a second signature of one key adds nothing.
        if len({signature.keyid for signature in signatures}) != len(signatures):
            raise ValueError("signatures has two entries with one keyid")
    except ValueError as error:
        raise MalformedEvent(f"not a DSSE envelope: {error}") from None
    return Envelope(payload, payload_type, signatures)


def stored_payload(entry: bytes) -> bytes:
    """The payload of an entry that `parse` has accepted before; nothing is checked again."""
    if entry.startswith(_PAYLOAD_FIRST):
        text = entry[len(_PAYLOAD_FIRST) : entry.index(b'"', len(_PAYLOAD_FIRST))]
        if b"\\" not in text:  # as nearly every entry is spelled; another spelling is left to the parser
            return binascii.a2b_base64(text.translate(_STANDARD_BASE64))
    return binascii.a2b_base64(json.loads(entry.decode())["payload"].encode().translate(_STANDARD_BASE64))


def verify(envelope: Envelope, keyid: str, public_key: PublicKey) -> None:
    """Check the signature that carries `keyid` with `public_key`. Raises InvalidSignature."""
    signature = next((found for found in envelope.signatures if found.keyid == keyid), None)
    if signature is None:
        raise InvalidSignature(f"the envelope has no signature by key {keyid}")
    if not is_signed(public_key, signature.sig, pae(envelope.payload_type, envelope.payload)):
        raise misfit(keyid)


def misfit(keyid: str) -> InvalidSignature:
    """The error for a signature that its key did not make."""
    return InvalidSignature(
        f"the signature by key {keyid} does not fit the payload: it was changed, or signed with another key"
    )


def is_signed(public_key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether the key made the signature over exactly these bytes."""
    try:
        if isinstance(public_key, ed25519.Ed25519PublicKey):
            public_key.verify(signature, message)
        else:
            public_key.verify(signature, message, _ECDSA_SHA256)
    except exceptions.InvalidSignature:
        return False
    return True


def check_size(data: bytes, where: str = "") -> None:
    """Raises EventTooLarge."""
    if len(data) > MAX_ENTRY:
        raise EventTooLarge(
            f"{where}the envelope has {len(data)} bytes, at most {MAX_ENTRY} fit: "
            "store large content as an artifact and name it by digest"
        )


def _are_sound(signatures: tuple[Signature, ...]) -> bool:
    keyids = [signature.keyid for signature in signatures]
    return len(set(keyids)) == len(keyids) and all(map(str.isascii, keyids))


def _signature(value: Any, where: str) -> Signature:
    fields = _fields(value, where, {"keyid", "sig"})
    keyid = fields["keyid"]
    if not isinstance(keyid, str) or not 1 <= len(keyid) <= MAX_KEYID or not keyid.isascii():
        raise ValueError(f"{where}.keyid must be a string of 1 to {MAX_KEYID} ASCII characters")
    return Signature(keyid, _base64(fields["sig"], f"{where}.sig"))


def _fields(value: Any, where: str, expected: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object")
    if value.keys() != expected:
        missing, unknown = sorted(expected - value.keys()), sorted(value.keys() - expected)
        raise ValueError(f"{where} has missing fields {missing} and unknown fields {unknown}"[:300])
    return value


def _base64(value: Any, where: str) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string")
    try:
        return decode_any_base64(value.encode())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
