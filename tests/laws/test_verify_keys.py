"""Verification and keys: what a key signed that was compromised, or is not the one a verifier trusts."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from modelledger import cli
from modelledger.ledger.v1 import events_pb2 as events

from ledger import bundle, bundle_writer, evidence, possession
from ledger import envelope as dsse
from ledger.audit import audit
from ledger.bundle import SEAL
from ledger.errors import MissingCapability
from ledger.kit.keys import FileSigner, actor_signer
from ledger.report import Report
from ledger.rules import ActorKey
from ledger.statement import Artifact
from ledger.trust import Pin, Trust
from ledger.verify import verify_bundle
from ledger.verify_keys import Signed
from tests.audit import verify_whole_log
from tests.certified import Certified
from tests.logs import ed25519_signer, event_of, signer
from tests.served import EntryLog


def rotate(world: Certified, actor: str, new: FileSigner, compromised_from: int = 0) -> int:
    """The index of the rotation; the world goes on with the new key."""
    proof = possession.prove(actor, world.signers[actor].keyid, new)
    record = events.ActorKeyRotated(
        actor=actor,
        public_key=base64.b64encode(new.public_key_der).decode(),
        possession=base64.b64encode(proof).decode(),
        compromised_from=compromised_from,
    )
    index = world.append("ledger", f"actors/{actor}", record, [Artifact(f"actors/{actor}", new.keyid)])
    world.signers[actor] = new
    return index


def revoke(world: Certified, actor: str, compromised_from: int = 0) -> int:
    record = events.ActorRevoked(actor=actor, reason="stolen", compromised_from=compromised_from)
    key = Artifact(f"actors/{actor}", world.signers[actor].keyid)
    return world.append("ledger", f"actors/{actor}", record, [key])


def statements(folder: Path) -> dict[int, str]:
    """index -> actor of every statement in a bundle."""
    found = {}
    for path in folder.glob("statements/*.dsse.json"):
        payload = json.loads(dsse.parse(path.read_bytes()).payload)
        found[int(path.name.partition("-")[0])] = payload["predicate"]["event"]["actor"]
    return found


def blamed(report: Report, reason: str) -> set[int]:
    """The indexes of the statements that a report calls so."""
    return {
        int(Path(check.where).name.partition("-")[0])
        for check in report.failures
        if check.reason == reason and check.where.startswith(bundle.STATEMENTS)
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    world = Certified(tmp_path_factory.mktemp("log"))
    world.issue()
    return world


@pytest.fixture(scope="module")
def original(world: Certified, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.download(world.certificate.name, tmp_path_factory.mktemp("bundle") / "b", include_artifacts=False)


def trusted(world: Certified, **more: object) -> Trust:
    return Trust((world.store.signer.vkey(),), **more)  # type: ignore[arg-type]


def test_what_a_compromised_key_signed_since_is_listed_and_nothing_else(tmp_path: Path) -> None:
    world = Certified(tmp_path)
    issued = world.issue()
    of_trainer = sorted(i for i, a in statements(world.download(issued.name, tmp_path / "a")).items() if a == "trainer")
    middle = of_trainer[len(of_trainer) // 2]
    revoke(world, "trainer", compromised_from=middle)
    verify_whole_log(world.store)  # nothing in the log breaks a rule
    report = verify_bundle(world.download(issued.name, tmp_path / "b"), [world.store.signer.vkey()])
    assert {check.reason for check in report.failures} == {"compromised-key"}
    assert blamed(report, "compromised-key") == {index for index in of_trainer if index >= middle}
    assert not report.ok


def test_a_revocation_without_it_leaves_the_past_valid(tmp_path: Path) -> None:
    world = Certified(tmp_path)
    issued = world.issue()
    revoke(world, "trainer")
    assert verify_bundle(world.download(issued.name, tmp_path / "b"), [world.store.signer.vkey()]).ok


def test_a_rotation_too_may_say_that_the_old_key_was_compromised(tmp_path: Path) -> None:
    world = Certified(tmp_path)
    issued = world.issue()
    rotated = rotate(world, "trainer", signer(90), compromised_from=world.store.head.size)
    adapters = world.continue_training()
    world.quantize_version("v1.1", adapters)
    folder = world.download(issued.name, tmp_path / "b")
    assert rotated in statements(folder)
    assert verify_bundle(folder, [world.store.signer.vkey()]).ok, "from the rotation itself on it signed nothing"


def test_a_trust_file_knows_more_than_the_log(world: Certified, original: Path) -> None:
    indexes = statements(original)
    key = world.signers["trainer"].keyid
    last = max(index for index, actor in indexes.items() if actor == "trainer")
    assert verify_bundle(original, trusted(world, compromised={key: last + 1})).ok
    assert blamed(verify_bundle(original, trusted(world, compromised={key: last})), "compromised-key") == {last}
    seal = verify_bundle(
        original, trusted(world, compromised={world.signers["certification"].keyid: world.store.head.size})
    )
    assert [(check.where, check.reason) for check in seal.failures] == [(SEAL, "compromised-key")]
    stranger = trusted(world, compromised={signer(90).keyid: 0})
    assert verify_bundle(original, stranger).ok, "a key that signed nothing here"


@pytest.mark.parametrize(("log", "verifier", "expected"), [(5, None, 5), (None, 5, 5), (3, 5, 3), (5, 3, 3)])
def test_the_earlier_index_counts_and_only_for_the_author(log: int | None, verifier: int | None, expected: int) -> None:
    key, other = signer(1), signer(2)
    keys = {
        key.keyid: ActorKey("trainer", "trainer", key.public_key_der, 1, 9, log),
        other.keyid: ActorKey("registry", "registry", other.public_key_der, 1, 9, 0),
    }
    signed = Signed()
    for index in (7, 2, 3, 4, 5):
        signed.add(index, "trainer", [other.keyid, key.keyid, signer(3).keyid], keys)  # approved by the registry
    trust = Trust((), compromised={} if verifier is None else {key.keyid: verifier})
    assert [one.index for one in signed.untrusted(keys, trust)] == [i for i in (2, 3, 4, 5, 7) if i >= expected]


def test_pinned_keys_and_roles(world: Certified, original: Path) -> None:
    indexes = statements(original)
    by_trainer = {index for index, actor in indexes.items() if actor == "trainer"}
    right = Pin(frozenset({world.signers["trainer"].keyid}), "trainer")
    assert verify_bundle(original, trusted(world, actors={"trainer": right})).ok
    report = verify_bundle(original, trusted(world, actors={"trainer": Pin(frozenset({signer(90).keyid}))}))
    assert {check.reason for check in report.failures} == {"unpinned-key"}
    assert blamed(report, "unpinned-key") == by_trainer
    report = verify_bundle(original, trusted(world, actors={"trainer": Pin(role="registry")}))
    assert {check.reason for check in report.failures} == {"unpinned-role"}
    assert blamed(report, "unpinned-role") == by_trainer


def test_a_compromised_ledger_key_taints_who_it_enrolled(world: Certified, original: Path) -> None:
    report = verify_bundle(original, trusted(world, compromised={world.signers["ledger"].keyid: 1}))
    by_ledger = {index for index, actor in statements(original).items() if actor == "ledger" and index >= 1}
    assert blamed(report, "compromised-key") == by_ledger
    assert by_ledger


def test_the_command_line_takes_a_trust_file(
    world: Certified, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trust.toml"
    logs = f'logs = ["{world.store.signer.vkey()}"]\n'
    file.write_text(f'{logs}[[actors]]\nname = "trainer"\nkeys = ["{world.signers["trainer"].keyid}"]\n')
    assert cli.run(["verify", str(original), "--trust", str(file)]) == 0
    file.write_text(f'{logs}[[compromised]]\nkey = "{world.signers["trainer"].keyid}"\nfrom = 0\n')
    assert cli.run(["verify", str(original), "--trust", str(file)]) == 1
    assert "compromised-key" in capsys.readouterr().out
    file.write_text(f"{logs}[[compromised]]\n")
    assert cli.run(["verify", str(original), "--trust", str(file)]) == 1
    assert "trust.toml: compromised[0].key" in capsys.readouterr().err


def test_an_audit_of_the_whole_log_lists_them(tmp_path: Path) -> None:
    world = Certified(tmp_path)
    index = world.store.head.size - 2
    revoke(world, "trainer", compromised_from=index)
    entries = [row.entry for row in world.store.select(limit=None)]
    source, verifiers = EntryLog(entries, world.store.signer), [world.store.signer.verifier]
    by_trainer = [i for i, entry in enumerate(entries) if event_of(entry).actor == "trainer"]
    found = audit(source, verifiers).untrusted
    assert [(one.index, one.reason) for one in found] == [(i, "compromised-key") for i in by_trainer if i >= index]
    pins = trusted(world, actors={"trainer": Pin(frozenset({signer(90).keyid}))})
    found = audit(source, verifiers, trust=pins).untrusted
    assert [one.index for one in found if one.reason == "unpinned-key"] == by_trainer


# Ed25519


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    """A certified log whose actors sign with Ed25519, all but the one that model signatures want P-256 of."""
    folder = tmp_path_factory.mktemp("ed25519")
    for role in ("ledger", "registry", "trainer", "quantizer", "inference"):
        actor_signer(folder / "keys" / f"{role}.key", ed25519=True)
    world = Certified(folder)
    world.issue()
    return world


def test_a_certificate_by_ed25519_actors_is_valid(mixed: Certified, tmp_path: Path) -> None:
    folder = mixed.download(mixed.certificate.name, tmp_path / "b")
    signatures = [dsse.parse(path.read_bytes()).signatures[0] for path in folder.glob("statements/*.dsse.json")]
    assert sum(len(signature.sig) == 64 for signature in signatures) > len(signatures) / 2
    assert verify_bundle(folder, [mixed.store.signer.vkey()]).ok
    verify_whole_log(mixed.store)


def test_every_byte_of_an_ed25519_statement_counts(mixed: Certified, tmp_path: Path) -> None:
    folder = mixed.download(mixed.certificate.name, tmp_path / "b", include_artifacts=False)
    path = next(folder.glob("statements/*-VersionCreated.dsse.json"))
    envelope = json.loads(path.read_bytes())
    signature = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
    for position in range(len(signature)):
        changed = bytearray(signature)
        changed[position] ^= 1 << position % 8
        envelope["signatures"][0]["sig"] = base64.b64encode(changed).decode()
        path.write_text(json.dumps(envelope, separators=(",", ":")))
        reasons = {check.reason for check in verify_bundle(folder, [mixed.store.signer.vkey()]).failures}
        assert {"invalid-signature", "not-included"} <= reasons


def test_an_ed25519_certification_actor_cannot_sign_a_model(tmp_path: Path) -> None:
    world = Certified(tmp_path)
    certificate = evidence.statement_of(world.store.get(world.issue().event_index))
    with pytest.raises(MissingCapability, match="P-256"):
        bundle_writer.write(world.store, world.artifacts, ed25519_signer(1), certificate, include_artifacts=False)
