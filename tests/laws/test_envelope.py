"""DSSE envelopes: known answers, round trips, every changed byte, and everything that is not one."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ledger import envelope
from ledger.envelope import (
    MAX_ENTRY,
    PAYLOAD_TYPE,
    Signature,
    key_id,
    load_public_key,
    pae,
    parse,
    payload_digest,
    sign,
    stored_payload,
    verify,
)
from ledger.errors import EventTooLarge, InvalidInput, InvalidSignature, MalformedEvent

SPKI = PublicFormat.SubjectPublicKeyInfo


@dataclass(frozen=True)
class KeySigner:
    private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

    @property
    def public_key_der(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.DER, SPKI)

    @property
    def keyid(self) -> str:
        return key_id(self.private.public_key())

    def sign(self, data: bytes) -> bytes:
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(data)
        return self.private.sign(data, ec.ECDSA(hashes.SHA256()))


P256 = KeySigner(ec.derive_private_key(1_234_567, ec.SECP256R1()))
ED25519 = KeySigner(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
PAYLOAD = b'{"_type":"https://in-toto.io/Statement/v1","n":1}'

both = pytest.mark.parametrize("signer", [P256, ED25519], ids=["P-256", "Ed25519"])


def public(signer: KeySigner) -> Any:
    return load_public_key(signer.public_key_der)


def test_pae_known_answer() -> None:
    # github.com/secure-systems-lab/dsse, protocol.md, "Test Vectors"
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_pae_counts_bytes_not_characters() -> None:
    assert pae("tÿpe", "é".encode()) == "DSSEv1 5 tÿpe 2 é".encode()
    assert pae("", b"") == b"DSSEv1 0  0 "


@given(st.text(max_size=8), st.binary(max_size=8), st.text(max_size=8), st.binary(max_size=8))
def test_pae_is_injective(type_a: str, a: bytes, type_b: str, b: bytes) -> None:
    assert (pae(type_a, a) == pae(type_b, b)) == ((type_a, a) == (type_b, b))


@given(st.binary(max_size=2_000))
def test_signed_envelopes_parse_and_verify(payload: bytes) -> None:
    envelope = parse(sign(payload, [P256, ED25519]))
    assert (envelope.payload, envelope.payload_type) == (payload, PAYLOAD_TYPE)
    assert [signature.keyid for signature in envelope.signatures] == [P256.keyid, ED25519.keyid]
    for signer in (P256, ED25519):
        verify(envelope, signer.keyid, public(signer))


@both
def test_every_changed_byte_is_refused_or_says_the_same(signer: KeySigner) -> None:
    """The one thing that may survive is another spelling of the same payload (base64 alphabet)."""
    data, key = sign(PAYLOAD, [signer]), public(signer)
    for position in range(len(data)):
        for mask in (0x01, 0x02, 0x20, 0x80):
            changed = data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]
            try:
                envelope = parse(changed)
                verify(envelope, signer.keyid, key)
            except (MalformedEvent, InvalidSignature):
                continue
            assert envelope.payload == PAYLOAD
            assert {data[position], changed[position]} in ({ord("+"), ord("-")}, {ord("/"), ord("_")})


@both
def test_another_payload_key_or_type_does_not_verify(signer: KeySigner) -> None:
    envelope, other = parse(sign(PAYLOAD, [signer])), ED25519 if signer is P256 else P256
    with pytest.raises(InvalidSignature, match="does not fit"):
        verify(envelope, signer.keyid, public(other))
    with pytest.raises(InvalidSignature, match="no signature by key"):
        verify(envelope, other.keyid, public(other))
    forged = sign(PAYLOAD + b" ", [signer]).split(b'"signatures"')[0] + (
        sign(PAYLOAD, [signer]).partition(b'"signatures"')[1] + sign(PAYLOAD, [signer]).split(b'"signatures"')[1]
    )
    with pytest.raises(InvalidSignature, match="does not fit"):
        verify(parse(forged), signer.keyid, public(signer))
    other_type = sign(PAYLOAD, [signer], "text/plain").replace(b"text/plain", PAYLOAD_TYPE.encode())
    with pytest.raises(InvalidSignature, match="does not fit"):
        verify(parse(other_type), signer.keyid, public(signer))


def test_the_digest_is_of_the_payload() -> None:
    # ECDSA is randomised: two envelopes of one payload differ and say the same.
    first, second = sign(PAYLOAD, [P256]), sign(PAYLOAD, [P256])
    assert first != second
    assert payload_digest(parse(first)) == payload_digest(parse(second))
    assert payload_digest(parse(sign(b"", [ED25519]))).startswith("e3b0c44298fc1c14")


def test_url_safe_base64_is_read_and_a_mixture_is_not() -> None:
    payload = b"\xfb\xff\xbf\xfb\xff\xbf"
    data = sign(payload, [ED25519])
    standard, url_safe = base64.b64encode(payload), base64.urlsafe_b64encode(payload)
    assert parse(data.replace(standard, url_safe)).payload == payload
    with pytest.raises(MalformedEvent, match="payload: mixes"):
        parse(data.replace(standard, standard[:4] + url_safe[4:]))


def edited(**changes: Any) -> bytes:
    value = json.loads(sign(PAYLOAD, [ED25519]))
    value.update(changes)
    return json.dumps({name: item for name, item in value.items() if item is not ...}).encode()


GOOD = {"keyid": "a", "sig": "YQ=="}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "UTF-8"),
        (b"[]", "envelope must be an object"),
        (b"null", "envelope must be an object"),
        (edited() + b"{}", "Extra data"),
        (edited()[:-1] + b', "payload": ""}', "duplicate key 'payload'"),
        (edited(payload=...), r"missing fields \['payload'\]"),
        (edited(extra=1), r"unknown fields \['extra'\]"),
        (edited(payload=7), "payload must be a string"),
        (edited(payload="YQ"), "payload: not standard base64"),
        (edited(payload="YR=="), "payload: not standard base64"),
        (edited(payload="Y Q="), "payload: not standard base64"),
        (edited(payload="YQ==\n"), "payload: not standard base64"),
        (edited(payload="\ud800"), "half of a surrogate pair"),
        (edited(payloadType="application/json"), "payloadType must be"),
        (edited(payloadType=None), "payloadType must be"),
        (edited(signatures={}), "list of 1 to 16"),
        (edited(signatures=[]), "list of 1 to 16"),
        (edited(signatures=[{**GOOD, "keyid": str(i)} for i in range(17)]), "list of 1 to 16"),
        (edited(signatures=[GOOD, GOOD]), "two entries with one keyid"),
        (edited(signatures=[GOOD, "x"]), r"signatures\[1\] must be an object"),
        (edited(signatures=[{"sig": "YQ=="}]), r"signatures\[0\] has missing fields \['keyid'\]"),
        (edited(signatures=[{**GOOD, "cert": ""}]), r"unknown fields \['cert'\]"),
        (edited(signatures=[{**GOOD, "keyid": ""}]), r"signatures\[0\].keyid must be"),
        (edited(signatures=[{**GOOD, "keyid": "x" * 129}]), r"signatures\[0\].keyid must be"),
        (
            '{"payload":"","payloadType":"%s","signatures":[{"keyid":"é","sig":""}]}'.encode() % PAYLOAD_TYPE.encode(),
            "ASCII",
        ),
        (edited(signatures=[{**GOOD, "keyid": "\ud800"}]), "half of a surrogate pair"),
        (edited(signatures=[{**GOOD, "keyid": 7}]), r"signatures\[0\].keyid must be"),
        (edited(signatures=[{**GOOD, "sig": "!"}]), r"signatures\[0\].sig: not standard base64"),
        (b"[" * 5_000, "nested deeper"),
    ],
)
def test_what_is_not_an_envelope_is_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedEvent, match=reason):
        parse(data)
    written = data.replace(b": ", b":").replace(b", ", b",")  # as `encode` spells it, which is read in another way
    with pytest.raises(MalformedEvent, match=reason):
        parse(written)


def test_what_is_signed_is_read_the_short_way() -> None:
    for signers in ([P256], [ED25519], [P256, ED25519]):
        data = sign(PAYLOAD, signers)
        assert envelope._WRITTEN.read(data) == parse(data)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_malformed_event(data: bytes) -> None:
    with pytest.raises(MalformedEvent):
        parse(data)


def test_an_entry_fits_into_a_bundle() -> None:
    overhead = len(sign(b"", [ED25519]))
    largest = (MAX_ENTRY - overhead) // 4 * 3
    assert len(sign(bytes(largest), [ED25519])) <= MAX_ENTRY == 65_535
    with pytest.raises(EventTooLarge, match="store large content as an artifact"):
        sign(bytes(largest + 3), [ED25519])
    with pytest.raises(EventTooLarge, match="65536 bytes"):
        parse(b" " * (MAX_ENTRY + 1))


def test_signers_are_counted_and_different() -> None:
    for signers in ([], [P256, P256]):
        with pytest.raises(InvalidInput, match="1 to 16 signers"):
            sign(PAYLOAD, signers)


def test_an_unusable_signature_is_invalid_not_a_crash() -> None:
    for signer in (P256, ED25519):
        envelope = parse(edited(signatures=[{"keyid": signer.keyid, "sig": ""}]))
        assert envelope.signatures == (Signature(signer.keyid, b""),)
        with pytest.raises(InvalidSignature):
            verify(envelope, signer.keyid, public(signer))


@both
def test_keys_load_and_are_named_by_their_der(signer: KeySigner) -> None:
    assert key_id(load_public_key(signer.public_key_der)) == signer.keyid
    assert len(signer.keyid) == 64


def test_other_keys_are_refused() -> None:
    p384 = ec.derive_private_key(7, ec.SECP384R1()).public_key()
    rsa_key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048).public_key()
    # The same P-256 key with a compressed point: a second DER, which would be a second keyid.
    compressed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + (
        P256.private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    )
    for der, reason in [
        (b"", "not DER"),
        (b"junk", "not DER"),
        (P256.public_key_der[:-1], "not DER"),
        (P256.public_key_der + b"\x00", "not DER|canonical"),
        (compressed, "canonical"),
        (bytes(2_000), "more than 1024"),
        (p384.public_bytes(Encoding.DER, SPKI), "curve secp384r1"),
        (rsa_key.public_bytes(Encoding.DER, SPKI), "expected ECDSA P-256 or Ed25519"),
    ]:
        with pytest.raises(InvalidInput, match=reason):
            load_public_key(der)


@given(st.data())
def test_the_spelling_of_our_writer_is_read_as_any_other(data: st.DataObject) -> None:
    """One entry in two spellings, the writer's own and one with spaces, damaged alike: the same envelope or refusal."""
    entry = bytearray(sign(data.draw(st.binary(min_size=1, max_size=40)), [ED25519]))
    for at in data.draw(st.lists(st.integers(0, len(entry) - 1), max_size=2)):
        entry[at] = data.draw(st.sampled_from(b'AB+/=-_ "\\9f\x00\xff'))
    spaced = bytes(entry).replace(b'{"payload"', b'{ "payload"', 1)

    def read(text: bytes) -> object:
        try:
            return parse(text)
        except MalformedEvent as error:
            return error.message.partition(" at character ")[0].partition(" at byte ")[0]

    assert read(bytes(entry)) == read(spaced)


@given(st.binary(max_size=200), st.booleans(), st.booleans(), st.booleans())
def test_the_payload_of_an_accepted_entry_is_recalled_however_it_is_spelled(
    payload: bytes, url_safe: bool, escaped: bool, payload_first: bool
) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    text = encode(payload).decode()
    if escaped and text:
        text = f"\\u{ord(text[0]):04x}{text[1:]}"
    signatures = '"signatures":[{"keyid":"a","sig":"AAAA"}]'
    fields = [f'"payload":"{text}"', f'"payloadType":"{PAYLOAD_TYPE}"', signatures]
    entry = f"{{{','.join(fields if payload_first else fields[::-1])}}}".encode()
    assert stored_payload(entry) == parse(entry).payload == payload
