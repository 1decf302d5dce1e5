"""Every reader of the log's formats over damaged input: the documented error, soon, or the one spelling we write.

Inputs are valid ones after a few changes (tests/mutations.py), two of them mixed, or any bytes. For a format with one
spelling, what is accepted is written again as it came; for a signed one, what is accepted says what was signed.
"""

from __future__ import annotations

import io
import json
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import envelope as dsse
from ledger import manifest, policy, resource_names, statement, strict_json, strict_toml
from ledger.bundle_files import UnreadableBundle, open_bundle
from ledger.checkpoint import Checkpoint
from ledger.errors import EventTooLarge, InvalidConfig, InvalidInput, InvalidName, InvalidSignature, MalformedEvent
from ledger.kit import listing
from ledger.merkle import EMPTY_ROOT, leaf_hash
from ledger.note import NoteError, Verifier, open_note
from ledger.proof_file import encode_proof, parse_proof
from ledger.tiles import bundle_path, decode_bundle, encode_bundle, parse_bundle_path, parse_tile_path, tile_path
from tests.laws.test_envelope import ED25519, PAYLOAD, public
from tests.laws.test_note import LOG, WITNESS, a_proof
from tests.laws.test_statement import _valid
from tests.mutations import changed

KEYS = [LOG.verifier, WITNESS.verifier]
TEXT = Checkpoint(LOG.name, 5, leaf_hash(b"x")).encode()
SIGNED = dsse.sign(PAYLOAD, [ED25519])
STATEMENT = strict_json.canonical(_valid())
EVENT = statement.decode(STATEMENT)
PROOF = a_proof(2, 5)
FILES = [manifest.FileEntry("a/b.json", 12, "ab" * 32), manifest.FileEntry("c", 0, "cd" * 32)]
POLICY = json.dumps({"name": "p", "require": [{"kind": kind, "at_least": 2} for kind in policy.ESSENTIAL_KINDS]})
POLICY_TOML = b'name = "p"\n' + b"".join(
    b'[[require]]\nkind = "%s"\n' % kind.encode() for kind in policy.ESSENTIAL_KINDS
)


def text(read: Callable[[str], str]) -> Callable[[bytes], bytes | None]:
    """A reader of text; what bytes no text is, is not its business."""

    def of_bytes(data: bytes) -> bytes | None:
        return read(data.decode(errors="replace")).encode() if _is_text(data) else None

    return of_bytes


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def named(read: Callable[[str, str], Any]) -> Callable[[bytes], bytes | None]:
    """A reader of resource names: what it finds, written as a name."""

    def written(name: str) -> str:
        found = read(name, "name")
        if isinstance(found, str):
            return f"orgs/{found}"
        if hasattr(found, "resource"):
            return str(found.resource)
        model, number = found
        return f"{model.resource}/versions/{number}"

    return text(written)


def note(data: bytes) -> None:
    assert open_note(data, KEYS).text == TEXT


def envelope(data: bytes) -> None:
    parsed = dsse.parse(data)
    dsse.verify(parsed, ED25519.keyid, public(ED25519))
    assert parsed.payload == PAYLOAD


def event(data: bytes) -> None:
    decoded = statement.decode(data)
    assert (decoded == EVENT) == (strict_json.canonical(strict_json.loads(data)) == STATEMENT)
    assert statement.decode(statement.encode(decoded)) == decoded


def proof_file(data: bytes) -> bytes:
    proof = parse_proof(data)
    return encode_proof(proof.index, proof.hashes, proof.checkpoint, proof.extra)


def page_token(data: bytes) -> None:
    items, _ = listing.page(range(20), 5, data.decode(errors="replace"))
    assert list(items) == list(range(20))[int(data or 0) :][:5]


def any_policy(data: bytes) -> None:
    assert policy.read(data, "p").require.keys() >= set(policy.ESSENTIAL_KINDS)


@dataclass(frozen=True)
class Format:
    """A reader, what it may raise, and what it accepts. It answers with the spelling of its own, or None."""

    read: Callable[[bytes], bytes | None]
    errors: tuple[type[Exception], ...]
    valid: Sequence[bytes]


NAMES = [b"orgs/acme/models/assistant/versions/v1.10", b"orgs/acme/models/assistant", b"orgs/acme"]
FORMATS = {
    "note": Format(note, (NoteError,), [LOG.sign(TEXT), LOG.sign(TEXT) + WITNESS.cosign(TEXT, 7)]),
    "checkpoint": Format(
        lambda data: Checkpoint.parse(data).encode(),
        (NoteError,),
        [TEXT, Checkpoint("a\u2028b", 0, EMPTY_ROOT, ("x",)).encode()],
    ),
    "verifier key": Format(
        text(lambda vkey: Verifier.parse(vkey).vkey()), (NoteError,), [LOG.vkey().encode(), WITNESS.vkey().encode()]
    ),
    "tile path": Format(
        text(lambda path: tile_path(parse_tile_path(path))),
        (ValueError,),
        [b"tile/0/x001/x234/067.p/112", b"tile/63/005"],
    ),
    "bundle path": Format(
        text(lambda path: bundle_path(*parse_bundle_path(path))), (ValueError,), [b"tile/entries/x001/000.p/1"]
    ),
    "entry bundle": Format(
        lambda data: encode_bundle(decode_bundle(data)),
        (ValueError,),
        [encode_bundle([b"one", b"", b"three" * 60]), encode_bundle([b""] * 256)],
    ),
    "envelope": Format(envelope, (MalformedEvent, EventTooLarge, InvalidSignature), [SIGNED]),
    "statement": Format(event, (MalformedEvent,), [STATEMENT, json.dumps(_valid(), indent=1).encode()]),
    "proof file": Format(
        proof_file,
        (NoteError,),
        [encode_proof(2, PROOF.hashes, PROOF.checkpoint), encode_proof(2, PROOF.hashes, PROOF.checkpoint, b"extra")],
    ),
    "manifest": Format(lambda data: manifest.encode(manifest.decode(data)), (ValueError,), [manifest.encode(FILES)]),
    "page token": Format(page_token, (InvalidInput,), [b"15", b"5"]),
    "policy": Format(any_policy, (InvalidConfig,), [POLICY.encode(), POLICY_TOML]),
    "organisation": Format(named(resource_names.parse_org), (InvalidName,), NAMES[::-1]),
    "model": Format(named(resource_names.parse_model), (InvalidName,), NAMES[1:] + NAMES),
    "version": Format(named(resource_names.parse_version), (InvalidName,), NAMES),
}

every_format = pytest.mark.parametrize("name", FORMATS)
bounded = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
SECONDS, MEGABYTES = 2.0, 64


@every_format
def test_what_is_valid_is_accepted_and_written_as_it_came(name: str) -> None:
    for data in FORMATS[name].valid[:1]:
        assert FORMATS[name].read(data) in (data, None)


@every_format
@bounded
@given(data=st.data())
def test_damaged(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    valid = st.sampled_from(form.valid)
    damaged = data.draw(changed(data.draw(valid), data.draw(valid)) | st.binary(max_size=80))
    try:
        written = form.read(damaged)
    except form.errors:
        return
    assert written in (damaged, None)


HOSTILE = {
    "nesting": b"[" * 60_000,
    "nested objects": b'{"a":' * 10_000,
    "nested in a text": b'{"payload":"' + b"[" * 60_000 + b'"}',
    "a nested TOML value": b"name = " + b"[" * 60_000,
    "a dotted TOML key": b"a." * 32_000 + b"b = 1",
    "a number of 60,000 digits": b"9" * 60_000,
    "the same in JSON": b'{"a":' + b"9" * 60_000 + b"}",
    "the same in TOML": b"a = " + b"9" * 60_000,
    "a number with a large exponent": b'{"a":1e999999999}',
    "newlines": b"\n" * 60_000,
    "blank lines and dashes": "\n\n— ".encode() * 12_000,
    "groups of a path": b"tile/0/" + b"x000/" * 12_000 + b"000",
    "plus signs": b"a+" * 30_000,
    "keys": b"{" + b",".join(b'"%d":0' % number for number in range(6_000)) + b"}",
    "spaces": b" " * 65_000,
    "quotation marks": b'"' * 65_000,
    "backslashes": b'{"' + b"\\" * 60_000,
    "escaped surrogates": b'["' + b"\\ud800" * 10_000 + b'"]',
}


@every_format
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_input_costs_little(name: str, hostile: str) -> None:
    data = HOSTILE[hostile]
    tracemalloc.start()
    started = time.process_time()
    try:
        FORMATS[name].read(data)
    except FORMATS[name].errors:
        pass
    finally:
        seconds, (_, most) = time.process_time() - started, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert seconds < SECONDS
    assert most < MEGABYTES << 20


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_json_and_toml(hostile: str) -> None:
    for loads in (strict_json.loads, strict_toml.loads):
        started = time.process_time()
        with suppress(ValueError):
            loads(HOSTILE[hostile])
        assert time.process_time() - started < SECONDS


def a_zip(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in (("manifest.json", b'{"files":[]}' * 9), ("statements/00000001-A.dsse.json", SIGNED)):
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


ZIPS = [a_zip(zipfile.ZIP_STORED), a_zip(zipfile.ZIP_DEFLATED)]


def read_zip(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with suppress(UnreadableBundle), open_bundle(file) as files:
        for path in files.sizes:
            assert files.hash(path).size == len(files.read(path))


@bounded
@given(data=st.data())
def test_damaged_zips(tmp_path: Path, data: st.DataObject) -> None:
    damaged = changed(data.draw(st.sampled_from(ZIPS)), data.draw(st.sampled_from(ZIPS)))
    read_zip(tmp_path / "bundle.zip", data.draw(damaged | st.binary(max_size=80)))


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_every_changed_byte_of_a_zip(tmp_path: Path, mask: int) -> None:
    for archive in ZIPS:
        for place in range(len(archive)):
            changed_byte = bytes([archive[place] ^ mask])
            read_zip(tmp_path / "bundle.zip", archive[:place] + changed_byte + archive[place + 1 :])
