"""DSSE envelopes and the in-toto statements inside them."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.vectors.make.cases import Case, b64, bad, good, octets

TYPE = "application/vnd.in-toto+json"
ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)
P256 = ec.derive_private_key(1_234_567, ec.SECP256R1())
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def pae(kind: str, body: bytes) -> bytes:
    """DSSE, "Signature Definition"; lengths in bytes."""
    encoded = kind.encode()
    return b" ".join([b"DSSEv1", str(len(encoded)).encode(), encoded, str(len(body)).encode(), body])


def paes() -> list[Case]:
    given = [
        ("example of the specification", "http://example.com/HelloWorld", b"hello world"),
        ("nothing in it", "", b""),
        ("lengths are in bytes, not characters", "text/ö", "åäö 日本".encode()),
        ("a type with spaces and digits", "1 2 3", b"4 5"),
        ("a payload that looks like more of it", TYPE, b"{} 2 {}"),
        ("a payload that is no text", TYPE, b"\x00\xff\n"),
        ("a payload of 1000 bytes", TYPE, b"x" * 1_000),
    ]
    return [good(name, {"pae": octets(pae(kind, body))}, type=kind, payload=octets(body)) for name, kind, body in given]


def der(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def keyid(key: Key) -> str:
    return sha256(der(key)).hexdigest()


def signature(key: Key, message: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    return key.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True))


def envelope(payload: bytes, /, *keys: Key, message: bytes | None = None, **changes: Any) -> bytes:
    signed = pae(TYPE, payload) if message is None else message
    fields: dict[str, Any] = {
        "payload": b64(payload),
        "payloadType": TYPE,
        "signatures": [{"keyid": keyid(key), "sig": b64(signature(key, signed))} for key in keys],
    }
    fields.update(changes)
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def envelopes() -> list[Case]:
    body = b'{"name":"\xc3\xb6","n":1}'
    bits = b"\xfb\xff\xbf\xfb\xff\xbf"  # in base64: plus and slash only
    both = [keyid(ED25519), keyid(P256)]
    characters = b" ".join([b"DSSEv1", str(len(TYPE)).encode(), TYPE.encode(), str(len(body) - 1).encode(), body])

    def given(data: bytes, key: Key = ED25519) -> Case:
        return {"envelope": octets(data), "public_key": b64(der(key)), "keyid": keyid(key)}

    def expected(payload: bytes, *keyids: str) -> Case:
        return {"payload": octets(payload), "payload_type": TYPE, "keyids": list(keyids)}

    def entry(**changes: Any) -> dict[str, Any]:
        return {"keyid": keyid(ED25519), "sig": b64(signature(ED25519, pae(TYPE, body))), **changes}

    plain = envelope(body, ED25519)
    url_safe = base64.urlsafe_b64encode(bits).decode()
    mixed = b64(bits)[:4] + url_safe[4:]
    many = [entry(keyid=f"{number}") for number in range(17)]
    pretty = json.dumps(json.loads(plain), indent=1, sort_keys=True).encode()
    coded = pae(TYPE, b64(body).encode())
    two = envelope(body, ED25519, P256)
    one, malformed, invalid = expected(body, both[0]), "malformed", "invalid-signature"
    return [
        good("Ed25519", one, **given(plain)),
        good("ECDSA P-256", expected(body, both[1]), **given(envelope(body, P256), P256)),
        good("two signatures, the first is asked", expected(body, *both), **given(two)),
        good("two signatures, the second is asked", expected(body, *both), **given(two, P256)),
        good("empty payload", expected(b"", both[0]), **given(envelope(b"", ED25519))),
        good("standard base64", expected(bits, both[0]), **given(envelope(bits, ED25519))),
        good("URL-safe base64", expected(bits, both[0]), **given(envelope(bits, ED25519, payload=url_safe))),
        good(
            "spaces and another order of fields",
            one,
            **given(pretty),
        ),
        bad("payload changed", invalid, **given(envelope(body + b" ", ED25519, message=pae(TYPE, body)))),
        bad("signed without PAE", invalid, **given(envelope(body, ED25519, message=body))),
        bad(
            "signed over the payload's base64",
            invalid,
            **given(envelope(body, ED25519, message=coded)),
        ),
        bad("signed with the length in characters", invalid, **given(envelope(body, ED25519, message=characters))),
        bad("signed as another type", invalid, **given(envelope(body, ED25519, message=pae("text/plain", body)))),
        bad("no signature by the key", invalid, **given(envelope(body, P256))),
        bad("another key under the keyid", invalid, **given(envelope(body, P256)) | {"keyid": keyid(P256)}),
        bad("empty signature", invalid, **given(envelope(body, signatures=[entry(sig="")]))),
        bad("signature cut off", invalid, **given(envelope(body, signatures=[entry(sig=b64(bytes(63)))]))),
        bad("another payload type", malformed, **given(envelope(body, ED25519, payloadType="application/json"))),
        bad("no signatures", malformed, **given(envelope(body))),
        bad("signatures of null", malformed, **given(envelope(body, ED25519, signatures={}))),
        bad("17 signatures", malformed, **given(envelope(body, signatures=many))),
        bad("one keyid twice", malformed, **given(envelope(body, ED25519, ED25519))),
        bad("signature without keyid", malformed, **given(envelope(body, signatures=[{"sig": entry()["sig"]}]))),
        bad("unknown field", malformed, **given(envelope(body, ED25519, extra=1))),
        bad("no payload", malformed, **given(envelope(body, ED25519, payload=None))),
        bad("payload that is no text", malformed, **given(envelope(body, ED25519, payload=7))),
        bad("payload without padding", malformed, **given(envelope(b"a", ED25519, payload="YQ"))),
        bad("payload with bits after its last byte", malformed, **given(envelope(b"a", ED25519, payload="YR=="))),
        bad("payload with a space", malformed, **given(envelope(b"a", ED25519, payload="Y Q=="))),
        bad("both alphabets of base64", malformed, **given(envelope(bits, ED25519, payload=mixed))),
        bad("a field twice", malformed, **given(plain[:-1] + b', "payload": ""}')),
        bad("text behind it", malformed, **given(plain + b"{}")),
        bad("byte order mark", malformed, **given(b"\xef\xbb\xbf" + plain)),
        bad("not UTF-8", malformed, **given(plain[:-1] + b"\xff}")),
        bad("a list", malformed, **given(b"[]")),
        bad("nested too deep", malformed, **given(b"[" * 200 + b"]" * 200)),
        bad("empty", malformed, **given(b"")),
        bad("65,536 bytes", "too-large", **given(b"")) | {"envelope": {"repeat": " ", "times": 65_536}},
    ]


STATEMENT: dict[str, Any] = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": "requests/r", "digest": {"sha256": "a" * 64}}],
    "predicateType": "https://modelledger.dev/events/TrainingStarted/v1",
    "predicate": {
        "event": {
            "id": "00000000-0000-4000-8000-000000000001",
            "stream": "training-runs/r",
            "version": 2,
            "kind": "TrainingStarted",
            "time": "2026-11-21T09:00:00.125Z",
            "actor": "trainer",
            "correlation": "c",
            "causation": "d",
        },
        "materials": [{"name": "base-models/x", "digest": {"sha256": "b" * 64}}],
        "data": {"run": "r", "worker": "ö"},
    },
}
EXPECTED = {
    **STATEMENT["predicate"]["event"],
    "subjects": [["requests/r", "a" * 64]],
    "materials": [["base-models/x", "b" * 64]],
    "data": STATEMENT["predicate"]["data"],
}


def statements() -> list[Case]:
    def changed(*place: str | int, to: Any = None, remove: bool = False) -> bytes:
        value = copy.deepcopy(STATEMENT)
        inner: Any = value
        for step in place[:-1]:
            inner = inner[step]
        if remove:
            del inner[place[-1]]
        else:
            inner[place[-1]] = to
        return json.dumps(value, ensure_ascii=False).encode()

    def event(field: str, value: Any) -> Case:
        data = changed("predicate", "event", field, to=value)
        return bad(f"{field} {_short(value)}", f"predicate.event.{field}", payload=octets(data))

    def subject(name: str, /, **fields: Any) -> Case:
        data = changed("subject", 0, to={**STATEMENT["subject"][0], **fields})
        return bad(f"subject: {name}", "subject[0]", payload=octets(data))

    plain = json.dumps(STATEMENT, ensure_ascii=False).encode()
    without = json.loads(plain)
    del without["predicate"]["event"]["correlation"], without["predicate"]["event"]["causation"]
    whole = "statement"
    number = b'"version": 2'
    twice = STATEMENT["subject"] * 2
    alone = {**EXPECTED, "correlation": "", "causation": ""}
    kinds = "https://modelledger.dev/events"
    other_kind = changed("predicateType", to=f"{kinds}/TrainingFailed/v1")
    other_version = changed("predicateType", to=f"{kinds}/TrainingStarted/v2")
    escaped = plain.replace(number, number + b', "versio\\u006e": 2')
    return [
        good("an event", EXPECTED, payload=octets(plain)),
        good("escaped, indented, other order", EXPECTED, payload=json.dumps(STATEMENT, indent=1, sort_keys=True)),
        good(
            "no correlation, no causation",
            alone,
            payload=json.dumps(without),
        ),
        good("no materials", {**EXPECTED, "materials": []}, payload=octets(changed("predicate", "materials", to=[]))),
        bad(
            "another statement type", "_type", payload=octets(changed("_type", to="https://in-toto.io/Statement/v0.1"))
        ),
        bad("unknown field", whole, payload=octets(changed("extra", to=1))),
        bad("no subject", "subject", payload=octets(changed("subject", to=[]))),
        bad("subject left out", "subject", payload=octets(changed("subject", remove=True))),
        bad("a subject twice", "subject", payload=octets(changed("subject", to=twice))),
        subject("no name", name=""),
        subject("name of 301 characters", name="x" * 301),
        subject("newline in the name", name="a\nb"),
        subject("upper-case digest", digest={"sha256": "A" * 64}),
        subject("digest of 63 digits", digest={"sha256": "a" * 63}),
        subject("digits of another alphabet", digest={"sha256": "٣" * 64}),
        subject("a second digest", digest={"sha256": "a" * 64, "sha512": "a" * 128}),
        subject("another field", uri="https://example.com"),
        bad(
            "predicate type of another kind",
            "predicateType",
            payload=octets(other_kind),
        ),
        bad(
            "predicate type of another version",
            "predicateType",
            payload=octets(other_version),
        ),
        bad("unknown field in the predicate", "predicate", payload=octets(changed("predicate", "more", to=1))),
        bad("data that is a list", "predicate.data", payload=octets(changed("predicate", "data", to=[]))),
        bad("no id", "predicate.event.id", payload=octets(changed("predicate", "event", "id", remove=True))),
        event("id", "A0000000-0000-4000-8000-000000000001"),
        event("id", "00000000000040008000000000000001"),
        event("stream", "training-runs/../x"),
        event("stream", "/training-runs"),
        event("stream", "training-runs/r\n"),
        event("version", 0),
        event("version", -1),
        event("version", 1.0),
        event("version", True),
        event("version", "2"),
        event("version", 2**53),
        event("time", "2026-11-21 09:00:00Z"),
        event("time", "2026-11-21T09:00:00+00:00"),
        event("time", "2026-02-30T09:00:00Z"),
        event("time", "2026-11-21T24:00:01Z"),
        event("time", "٢٠٢٦-11-21T09:00:00Z"),
        event("actor", "a\x00b"),
        event("actor", "x" * 601),
        event("actor", None),
        bad("number of 5,000 digits", whole, payload=octets(plain.replace(number, b'"version": ' + b"9" * 5_000))),
        bad("number with an underscore", whole, payload=octets(plain.replace(number, b'"version": 1_0'))),
        bad("NaN", whole, payload=octets(plain.replace(number, b'"version": NaN'))),
        bad("a number beyond a double", whole, payload=octets(plain.replace(number, b'"version": 1e400'))),
        bad("a field twice", whole, payload=octets(plain.replace(number, number + b", " + number))),
        bad(
            "a field twice, once escaped",
            whole,
            payload=octets(escaped),
        ),
        bad("half a surrogate pair", whole, payload=octets(plain.replace("ö".encode(), b"\\ud800"))),
        bad("byte order mark", whole, payload=octets(b"\xef\xbb\xbf" + plain)),
        bad("not UTF-8", whole, payload=octets(plain.replace("ö".encode(), b"\xf6"))),
        bad("text behind it", whole, payload=octets(plain + b"\x00")),
        bad("nested too deep", whole, payload="[" * 200 + "]" * 200),
        bad("a list", whole, payload="[]"),
        bad("empty", whole, payload=""),
    ]


def _short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) < 60 else f"of {len(value)} characters"


FILES: dict[str, Callable[[], list[Case]]] = {"pae": paes, "envelopes": envelopes, "statements": statements}
