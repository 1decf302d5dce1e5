"""Verifier keys, checkpoints and proof files: signed-note, tlog-checkpoint, tlog-proof."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.vectors.make.cases import Case, b64, bad, good, octets
from tests.vectors.make.trees import LEAVES, mth, path

LOG, OTHER = "modelledger.example/log", "modelledger.example/other"
KEYS = {
    LOG: Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
    OTHER: Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32),
}


def public(name: str) -> bytes:
    return KEYS[name].public_key().public_bytes_raw()


def key_id(name: str, kind: int, key: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + bytes([kind]) + key).digest()[:4]


def vkey(name: str, kind: int = 1) -> str:
    return f"{name}+{key_id(name, kind, public(name)).hex()}+{b64(bytes([kind]) + public(name))}"


def line(name: str, text: bytes) -> bytes:
    blob = key_id(name, 1, public(name)) + KEYS[name].sign(text)
    return f"— {name} {b64(blob)}\n".encode()


def note(text: bytes, *names: str) -> bytes:
    return text + b"\n" + b"".join(line(name, text) for name in names)


def checkpoint(size: Any, root: bytes | None = None, *more: str, origin: str = LOG) -> bytes:
    root = mth(0, int(size)) if root is None else root
    return "".join(f"{text}\n" for text in (origin, size, b64(root), *more)).encode()


def verifier_keys() -> list[Case]:
    name, digits, key = vkey(LOG).split("+", 2)
    plus = next(seed for seed in range(256) if "+" in b64(b"\x01" + _seeded(seed)))
    unsupported = b64(b"\x02" + public(LOG))
    ecdsa_id = key_id(LOG, 2, public(LOG)).hex()

    def expected(name: str, kind: int, key: bytes) -> Case:
        return {"name": name, "key_id": key_id(name, kind, key).hex(), "type": kind, "public_key": b64(key)}

    def with_key(name: str, key: bytes) -> str:
        return f"{name}+{key_id(name, 1, key).hex()}+{b64(bytes([1]) + key)}"

    word = "malformed-key"
    return [
        good("Ed25519", expected(LOG, 1, public(LOG)), vkey=vkey(LOG)),
        good("Ed25519 cosignature: the same key has another ID", expected(LOG, 4, public(LOG)), vkey=vkey(LOG, 4)),
        good("base64 with a plus", expected("a", 1, _seeded(plus)), vkey=with_key("a", _seeded(plus))),
        good("name outside ASCII", expected("ö/日本", 1, public(LOG)), vkey=with_key("ö/日本", public(LOG))),
        bad("empty", word, vkey=""),
        bad("no key", word, vkey=f"{name}+{digits}"),
        bad("no name", word, vkey=f"+{digits}+{key}"),
        bad("upper-case key ID", word, vkey=f"{name}+{digits.upper()}+{key}"),
        bad("key ID of seven digits", word, vkey=f"{name}+{digits[:7]}+{key}"),
        bad("another key ID", word, vkey=f"{name}+00000000+{key}"),
        bad("key ID of another name", word, vkey=f"{OTHER}+{digits}+{key}"),
        bad("space in the name", word, vkey=with_key("a b", public(LOG))),
        bad("Unicode space in the name", word, vkey=with_key("a\u2003b", public(LOG))),
        bad("key without padding", word, vkey=with_key("a", bytes(31)).rstrip("=")),
        bad("URL-safe base64", word, vkey=with_key("a", _seeded(plus)).rpartition("+")[0].replace("+", "-")),
        bad("key of 31 bytes", word, vkey=with_key("a", bytes(31))),
        bad("key of 33 bytes", word, vkey=with_key("a", bytes(33))),
        bad("type 0x02 in an Ed25519 key's place", word, vkey=f"{name}+{ecdsa_id}+{unsupported}"),
        bad("newline at the end", word, vkey=f"{vkey(LOG)}\n"),
    ]


def _seeded(seed: int) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32).public_key().public_bytes_raw()


def checkpoints() -> list[Case]:
    def expected(size: int, *extensions: str, origin: str = LOG) -> Case:
        return {"origin": origin, "size": str(size), "root": b64(mth(0, size)), "extensions": list(extensions)}

    root, word = mth(0, 7), "malformed-checkpoint"
    text = checkpoint(7)
    sizes = ["", "07", "00", "+7", "-7", " 7", "7 ", "7.0", "1_0", "0x7", "٣", "²", str(2**63), "9" * 30, "7\t"]
    largest = {**expected(7), "size": str(2**63 - 1)}
    return [
        good("seven entries", expected(7), text=octets(text)),
        good("empty log", expected(0), text=octets(checkpoint(0))),
        good("largest size", largest, text=octets(checkpoint(str(2**63 - 1), root))),
        good("extension lines", expected(7, "one", "two words"), text=octets(checkpoint(7, None, "one", "two words"))),
        good(
            "only U+000A ends a line",
            expected(7, "b\u2029c", origin="a\u0085b\u2028c"),
            text=octets(checkpoint(7, None, "b\u2029c", origin="a\u0085b\u2028c")),
        ),
        good("spaces in the origin", expected(7, origin="a b c"), text=octets(checkpoint(7, origin="a b c"))),
        *(bad(f"size {size!r}", word, text=octets(checkpoint(size, root))) for size in sizes),
        bad("empty", word, text=""),
        bad("no newline at the end", word, text=octets(text[:-1])),
        bad("empty origin", word, text=octets(checkpoint(7, origin=""))),
        bad("no root", word, text=f"{LOG}\n7\n"),
        bad("blank line at the end", word, text=octets(text + b"\n")),
        bad("empty extension line", word, text=octets(checkpoint(7, None, "", "more"))),
        bad("root of 31 bytes", word, text=octets(checkpoint(7, root[:31]))),
        bad("root of 33 bytes", word, text=octets(checkpoint(7, root + b"\x00"))),
        bad("root in hexadecimal", word, text=f"{LOG}\n7\n{root.hex()}\n"),
        bad("root without padding", word, text=octets(text.replace(b"=", b""))),
        bad("root with bits after its last byte", word, text=octets(_trailing_bits(text))),
        bad("root in URL-safe base64", word, text=octets(checkpoint(0).replace(b"+", b"-").replace(b"/", b"_"))),
        bad("root with a space behind it", word, text=octets(text[:-1] + b" \n")),
        bad("size 0 with another root", word, text=octets(checkpoint(0, root))),
        bad("carriage returns", word, text=octets(text.replace(b"\n", b"\r\n"))),
        bad("not UTF-8", word, text=octets(b"\xff" + text)),
    ]


def _trailing_bits(text: bytes) -> bytes:
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    place = text.rindex(b"=") - 1
    return text[:place] + bytes([alphabet[alphabet.index(text[place]) + 1]]) + text[place + 1 :]


def signed_checkpoints() -> list[Case]:
    text, expect = checkpoint(7), {"size": "7", "root": b64(mth(0, 7)), "signers": [LOG]}
    both = {**expect, "signers": [OTHER, LOG]}

    def given(data: bytes, *names: str) -> Case:
        return {"note": octets(data), "origin": LOG, "vkeys": [vkey(name) for name in names or (LOG,)]}

    witness = {**given(note(text, LOG)), "vkeys": [vkey(LOG, 4)]}
    return [
        good("signed by the log", expect, **given(note(text, LOG))),
        good("another signature before the log's", expect, **given(note(text, OTHER, LOG))),
        good("two trusted signatures", both, **given(note(text, OTHER, LOG), LOG, OTHER)),
        good("with extension lines", expect, **given(note(checkpoint(7, None, "more"), LOG))),
        bad("of another log", "wrong-origin", **given(note(checkpoint(7, origin=OTHER), LOG))),
        bad("signed by another key only", "unknown-signer", **given(note(text, OTHER))),
        bad("the key under another ID", "unknown-signer", **witness),
        bad("size changed", "bad-signature", **given(note(text, LOG).replace(b"\n7\n", b"\n8\n"))),
        bad("not a checkpoint", "malformed-checkpoint", **given(note(b"hello\n", LOG))),
        bad(
            "signed twice, a blank between",
            "bad-signature",
            **given(note(text, LOG) + note(text, LOG)[len(text) :]),
        ),
    ]


def proof_files() -> list[Case]:
    def file(index: Any, size: int, *, extra: bytes | None = None, proof: Sequence[bytes] | None = None) -> bytes:
        lines = ["c2sp.org/tlog-proof@v1", *([] if extra is None else [f"extra {b64(extra)}"]), f"index {index}"]
        lines += [b64(value) for value in (path(int(index), 0, size) if proof is None else proof)]
        return "".join(f"{text}\n" for text in lines).encode() + b"\n" + note(checkpoint(size), LOG)

    def given(data: Any, entry: str = "entry 2") -> Case:
        return {"file": octets(data), "entry": entry, "origin": LOG, "vkeys": [vkey(LOG)]}

    def expected(index: int, size: int, extra: bytes | None = None) -> Case:
        return {
            "index": str(index),
            "size": str(size),
            "root": b64(mth(0, size)),
            "extra": None if extra is None else b64(extra),
        }

    plain, right = file(2, 7), path(2, 0, 7)
    first = f"{b64(right[0])}\n".encode()
    extended = plain.partition(b"\n\n")[0] + b"\n\n" + note(checkpoint(7, None, "more"), LOG)
    word = "malformed-proof"
    return [
        good("entry 2 of 7", expected(2, 7), **given(plain)),
        good("the only entry: no hashes", expected(0, 1), **given(file(0, 1), "entry 0")),
        good("extra data", expected(2, 7, b"hello"), **given(file(2, 7, extra=b"hello"))),
        good("checkpoint with an extension line", expected(2, 7), **given(extended)),
        good("another signature behind", expected(2, 7), **given(plain + line(OTHER, checkpoint(7)))),
        bad("another entry", "not-included", **given(plain, "entry 3")),
        bad("the entry's hash instead of the entry", "not-included", **given(plain, LEAVES[2].hex())),
        bad("another index", "not-included", **given(plain.replace(b"index 2", b"index 3"))),
        bad("index beyond the checkpoint", "not-included", **given(plain.replace(b"index 2", b"index 7"))),
        bad("hashes reversed", "not-included", **given(file(2, 7, proof=right[::-1]))),
        bad("a hash missing", "not-included", **given(file(2, 7, proof=right[1:]))),
        bad("checkpoint of another size", "not-included", **given(file(2, 8, proof=right))),
        bad("checkpoint changed", "bad-signature", **given(plain.replace(b"\n7\n", b"\n8\n"))),
        bad("checkpoint of another log", "wrong-origin", **given(plain) | {"origin": OTHER}),
        bad("checkpoint signed by another key", "unknown-signer", **given(plain) | {"vkeys": [vkey(OTHER)]}),
        bad("another version", word, **given(plain.replace(b"@v1", b"@v2"))),
        bad("no header", word, **given(plain.partition(b"\n")[2])),
        bad("no index", word, **given(plain.replace(b"index 2\n", b""))),
        bad("index with a leading zero", word, **given(plain.replace(b"index 2", b"index 02"))),
        bad("index with an underscore", word, **given(plain.replace(b"index 2", b"index 2_0"))),
        bad("index with two spaces", word, **given(plain.replace(b"index 2", b"index  2"))),
        bad("a size that nobody signed", word, **given(plain.replace(b"index 2", b"index 2\nsize 7"))),
        bad("empty extra line", word, **given(plain.replace(b"index", b"extra \nindex"))),
        bad("extra line twice", word, **given(plain.replace(b"index", b"extra YQ==\nextra YQ==\nindex"))),
        bad("extra line behind the index", word, **given(plain.replace(b"index 2\n", b"index 2\nextra YQ==\n"))),
        bad("a hash of 31 bytes", word, **given(plain.replace(first, f"{b64(right[0][:31])}\n".encode()))),
        bad("a hash without padding", word, **given(plain.replace(first, first.replace(b"=", b"")))),
        bad("64 hashes", word, **given(plain.replace(first, first * 62))),
        bad("no blank line before the checkpoint", word, **given(plain.replace(b"\n\n", b"\n", 1))),
        bad("no checkpoint", word, **given(plain.partition(b"\n\n")[0] + b"\n\n")),
        bad("carriage returns", word, **given(plain.replace(b"\n", b"\r\n"))),
        bad("empty", word, **given(b"")),
    ]


FILES = {
    "verifier_keys": verifier_keys,
    "checkpoints": checkpoints,
    "signed_checkpoints": signed_checkpoints,
    "proof_files": proof_files,
}
