"""OpenSSF Model Signing: `model.sig`, which other people's tools verify.

    model_signing verify key artifacts --signature model.sig --public_key certification_key.pem

A Sigstore bundle holds a DSSE envelope with an in-toto statement that lists every file of the model with its SHA-256.
The format's root digest hashes the files' digests and not their names; the names stand beside it, signed too.
https://github.com/sigstore/model-transparency/blob/main/docs/model_signing_format.md
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from cryptography import exceptions
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ledger import strict_json
from ledger.envelope import PAYLOAD_TYPE, Signer, load_public_key, pae
from ledger.errors import InvalidSignature, MalformedEvent, MissingCapability
from ledger.statement import STATEMENT_TYPE
from ledger.strict_text import decode_base64, encode_base64

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

SignedFile = tuple[str, str]
"""Path relative to the model's folder, hex SHA-256."""


def sign(model: str, files: Iterable[SignedFile], signer: Signer) -> bytes:
    """The signature file over `files`. Raises MissingCapability unless the signer has an ECDSA P-256 key."""
    pem = public_key_pem(signer.public_key_der)
    payload = strict_json.canonical(_statement(model, sorted(files)))
    signature = encode_base64(signer.sign(pae(PAYLOAD_TYPE, payload))).decode()
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": encode_base64(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": signature, "keyid": ""}],
        },
    }
    return json.dumps(bundle, indent=2).encode() + b"\n"


def verify(data: bytes, public_key_der: bytes) -> list[SignedFile]:
    """The files a signature file vouches for, sorted. Raises MalformedEvent, InvalidSignature."""
    key = _p256(public_key_der)
    try:
        bundle = strict_json.loads(data)
        if bundle["mediaType"] != MEDIA_TYPE:
            raise ValueError(f"mediaType is not {MEDIA_TYPE}")
        envelope = bundle["dsseEnvelope"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"payloadType is not {PAYLOAD_TYPE}")
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
        payload = decode_base64(envelope["payload"].encode())
        signatures = [decode_base64(item["sig"].encode()) for item in envelope["signatures"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedEvent(f"not an OpenSSF model signature: {error}") from None
    if len(signatures) != 1:
        raise InvalidSignature("the model signature carries no signature, or more than one")
    if hint != hashlib.sha256(public_key_pem(public_key_der)).hexdigest():
        raise InvalidSignature("the model signature names another key")
    try:
        key.verify(signatures[0], pae(PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA256()))
    except exceptions.InvalidSignature:
        raise InvalidSignature("the model signature does not fit its payload") from None
    try:
        statement = strict_json.loads(payload)
        files = [(str(item["name"]), str(item["digest"])) for item in statement["predicate"]["resources"]]
        if statement != _statement(statement["subject"][0]["name"], sorted(files)):
            raise ValueError("its root digest or its form is wrong")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise MalformedEvent(f"the model signature's statement: {error}") from None
    return sorted(files)


def public_key_pem(public_key_der: bytes) -> bytes:
    """The key as the file that `model_signing verify key` takes."""
    return _p256(public_key_der).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _p256(public_key_der: bytes) -> ec.EllipticCurvePublicKey:
    key = load_public_key(public_key_der)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise MissingCapability("OpenSSF Model Signing needs an ECDSA P-256 key; rotate the actor's key to one")
    return key


def _statement(model: str, files: list[SignedFile]) -> dict[str, Any]:
    root = hashlib.sha256(b"".join(bytes.fromhex(sha256) for _, sha256 in files)).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": model, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": path, "algorithm": "sha256", "digest": sha256} for path, sha256 in files],
        },
    }
