"""Signed notes, checkpoints, cosignatures and proof files: published cases, inverses, every changed byte."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.checkpoint import Checkpoint, MalformedCheckpoint, WrongOrigin, open_checkpoint, sign_checkpoint
from ledger.edge import Edge
from ledger.merkle import EMPTY_ROOT, inclusion_proof, leaf_hash
from ledger.note import (
    BadSignature,
    Cosigner,
    LogSigner,
    MalformedKey,
    MalformedNote,
    NoteError,
    UnknownSigner,
    UnsignedNote,
    Verifier,
    open_note,
)
from ledger.proof_file import LogProof, MalformedProof, NotIncluded, encode_proof, parse_proof, verify_proof
from ledger.strict_text import decode_any_base64, decode_base64, decode_decimal, encode_base64

LOG = LogSigner("modelledger.example/log", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = LogSigner("modelledger.example/other", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
WITNESS = Cosigner("witness.example/w1", Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32))
ROOT = leaf_hash(b"x")

lines = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), max_size=30)
texts = st.lists(lines, min_size=1, max_size=6).map(lambda parts: "".join(f"{part}\n" for part in parts).encode())
nonempty = lines.filter(bool)


@given(texts)
def test_notes_are_inverse(text: bytes) -> None:
    assert open_note(LOG.sign(text), [LOG.verifier]).text == text


@given(texts, st.integers(0, 2**63 - 1))
def test_cosigned_notes_are_inverse(text: bytes, time: int) -> None:
    note = open_note(LOG.sign(text) + WITNESS.cosign(text, time), [WITNESS.verifier])
    assert (note.text, [found.timestamp for found in note.signatures]) == (text, [time])


def changed_bytes(data: bytes) -> list[tuple[int, bytes]]:
    return [
        (position, data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :])
        for position in range(len(data))
        for mask in (0x01, 0x20, 0x80)
    ]


def test_every_changed_byte_is_refused() -> None:
    note = sign_checkpoint(LOG, 10, ROOT)
    for _, changed in changed_bytes(note):
        with pytest.raises(NoteError):
            open_note(changed, [LOG.verifier])


def test_a_changed_byte_in_an_unknown_line_changes_nothing_that_is_trusted() -> None:
    note = sign_checkpoint(LOG, 10, ROOT)
    signed = note + WITNESS.cosign(Checkpoint(LOG.name, 10, ROOT).encode(), 7)
    trusted = open_note(note, [LOG.verifier])
    ignored = 0
    for position, changed in changed_bytes(signed):
        try:
            opened = open_note(changed, [LOG.verifier])
        except NoteError:
            continue
        assert position >= len(note)
        assert opened == trusted
        ignored += 1
    assert ignored > 100


@given(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3))
def test_inserted_and_removed_bytes_are_refused(position: int, inserted: bytes, removed: int) -> None:
    note = sign_checkpoint(LOG, 10, ROOT)
    changed = note[:position] + inserted + note[position + removed :]
    if changed != note:
        with pytest.raises(NoteError):
            open_note(changed, [LOG.verifier])


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_note_error(data: bytes) -> None:
    for read in (
        lambda: open_note(data, [LOG.verifier]),
        lambda: Checkpoint.parse(data),
        lambda: parse_proof(data),
    ):
        with pytest.raises(NoteError):
            read()


def test_bounds() -> None:
    with pytest.raises(MalformedNote, match="more than 1048576"):
        open_note(bytes(2**20 + 1), [LOG.verifier])
    sixteen = sign_checkpoint(LOG, 1, ROOT)
    for _ in range(15):
        sixteen += OTHER.sign(b"x\n").split(b"\n\n")[1]
    assert open_note(sixteen, [LOG.verifier]).text.startswith(LOG.name.encode())


def test_a_name_without_a_key_and_a_key_without_a_name_are_unknown() -> None:
    note = LOG.sign(b"text\n")
    same_name = Verifier(LOG.name, bytes(4), LOG.verifier.algorithm, LOG.verifier.public_key)
    same_id = Verifier("other", LOG.verifier.key_id, LOG.verifier.algorithm, LOG.verifier.public_key)
    for verifiers in ([], [same_name], [same_id]):
        with pytest.raises(UnknownSigner, match=r"modelledger\.example/log"):
            open_note(note, verifiers)
    with pytest.raises(MalformedKey, match="same name and key ID"):
        open_note(note, [LOG.verifier, LOG.verifier])


def test_verifier_keys_are_strict() -> None:
    vkey = LOG.vkey()
    name, key_id, key = vkey.split("+", 2)
    for bad in [
        "",
        name,
        f"{name}+{key_id}",
        f"+{key_id}+{key}",
        f"{name}+{key_id.upper()}+{key}",
        f"{name}+{key_id[:7]}+{key}",
        f"{name}+00000000+{key}",
        f"{name}x+{key_id}+{key}",
        f"{name} +{key_id}+{key}",
        f"na me+{key_id}+{key}",
        f"na\u2003me+{key_id}+{key}",
        f"na\ud800me+{key_id}+{key}",
        f"{name}+{key_id}+{key}=",
        f"{name}+{key_id}+{key}\n",
        f"{name}+{key_id}+{key[:-4]}",
        f"{name}+{key_id}+{base64.b64encode(bytes([2]) + bytes(32)).decode()}",
    ]:
        with pytest.raises(MalformedKey):
            Verifier.parse(bad)
    assert Verifier.parse(vkey) == LOG.verifier
    assert Verifier.parse(WITNESS.vkey()) == WITNESS.verifier


def test_one_key_has_two_ids_as_log_and_as_witness() -> None:
    as_witness = Cosigner(LOG.name, LOG.private_key)
    assert as_witness.verifier.key_id != LOG.verifier.key_id
    with pytest.raises(UnknownSigner):
        open_note(LOG.sign(b"text\n"), [as_witness.verifier])


def test_a_signer_refuses_what_no_note_can_hold() -> None:
    for text in [b"", b"no newline", b"tab\t\n", b"\r\n", b"\xff\n"]:
        with pytest.raises(MalformedNote):
            LOG.sign(text)
    with pytest.raises(MalformedKey):
        LogSigner("with space", LOG.private_key).sign(b"text\n")
    with pytest.raises(BadSignature, match="2\\^63-1"):
        WITNESS.cosign(b"text\n", 2**63)


@given(nonempty, st.integers(1, 2**63 - 1), st.binary(min_size=32, max_size=32), st.lists(nonempty, max_size=3))
def test_checkpoints_are_inverse(origin: str, size: int, root: bytes, extensions: list[str]) -> None:
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert Checkpoint.parse(checkpoint.encode()) == checkpoint


def test_checkpoints_are_strict() -> None:
    root = encode_base64(ROOT)
    good = b"origin\n7\n" + root + b"\n"
    assert Checkpoint.parse(good) == Checkpoint("origin", 7, ROOT)
    assert Checkpoint.parse(b"origin\n0\n" + encode_base64(EMPTY_ROOT) + b"\n").size == 0
    for size in ["", "07", "+7", "-7", " 7", "7 ", "1_0", "٣", "7.0", "0x7", str(2**63), "9" * 30]:
        with pytest.raises(MalformedCheckpoint):
            Checkpoint.parse(good.replace(b"7", size.encode(), 1))
    for bad in [
        b"",
        good[:-1],
        b"\n7\n" + root + b"\n",
        b"origin\n7\n",
        good + b"\n",
        good + b"extension\n\n",
        b"origin\n0\n" + root + b"\n",
        b"origin\n7\n" + encode_base64(ROOT[:31]) + b"\n",
        b"origin\n7\n" + root.rstrip(b"=") + b"\n",
        b"\xff\n7\n" + root + b"\n",
    ]:
        with pytest.raises(MalformedCheckpoint):
            Checkpoint.parse(bad)
    for value in [
        Checkpoint("", 7, ROOT),
        Checkpoint("two\nlines", 7, ROOT),
        Checkpoint("\ud800", 7, ROOT),
        Checkpoint("origin", -1, ROOT),
        Checkpoint("origin", 7, b"short"),
        Checkpoint("origin", 7, ROOT, ("",)),
    ]:
        with pytest.raises(MalformedCheckpoint):
            value.encode()


def test_opening_a_checkpoint_needs_the_log_s_signature_and_origin() -> None:
    note = sign_checkpoint(LOG, 10, ROOT)
    assert open_checkpoint(note, [LOG.verifier], LOG.name) == Checkpoint(LOG.name, 10, ROOT)
    with pytest.raises(WrongOrigin, match="expected 'another'"):
        open_checkpoint(note, [LOG.verifier], "another")
    with pytest.raises(MalformedCheckpoint):
        open_checkpoint(LOG.sign(b"text\n"), [LOG.verifier], LOG.name)
    cosigned = note + WITNESS.cosign(Checkpoint(LOG.name, 10, ROOT).encode(), 7)
    assert open_checkpoint(cosigned, [LOG.verifier, WITNESS.verifier], LOG.name).size == 10
    with pytest.raises(UnsignedNote, match="not signed by the log"):
        open_checkpoint(cosigned, [WITNESS.verifier], LOG.name)


def a_proof(index: int, size: int) -> LogProof:
    edge = Edge()
    for i in range(size):
        edge.append(leaf_hash(b"entry %d" % i))
    return LogProof(index, tuple(inclusion_proof(edge, index, size)), sign_checkpoint(LOG, size, edge.root()), None)


@given(st.data())
@settings(deadline=None)
def test_proof_files_are_inverse_and_verify(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 40))
    index = data.draw(st.integers(0, size - 1))
    extra = data.draw(st.none() | st.binary(min_size=1, max_size=20))
    proof = a_proof(index, size)
    encoded = encode_proof(proof.index, proof.hashes, proof.checkpoint, extra)
    parsed = parse_proof(encoded)
    assert parsed == LogProof(index, proof.hashes, proof.checkpoint, extra)
    assert verify_proof(parsed, b"entry %d" % index, [LOG.verifier], LOG.name).size == size
    with pytest.raises(NotIncluded, match="leads to root"):
        verify_proof(parsed, b"another entry", [LOG.verifier], LOG.name)


def test_every_changed_byte_of_a_proof_file_is_refused_except_in_extra() -> None:
    proof = a_proof(2, 5)
    encoded = encode_proof(proof.index, proof.hashes, proof.checkpoint, b"extra data")
    unauthenticated = range(encoded.index(b"extra ") + 6, encoded.index(b"\nindex"))
    for position, changed in changed_bytes(encoded):
        try:
            parsed = parse_proof(changed)
            verify_proof(parsed, b"entry 2", [LOG.verifier], LOG.name)
        except NoteError:
            continue
        assert position in unauthenticated
        assert (parsed.index, parsed.hashes, parsed.checkpoint) == (2, proof.hashes, proof.checkpoint)


def test_proof_files_are_strict() -> None:
    proof = a_proof(2, 5)
    good = encode_proof(2, proof.hashes, proof.checkpoint)
    first = encode_base64(proof.hashes[0])
    for bad, reason in [
        (good.replace(b"@v1", b"@v2"), "line 1"),
        (good.replace(b"index 2\n", b""), "line 2: expected index"),
        (good.replace(b"index 2", b"index 02"), "line 2"),
        (good.replace(b"index 2", b"index  2"), "line 2"),
        (good.replace(b"index 2", b"extra \nindex 2"), "line 2: extra is empty"),
        (good.replace(b"index 2", b"extra YQ==\nextra YQ==\nindex 2"), "line 3: expected index"),
        (good.replace(first, first[:-1]), "line 3"),
        (good.replace(first, encode_base64(b"short")), "line 3: hash of 5 bytes"),
        (good.replace(b"\n", b"\r\n"), "blank line"),
        (good.partition(b"\n\n")[0] + b"\n\n", "blank line"),
        (good.replace(first, b"\n".join([first] * 64)), "more than 63"),
        (bytes(2**21 + 1), "more than 2097152"),
    ]:
        with pytest.raises(MalformedProof, match=reason):
            parse_proof(bad)
    for index, extra in [(-1, None), (2**63, None), (2, b"")]:
        with pytest.raises(MalformedProof):
            encode_proof(index, proof.hashes, proof.checkpoint, extra)


@given(st.binary(max_size=60))
def test_base64_has_one_spelling(data: bytes) -> None:
    assert decode_base64(encode_base64(data)) == data
    assert decode_any_base64(base64.urlsafe_b64encode(data)) == data


@given(st.text("ABCDwxyz0189+/-_= \n", max_size=12).map(str.encode))
def test_an_accepted_base64_is_the_one_we_write(text: bytes) -> None:
    try:
        data = decode_any_base64(text)
    except ValueError:
        return
    assert text in (base64.b64encode(data), base64.urlsafe_b64encode(data))


@given(st.text(st.sampled_from("0123456789_+- ٣²"), max_size=21).map(str.encode))
def test_an_accepted_decimal_is_the_one_we_write(text: bytes) -> None:
    try:
        value = decode_decimal(text)
    except ValueError:
        return
    assert str(value).encode() == text
    assert value < 2**63
