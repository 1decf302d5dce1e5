"""The auditor: an unchanged bundle is valid, and nothing else is."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from modelledger.ledger.v1 import events_pb2 as events

from ledger import bundle, evidence, possession
from ledger import envelope as dsse
from ledger.bundle import MANIFEST, SEAL
from ledger.errors import InvalidConfig
from ledger.policy import shipped
from ledger.report import Report
from ledger.statement import Artifact
from ledger.trust import Trust
from ledger.verify import read_trust, verify_bundle
from ledger.writing import Row
from tests.bundles import certificate_time, files_of, found, reseal, stranger, write
from tests.certified import Certified


def test_unchanged_is_valid_and_says_what_it_certifies(original: Path, audit: Callable[..., Report]) -> None:
    report = audit(original)
    assert report.ok
    assert report.failures == []
    told = report.certified
    assert set(told["bases"]) == {"tiny", "other"}
    assert list(told["dataset"]) == ["datasets/acme/faq-sv"]
    assert (told["run"], told["quantizations"], told["asked_by"]) == ("run-1", ["q-1"], "local:alice")
    assert told["issued"] == certificate_time(original)


def test_needs_nothing_of_the_services() -> None:
    code = (
        "import sys, ledger.verify; "
        "heavy = {'google.protobuf', 'grpc', 'sqlalchemy', 'eventsourcing'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_any_changed_byte_is_found(copy: Path, audit: Callable[..., Report]) -> None:
    """A few bytes of every file; the next test takes every byte of the two files no digest covers."""
    draw = random.Random(7)
    for name in files_of(copy):
        path = copy / name
        content = path.read_bytes()
        for position in {0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(2))}:
            changed = bytearray(content)
            changed[position] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            report = audit(copy)
            assert not report.ok, f"{name}, byte {position}"
            where = SEAL if name == MANIFEST else name  # the manifest still reads, but is not what was sealed
            assert any(where in check.where for check in report.failures), f"{name}, byte {position}"
        path.write_bytes(content)
    assert audit(copy).ok


def test_every_byte_of_the_seal_counts(copy: Path, certified: Certified) -> None:
    from ledger import verify
    from ledger.bundle_files import open_bundle
    from ledger.verify_statements import prove

    verifiers = [certified.store.signer.verifier]
    with open_bundle(copy) as files:
        proven = prove(files, verifiers, Report(), Trust((certified.store.signer.vkey(),)))
        assert proven is not None
        certificate = proven.statements[certified.certificate.event_index]
        for name, step, flips in ((SEAL, 1, (0x01, 0x06, 0x20)), (MANIFEST, 5, (0x01,))):
            content = (copy / name).read_bytes()
            for position in range(0, len(content), step):
                for flip in flips:  # 0x06 turns + into -, 0x20 turns a into A
                    (copy / name).write_bytes(
                        content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :]
                    )
                    report = Report()
                    verify._seal(files, certificate, proven, report)
                    assert report.failures, f"{name}, byte {position}, flip {flip}"
            (copy / name).write_bytes(content)
        report = Report()
        verify._seal(files, certificate, proven, report)
        assert report.failures == []


def test_each_missing_file_is_missing(copy: Path, audit: Callable[..., Report]) -> None:
    for name in files_of(copy):
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        report = audit(copy)
        assert not report.ok
        assert any(name in c.where and c.status == "MISSING" for c in report.failures), name
        (copy / name).write_bytes(content)


@pytest.mark.parametrize("name", ["evil.sh", "statements/x", "artifacts/extra.bin", "manifests/0.json", "a/b/c"])
def test_added_file_is_found_even_when_sealed(
    name: str, copy: Path, audit: Callable[..., Report], certified: Certified
) -> None:
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(b"x")
    report = audit(copy)
    assert "extra-file" in found(report, name)
    reseal(copy, certified)
    report = audit(copy)
    assert not report.ok
    assert "extra-file" in found(report, name)


@pytest.mark.parametrize(
    "name",
    ["assistant_dna.json", "training_results.json", "ledger_proof.json", "live_metrics.json", "mlbom.cdx.json"],
)
def test_every_field_of_a_document_must_agree_with_the_statements(
    name: str, copy: Path, audit: Callable[..., Report], certified: Certified
) -> None:
    """Re-hashed and sealed again with the real key: only the statements contradict it."""
    path = copy / name
    content = path.read_bytes()
    value = json.loads(content)
    for field in value:
        path.write_text(json.dumps({**value, field: "other"}, indent=2, sort_keys=True))
        reseal(copy, certified)
        report = audit(copy)
        assert found(report) == {"contradicts-statements"}, field
        assert field in report.failures[0].detail
    path.write_bytes(content)
    reseal(copy, certified)
    assert audit(copy).ok


def test_strangers_seal(copy: Path, audit: Callable[..., Report], certified: Certified) -> None:
    reseal(copy, certified, stranger())
    assert found(audit(copy), SEAL) == {"unknown-actor"}
    reseal(copy, certified, certified.signers["trainer"])
    assert found(audit(copy), SEAL) == {"unknown-actor"}
    envelope = json.loads((copy / SEAL).read_bytes())
    (copy / SEAL).write_text(json.dumps({**envelope, "signatures": []}, separators=(",", ":")))
    assert found(audit(copy), SEAL) == {"stripped-signature"}


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("stripped-signature", lambda envelope, payload: json.dumps({**envelope, "signatures": []}).encode()),
        ("unknown-actor", lambda envelope, payload: dsse.sign(payload, [stranger()])),
        (
            "invalid-signature",
            lambda envelope, payload: json.dumps(
                {**envelope, "payload": base64.b64encode(payload.replace(b"1.5", b"0.5")).decode()}
            ).encode(),
        ),
    ],
)
def test_forged_statement_has_its_own_reason(
    reason: str, change: Callable[[dict, bytes], bytes], copy: Path, audit: Callable[..., Report], certified: Certified
) -> None:
    path = next(copy.glob("statements/*-TrainingCompleted.dsse.json"))
    envelope = json.loads(path.read_bytes())
    path.write_bytes(change(envelope, base64.b64decode(envelope["payload"])))
    reseal(copy, certified)
    report = audit(copy)
    assert found(report, path.name) == {reason, "not-included"}
    assert not report.certified


def test_wrong_log_key(original: Path, certified: Certified, tmp_path: Path) -> None:
    from ledger.signers import log_signer

    same_name, other_name = log_signer(tmp_path / "a", "test.log"), log_signer(tmp_path / "b", "other.log")
    assert found(verify_bundle(original, [same_name.vkey()])) == {"unknown-signer"}
    assert found(verify_bundle(original, [other_name.vkey()])) == {"other-log"}
    both = [same_name.vkey(), other_name.vkey(), certified.store.signer.vkey()]
    assert verify_bundle(original, both).ok


def test_proof_of_another_statement(copy: Path, audit: Callable[..., Report], certified: Certified) -> None:
    one, two = sorted(copy.glob("statements/*-BaseModelRegistered.tlog-proof"))
    one.write_bytes(two.read_bytes())
    reseal(copy, certified)
    assert "malformed-proof" in found(audit(copy), one.name)


def test_wrong_immutable_hash(tmp_path: Path) -> None:
    """A certificate whose own record is wrong is not valid, though it is signed and in the log."""
    world = Certified(tmp_path)
    record = world.issue().record
    record.certificate, record.immutable_hash = "cert-x", "0" * 64
    basis = [evidence.statement_of(world.store.get(index)) for index in record.evidence]
    subjects = next(s for s in basis if s.event.kind == "VersionCreated").event.subjects
    index = world.append("certification", "certificates/cert-x", record, list(subjects))
    certificate = evidence.statement_of(world.store.get(index))
    report = verify_bundle(write(world, certificate, tmp_path / "out"), [world.store.signer.vkey()])
    assert found(report) == {"stale-hash", "wrong-subject", "wrong-material"}


def test_keys_rotated_and_revoked(tmp_path: Path) -> None:
    world = Certified(tmp_path)
    certificate = evidence.statement_of(world.store.get(world.issue().event_index))
    fresh, vkeys = stranger(), [world.store.signer.vkey()]
    proof = possession.prove("certification", world.signers["certification"].keyid, fresh)
    rotated = events.ActorKeyRotated(
        actor="certification",
        public_key=base64.b64encode(fresh.public_key_der).decode(),
        possession=base64.b64encode(proof).decode(),
    )
    world.append("ledger", "actors/certification", rotated, [Artifact("actors/certification", fresh.keyid)])
    # What the old key signed in its time stays valid; what it signs now does not.
    assert verify_bundle(write(world, certificate, tmp_path / "new", fresh), vkeys).ok
    report = verify_bundle(write(world, certificate, tmp_path / "old"), vkeys)
    assert found(report, SEAL) == {"revoked-actor"}

    revoked = events.ActorRevoked(actor="registry", reason="stolen")
    key = Artifact("actors/registry", world.signers["registry"].keyid)
    world.append("ledger", "actors/registry", revoked, [key])
    smuggle(world, certificate)
    report = verify_bundle(write(world, certificate, tmp_path / "smuggled", fresh), vkeys)
    assert "revoked-actor" in found(report, "VersionRevoked")


def smuggle(world: Certified, certificate: bundle.Statement) -> None:
    """An event of a revoked actor, put into the log by somebody who holds the log's key and skips its rules."""
    gone = certificate.event.subjects[0]
    record = events.VersionRevoked(org="acme", model="assistant", version="v1.0", reason="spite")
    entry = world.actor("registry").sign(record, "models/acme/assistant", 2, [gone])
    row = Row("x" * 36, "models/acme/assistant", 2, "VersionRevoked", "0" * 64, entry, revoked=(gone.sha256,))
    with world.store.writing() as writing:
        writing.append([row])


def test_trust_is_a_key_or_a_file_of_keys(certified: Certified, tmp_path: Path) -> None:
    vkey = certified.store.signer.vkey()
    (tmp_path / "keys").write_text(f"# ours\n{vkey}\n\n")
    assert read_trust(vkey) == read_trust(str(tmp_path / "keys")) == [vkey]
    (tmp_path / "empty").write_text("# nothing\n")
    for text in ("nothing", str(tmp_path / "empty"), vkey[:-4] + "AAA="):
        with pytest.raises(InvalidConfig):
            read_trust(text)
    with pytest.raises(InvalidConfig):
        verify_bundle(tmp_path, [])


def test_seal_has_one_spelling(copy: Path, audit: Callable[..., Report], certified: Certified) -> None:
    """An envelope reader accepts URL-safe base64; the seal is covered by no digest, so it must not."""
    sig = ""
    while not {"+", "/"} & set(sig):
        reseal(copy, certified)
        envelope = json.loads((copy / SEAL).read_bytes())
        sig = envelope["signatures"][0]["sig"]
    envelope["signatures"][0]["sig"] = sig.replace("+", "-").replace("/", "_")
    (copy / SEAL).write_text(json.dumps(envelope, separators=(",", ":")))
    assert found(audit(copy)) == {"changed-file"}


@pytest.mark.parametrize("change", ["space", "order", "signature"])
def test_nothing_is_added_to_the_seal(change: str, copy: Path, audit: Callable[..., Report]) -> None:
    """The signature still fits: it covers the payload, not the JSON around it."""
    envelope = json.loads((copy / SEAL).read_bytes())
    if change == "signature":
        envelope["signatures"].append({"keyid": "junk", "sig": "AAAA"})
    elif change == "order":
        envelope = dict(reversed(envelope.items()))
    (copy / SEAL).write_text(json.dumps(envelope, separators=(",", ": " if change == "space" else ":")))
    assert found(audit(copy)) == {"changed-file"}


def test_proofs_against_two_checkpoints(tmp_path: Path) -> None:
    world = Certified(tmp_path)
    issued, vkeys = world.issue(), [world.store.signer.vkey()]
    older = world.download(issued.name, tmp_path / "older")
    world.continue_training()
    newer = world.download(issued.name, tmp_path / "newer")
    assert verify_bundle(newer, vkeys).ok
    name = "statements/00000000-LogCreated.tlog-proof"
    shutil.copyfile(older / name, newer / name)
    reseal(newer, world)
    assert found(verify_bundle(newer, vkeys)) == {"different-checkpoints"}


def test_policy_is_checked_again(original: Path, certified: Certified) -> None:
    vkeys = [certified.store.signer.vkey()]
    assert found(verify_bundle(original, vkeys, policies={})) == {"unknown-policy"}
    default = shipped()["default"]
    stricter = replace(default, require={**default.require, "ApprovalGiven": 1})
    assert found(verify_bundle(original, vkeys, policies={"default": stricter})) == {"evidence-missing"}


def test_wrong_fingerprint(tmp_path: Path) -> None:
    world = Certified(tmp_path)
    record = world.issue().record
    record.certificate, record.dna = "cert-x", record.dna.replace("v1.0", "v1.1")
    event = evidence.statement_of(world.store.get(world.certificate.event_index)).event
    index = world.append("certification", "certificates/cert-x", record, list(event.subjects), event.materials)
    certificate = evidence.statement_of(world.store.get(index))
    report = verify_bundle(write(world, certificate, tmp_path / "out"), [world.store.signer.vkey()])
    assert [check.detail[:15] for check in report.failures] == ["the fingerprint"]
