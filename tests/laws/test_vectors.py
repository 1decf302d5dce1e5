"""The vector kit of tests/vectors over our readers: what its README.md tells every language to do, done here."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from ledger import envelope as dsse
from ledger import statement
from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.edge import Edge, LogTiles
from ledger.errors import EventTooLarge, InvalidSignature, MalformedEvent
from ledger.merkle import Tile, leaf_hash, tile_width, verify_consistency, verify_inclusion
from ledger.note import NoteError, Verifier, open_note
from ledger.proof_file import parse_proof, verify_proof
from ledger.tiles import bundle_path, decode_bundle, encode_bundle, parse_bundle_path, parse_tile_path, tile_path
from tests.vectors.make.__main__ import FILES as MADE
from tests.vectors.make.cases import written

VECTORS = Path(__file__).parent.parent / "vectors"
PUBLISHED = 98  # cases of each kind in the two files of transparency-dev/merkle

Case = dict[str, Any]


def octets(value: Any) -> bytes:
    """Bytes as the kit writes them, see README.md."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return b"".join(map(octets, value))
    if "base64" in value:
        return base64.b64decode(value["base64"], validate=True)
    return octets(value["repeat"]) * value["times"]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def hashes(texts: list[str]) -> list[bytes]:
    return [base64.b64decode(text) for text in texts]


# --- one function a file: the case's "expect", or an exception


def note(case: Case) -> Case:
    opened = open_note(octets(case["note"]), [Verifier.parse(vkey) for vkey in case["vkeys"]])
    times = [None if found.timestamp is None else str(found.timestamp) for found in opened.signatures]
    names = [found.verifier.name for found in opened.signatures]
    return {"text": opened.text.decode(), "signers": [list(pair) for pair in zip(names, times, strict=True)]}


def verifier_key(case: Case) -> Case:
    verifier = Verifier.parse(case["vkey"])
    assert verifier.vkey() == case["vkey"]
    key_id, public_key = verifier.key_id.hex(), b64(verifier.public_key)
    return {"name": verifier.name, "key_id": key_id, "type": verifier.algorithm, "public_key": public_key}


def checkpoint(case: Case) -> Case:
    text = octets(case["text"])
    parsed = Checkpoint.parse(text)
    assert parsed.encode() == text
    about = {"origin": parsed.origin, "size": str(parsed.size), "root": b64(parsed.root)}
    return {**about, "extensions": list(parsed.extensions)}


def signed_checkpoint(case: Case) -> Case:
    data, verifiers = octets(case["note"]), [Verifier.parse(vkey) for vkey in case["vkeys"]]
    opened = open_checkpoint(data, verifiers, case["origin"])
    signers = [found.verifier.name for found in open_note(data, verifiers).signatures]
    return {"size": str(opened.size), "root": b64(opened.root), "signers": signers}


def any_path(case: Case) -> Case:
    path = case["path"]
    if path.startswith("tile/entries"):
        with pytest.raises(ValueError, match="tile path"):
            parse_tile_path(path)
        index, width = parse_bundle_path(path)
        assert bundle_path(index, width) == path
        return {"level": "entries", "index": str(index), "width": width}
    with pytest.raises(ValueError, match="path"):
        parse_bundle_path(path)
    tile = parse_tile_path(path)
    assert tile_path(tile) == path
    return {"level": str(tile.level), "index": str(tile.index), "width": tile.width}


def entry_bundle(case: Case) -> Case:
    bundle = octets(case["bundle"])
    entries = decode_bundle(bundle)
    assert encode_bundle(entries) == bundle
    assert entries == [octets(entry) for entry in case["expect"]["entries"]]
    return case["expect"]


def inclusion(case: Case) -> Case:
    [leaf, root] = hashes([case["leaf_hash"], case["root"]])
    verify_inclusion(leaf, int(case["index"]), int(case["size"]), hashes(case["proof"]), root)
    return {}


def consistency(case: Case) -> Case:
    roots = hashes([case["old_root"], case["new_root"]])
    verify_consistency(int(case["old"]), int(case["new"]), *roots, hashes(case["proof"]))
    return {}


def proof_file(case: Case) -> Case:
    proof = parse_proof(octets(case["file"]))
    keys = [Verifier.parse(vkey) for vkey in case["vkeys"]]
    verified = verify_proof(proof, octets(case["entry"]), keys, case["origin"])
    extra = None if proof.extra is None else b64(proof.extra)
    return {"index": str(proof.index), "size": str(verified.size), "root": b64(verified.root), "extra": extra}


def pae(case: Case) -> Case:
    assert dsse.pae(case["type"], octets(case["payload"])) == octets(case["expect"]["pae"])
    return case["expect"]


def envelope(case: Case) -> Case:
    parsed = dsse.parse(octets(case["envelope"]))
    dsse.verify(parsed, case["keyid"], dsse.load_public_key(base64.b64decode(case["public_key"])))
    assert parsed.payload == octets(case["expect"]["payload"])
    keyids = [signature.keyid for signature in parsed.signatures]
    return {"payload": case["expect"]["payload"], "payload_type": parsed.payload_type, "keyids": keyids}


def event(case: Case) -> Case:
    decoded = statement.decode(octets(case["payload"]))
    named = {name: getattr(decoded, name) for name in case["expect"] if name not in ("subjects", "materials")}
    subjects = [[artifact.name, artifact.sha256] for artifact in decoded.subjects]
    return {**named, "subjects": subjects, "materials": [[a.name, a.sha256] for a in decoded.materials]}


def tree(case: Case) -> Case:
    size, full, edge = int(case["size"]), Tiles(), Edge()
    for number in range(size):
        full.update(edge.append(leaf_hash(b"entry %d" % number)))
    tiles, levels = LogTiles(full, edge), []
    while size >> 8 * len(levels):
        level = len(levels)
        count = size >> 8 * (level + 1)
        whole = b"".join(tiles.read_tiles([Tile(level, index, 256) for index in range(count)]))
        found: Case = {"full": count, "full_sha256": sha256(whole).hexdigest(), "partial": None}
        if width := tile_width(level, count, size):
            last = Tile(level, count, width)
            [data] = tiles.read_tiles([last])
            found |= {"partial": tile_path(last), "partial_sha256": sha256(data).hexdigest()}
        levels.append(found)
    return {"root": b64(edge.root()), "levels": levels}


class Tiles(dict[Tile, bytes]):
    def read_tiles(self, tiles: list[Tile]) -> list[bytes]:
        return [self[tile] for tile in tiles]


def refusal(error: Exception, case: Case) -> str:
    """The kit's word for what was raised."""
    if isinstance(error, NoteError):
        return error.kind
    if isinstance(error, EventTooLarge):
        return "too-large"
    if isinstance(error, InvalidSignature):
        return "invalid-signature"
    if isinstance(error, MalformedEvent) and "payload" in case:
        fields = [violation.field for violation in error.violations] or ["statement"]
        return case["error"] if case["error"] in fields else fields[0]
    if isinstance(error, MalformedEvent):
        return "malformed"
    assert type(error) is ValueError
    return {"path": "malformed-path", "bundle": "malformed-bundle", "index": "not-included", "old": "not-consistent"}[
        next(name for name in ("path", "bundle", "index", "old") if name in case)
    ]


READERS: dict[str, Callable[[Case], Case]] = {
    "checkpoints": checkpoint,
    "consistency": consistency,
    "entry_bundles": entry_bundle,
    "envelopes": envelope,
    "inclusion": inclusion,
    "notes": note,
    "pae": pae,
    "proof_files": proof_file,
    "signed_checkpoints": signed_checkpoint,
    "statements": event,
    "tile_paths": any_path,
    "tree": tree,
    "verifier_keys": verifier_key,
}


def cases(file: str) -> list[Case]:
    found: list[Case] = json.loads((VECTORS / f"{file}.json").read_text())
    return found


ALL = [
    pytest.param(reader, case, id=f"{file}: {case['name']}") for file, reader in READERS.items() for case in cases(file)
]


@pytest.mark.parametrize(("reader", "case"), ALL)
def test_case(reader: Callable[[Case], Case], case: Case) -> None:
    try:
        found = reader(case)
    except (ValueError, MalformedEvent, EventTooLarge, InvalidSignature) as error:
        found = {"refused": refusal(error, case), "because": str(error)}
    expected = case["expect"] if "expect" in case else {"refused": case["error"], "because": found.get("because")}
    assert found == expected


@pytest.mark.parametrize("file", READERS)
def test_a_case_has_a_name_of_its_own_and_one_outcome(file: str) -> None:
    found = cases(file)
    assert len({case["name"] for case in found}) == len(found)
    assert all(("expect" in case) != ("error" in case) for case in found)
    assert written(found) == (VECTORS / f"{file}.json").read_text()
    assert f"- {file}.json: " in (VECTORS / "README.md").read_text()


@pytest.mark.parametrize("file", MADE)
def test_a_made_file_is_as_it_is_made(file: str) -> None:
    assert written(MADE[file]()) == (VECTORS / f"{file}.json").read_text()


def published(name: str) -> list[Any]:
    lines = (VECTORS / f"rfc6962_{name}.jsonl").read_text().splitlines()
    assert len(lines) == PUBLISHED
    return [pytest.param(case, id=case["case"]) for case in map(json.loads, lines)]


def published_hashes(*texts: str | None) -> list[bytes]:
    return [base64.b64decode(text or "") for text in texts]


@pytest.mark.parametrize("case", published("inclusion"))
def test_published_inclusion(case: Case) -> None:
    leaf, root, *proof = published_hashes(case["leafHash"], case["root"], *(case["proof"] or []))
    try:
        verify_inclusion(leaf, case["leafIdx"], case["treeSize"], proof, root)
    except ValueError:
        assert case["wantErr"]
    else:
        assert not case["wantErr"]


@pytest.mark.parametrize("case", published("consistency"))
def test_published_consistency(case: Case) -> None:
    old_root, new_root, *proof = published_hashes(case["root1"], case["root2"], *(case["proof"] or []))
    try:
        verify_consistency(case["size1"], case["size2"], old_root, new_root, proof)
    except ValueError:
        assert case["wantErr"]
    else:
        assert not case["wantErr"]
