"""Cosignatures: published form, inverses, and that nothing but the witness's own line on this very text counts."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from ledger.add_checkpoint import MAX_BODY, AddCheckpoint, encode_request, encode_size, parse_request, parse_size
from ledger.checkpoint import sign_checkpoint
from ledger.cosignature import add_lines, cosignatures
from ledger.note import Cosigner, LogSigner, MalformedNote, NoteError, Verifier
from tests.witnesses import cosigner

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "cosignatures.json").read_text())

LOG = LogSigner("modelledger.example/log", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
W1, W2 = cosigner(1), cosigner(2)
NOTE = sign_checkpoint(LOG, 10, bytes(range(32)))
TEXT = NOTE.partition(b"\n\n")[0] + b"\n"
hashes = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["desc"])
def test_vectors(case: dict[str, Any]) -> None:
    witnesses = [Verifier.parse(vkey) for vkey in case["witnesses"]]
    if "error" in case:
        with pytest.raises(NoteError) as caught:
            cosignatures(case["note"].encode(), witnesses)
        assert caught.value.kind == case["error"]
    else:
        found = cosignatures(case["note"].encode(), witnesses)
        assert [[one.verifier.name, one.timestamp] for one in found] == case["cosignatures"]


def test_the_signed_bytes_are_those_of_the_specification() -> None:
    """Computed here from the text of tlog-cosignature, not by our functions."""
    line = W1.cosign(TEXT, 1_679_315_147)
    blob = base64.b64decode(line.split(b" ")[2])
    public = W1.private_key.public_key().public_bytes_raw()
    assert blob[:4] == W1.verifier.key_id
    assert blob[4:12] == (1_679_315_147).to_bytes(8, "big")
    assert len(blob) == 4 + 8 + 64
    Ed25519PublicKey.from_public_bytes(public).verify(blob[12:], b"cosignature/v1\ntime 1679315147\n" + TEXT)
    assert base64.b64decode(W1.vkey().split("+", 2)[2]) == b"\x04" + public


@given(st.lists(st.sampled_from([W1, W2, cosigner(3)]), unique=True), st.integers(0, 2**63 - 1))
def test_lines_behind_a_checkpoint_are_found_again(witnesses: list[Cosigner], time: int) -> None:
    lines = [witness.cosign(TEXT, time) for witness in witnesses]
    found = cosignatures(add_lines(NOTE, lines), [W1.verifier, W2.verifier])
    expected = [witness for witness in witnesses if witness in (W1, W2)]
    assert [one.verifier for one in found] == [witness.verifier for witness in expected]
    assert [one.line for one in found] == [witness.cosign(TEXT, time) for witness in expected]
    assert {one.timestamp for one in found} <= {time}


@given(st.data())
def test_a_changed_cosignature_never_counts(data: st.DataObject) -> None:
    """Whatever is changed in the line: name, key ID, time, signature or the form itself."""
    line = bytearray(W1.cosign(TEXT, data.draw(st.integers(0, 2**63 - 1))))
    position = data.draw(st.integers(0, len(line) - 2))  # not the newline, which the next test removes
    line[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(NoteError):
        assert cosignatures(NOTE + bytes(line), [W1.verifier]) == ()


@pytest.mark.parametrize("line", [W1.cosign(TEXT, 7)[:-1], b"\n" + W1.cosign(TEXT, 7), W1.cosign(TEXT, 7) + b"\n"])
def test_a_line_out_of_its_place_is_no_note_of_the_log(line: bytes) -> None:
    with pytest.raises(NoteError):
        cosignatures(NOTE + line, [W1.verifier])


@given(st.integers(1, 12), hashes, st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_cosignature_counts_for_its_text_and_time_only(size: int, root: bytes, time: int, other: int) -> None:
    note = sign_checkpoint(LOG, size, root)
    lines = W1.cosign(TEXT, time)
    if note != NOTE:
        with pytest.raises(NoteError):
            cosignatures(note + lines, [W1.verifier])
    if other != time:
        blob = base64.b64decode(lines.split(b" ")[2])
        moved = blob[:4] + other.to_bytes(8, "big") + blob[12:]
        with pytest.raises(NoteError):
            cosignatures(NOTE + lines.rsplit(b" ", 1)[0] + b" " + base64.b64encode(moved) + b"\n", [W1.verifier])


def test_one_witness_counts_once_and_a_log_is_no_witness() -> None:
    twice = add_lines(NOTE, [W1.cosign(TEXT, 1), W1.cosign(TEXT, 2)])
    assert [one.timestamp for one in cosignatures(twice, [W1.verifier])] == [1]
    assert cosignatures(NOTE, [W1.verifier]) == cosignatures(NOTE, []) == ()
    with pytest.raises(ValueError, match="not the key of a witness"):
        cosignatures(NOTE, [LOG.verifier])
    with pytest.raises(MalformedNote):
        cosignatures(b"nothing", [W1.verifier])


# The request


@given(st.integers(0, 2**63 - 1), st.lists(hashes, max_size=63), st.binary(min_size=1, max_size=200))
def test_requests_are_inverse(old: int, proof: list[bytes], checkpoint: bytes) -> None:
    assert parse_request(encode_request(old, proof, checkpoint)) == AddCheckpoint(old, tuple(proof), checkpoint)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"old 1\n" + tail))
def test_any_bytes_are_a_request_in_its_one_spelling_or_a_value_error(body: bytes) -> None:
    try:
        read = parse_request(body)
    except ValueError:
        return
    assert encode_request(read.old_size, read.proof, read.checkpoint) == body


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"old 1\n", "blank line"),
        (b"old 1\n\n", "blank line"),
        (b"old\n\nx", "line 1"),
        (b"old 01\n\nx", "line 1"),
        (b"old 1\n" + base64.b64encode(bytes(32)) + b"\nAA==\n\nx", "line 3: hash of 1 bytes"),
        (b"old 1\n" + b"\n".join([base64.b64encode(bytes(32))] * 64) + b"\n\nx", "64 lines, more than 63"),
        (bytes(MAX_BODY + 1), "more than 262144"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_request(body)


@given(st.integers(0, 2**63 - 1))
def test_sizes_are_inverse(size: int) -> None:
    assert parse_size(encode_size(size)) == size


@pytest.mark.parametrize("body", [b"", b"5", b"05\n", b"5\n\n", b" 5\n", b"-1\n", b"9223372036854775808\n", b"x\n"])
def test_what_is_no_size(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected|decimal"):
        parse_size(body)
