"""Edge cases of signatures and keys, from a file that other languages can run: tests/vectors/signatures.json."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from ledger import envelope, possession
from ledger.envelope import Envelope, Signature, is_signed, load_public_key
from ledger.errors import InvalidInput, InvalidSignature
from ledger.kit.keys import FileSigner
from tests.logs import ed25519_signer, signer

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "signatures.json").read_text())
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SIGNERS = [signer(1), ed25519_signer(1)]
either = st.sampled_from(SIGNERS)


def _named(cases: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[f"{c.get('algorithm', '')} {c['name']}".strip() for c in cases])


@_named(VECTORS["signatures"])
def test_a_signature_is_valid_or_not(case: dict[str, Any]) -> None:
    key = load_public_key(base64.b64decode(case["public_key"]))
    assert is_signed(key, bytes.fromhex(case["signature"]), bytes.fromhex(case["message"])) == case["valid"]


@_named(VECTORS["keys"])
def test_a_key_may_be_enrolled_or_not(case: dict[str, Any]) -> None:
    der = base64.b64decode(case["public_key"])
    if case["valid"]:
        load_public_key(der)
    else:
        with pytest.raises(InvalidInput, match="public key"):
            load_public_key(der)


def test_the_file_has_both_answers_for_both_algorithms() -> None:
    answers = {(case["algorithm"], case["valid"]) for case in VECTORS["signatures"]}
    assert answers == {(algorithm, valid) for algorithm in ("ECDSA P-256", "Ed25519") for valid in (True, False)}
    assert {case["valid"] for case in VECTORS["keys"]} == {True, False}
    names = [case["name"] for case in VECTORS["keys"]]
    assert len(names) == len(set(names))


def test_under_a_key_of_small_order_anybody_can_sign() -> None:
    """Why such keys are refused: the library itself takes them, and this signature fits every message."""
    identity = (1).to_bytes(32, "little")
    ed25519.Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"whatever")


@given(either, st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 7))
def test_a_changed_bit_of_message_or_signature_is_found(key: FileSigner, message: bytes, place: int, bit: int) -> None:
    public, signature = load_public_key(key.public_key_der), key.sign(message)
    assert is_signed(public, signature, message)
    changed = bytearray(signature)
    changed[place % len(changed)] ^= 1 << bit
    assert not is_signed(public, bytes(changed), message)
    if message:
        other = bytearray(message)
        other[place % len(other)] ^= 1 << bit
        assert not is_signed(public, signature, bytes(other))


@given(st.binary(max_size=50))
def test_an_event_with_the_other_spelling_of_an_ecdsa_signature_is_the_same_event(payload: bytes) -> None:
    key = SIGNERS[0]
    first = envelope.parse(envelope.sign(payload, [key]))
    r, s = decode_dss_signature(first.signatures[0].sig)
    twin = Envelope(payload, first.payload_type, (Signature(key.keyid, encode_dss_signature(r, P256_ORDER - s)),))
    envelope.verify(twin, key.keyid, load_public_key(key.public_key_der))
    assert envelope.payload_digest(twin) == envelope.payload_digest(first)


@given(st.binary(max_size=80))
def test_random_bytes_are_no_signature_and_no_key(junk: bytes) -> None:
    for key in SIGNERS:
        assert not is_signed(load_public_key(key.public_key_der), junk, b"message")
    with pytest.raises(InvalidInput):
        load_public_key(junk)


# Possession


@given(either)
def test_a_proof_of_possession_serves_for_one_actor_and_one_rotation(key: FileSigner) -> None:
    proof, der = possession.prove("trainer", "a" * 64, key), key.public_key_der
    assert possession.is_proven("trainer", "a" * 64, der, proof)
    for actor, replaced in (("trainer", ""), ("trainer", "b" * 64), ("registry", "a" * 64), ("trainer\n", "a" * 64)):
        assert not possession.is_proven(actor, replaced, der, proof)
    assert not possession.is_proven("trainer", "a" * 64, signer(9).public_key_der, proof)


def test_a_proof_is_never_an_event_s_signature() -> None:
    key = SIGNERS[1]
    text = f"modelledger.dev/key-possession/v1\ntrainer\n\n{key.keyid}\n".encode()
    assert key.sign(text) == possession.prove("trainer", "", key), "the documented text is what is signed"
    forged = Envelope(text, envelope.PAYLOAD_TYPE, (Signature(key.keyid, possession.prove("trainer", "", key)),))
    with pytest.raises(InvalidSignature):
        envelope.verify(forged, key.keyid, load_public_key(key.public_key_der))
    assert not envelope.pae(envelope.PAYLOAD_TYPE, b"").startswith(b"modelledger.dev/")


def test_p256_and_ed25519_are_different_keys_of_different_types() -> None:
    first, second = (load_public_key(key.public_key_der) for key in SIGNERS)
    assert isinstance(first, ec.EllipticCurvePublicKey)
    assert isinstance(second, ed25519.Ed25519PublicKey)
