"""A bundle under a tlog-policy: the quorum counts exactly what the witnesses signed on this checkpoint."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelledger import cli

from ledger import bundle_writer, evidence
from ledger.bundle_files import write_folder
from ledger.checkpoint import sign_checkpoint
from ledger.cosignature import add_lines
from ledger.cosigned import Published
from ledger.note import Cosigner
from ledger.report import Report
from ledger.trust_policy import TrustPolicy, parse_trust_policy
from ledger.verify import verify_bundle
from ledger.verify_witnesses import check_witnesses
from tests.certified import Certified
from tests.databases import ORIGIN, log_signer
from tests.witnesses import cosigner

W = [cosigner(number) for number in range(4)]
LOG = log_signer()
NOTE = sign_checkpoint(LOG, 10, bytes(range(32)))
TEXT = NOTE.partition(b"\n\n")[0] + b"\n"


def policy(rule: str, *numbers: int, log: str = "") -> TrustPolicy:
    lines = [f"witness W{number} {W[number].vkey()}" for number in numbers]
    members = " ".join(f"W{number}" for number in numbers)
    return parse_trust_policy(
        "\n".join([*([f"log {log}"] if log else []), *lines, f"group q {rule} {members}", "quorum q", ""]).encode()
    )


def checked(note: bytes, asked: TrustPolicy) -> list[str]:
    """What is wrong, in short words."""
    report = Report()
    check_witnesses(note, ORIGIN, asked, report)
    assert len(report.checks) == 1
    return [check.reason for check in report.failures]


@given(st.sets(st.integers(0, 3)), st.integers(1, 3))
def test_k_of_n(signers: set[int], k: int) -> None:
    note = add_lines(NOTE, [W[number].cosign(TEXT, 7) for number in sorted(signers)])
    enough = len(signers & {0, 1, 2}) >= k
    assert checked(note, policy(str(k), 0, 1, 2)) == ([] if enough else ["quorum-not-met"])


@given(st.data())
def test_a_changed_byte_of_a_needed_cosignature_is_never_enough(data: st.DataObject) -> None:
    line = bytearray(W[1].cosign(TEXT, data.draw(st.integers(0, 2**63 - 1))))
    position = data.draw(st.integers(0, len(line) - 1))
    line[position] ^= data.draw(st.integers(1, 255))
    note = NOTE + W[0].cosign(TEXT, 7) + bytes(line)
    assert checked(note, policy("all", 0, 1))[0] in ("quorum-not-met", "bad-signature", "malformed-note", "unsigned")


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 20))
def test_time_name_and_checkpoint_are_part_of_it(time: int, other: int, size: int) -> None:
    line = W[1].cosign(TEXT, time)
    blob = base64.b64decode(line.split(b" ")[2])
    asked = policy("all", 1)
    assert checked(NOTE + line, asked) == []

    def lines(name: str, data: bytes) -> bytes:
        return "— ".encode() + name.encode() + b" " + base64.b64encode(data) + b"\n"

    assert checked(NOTE + lines("witness.example/w2", blob), asked) == ["quorum-not-met"]
    assert checked(NOTE + lines(W[1].name, bytes(4) + blob[4:]), asked) == ["quorum-not-met"]
    if other != time:
        moved = blob[:4] + other.to_bytes(8, "big") + blob[12:]
        assert checked(NOTE + lines(W[1].name, moved), asked) == ["bad-signature"]
    elsewhere = sign_checkpoint(LOG, size, bytes(32))
    assert checked(elsewhere + line, asked) == ["bad-signature"]
    same_key = Cosigner("witness.example/alias", W[1].private_key)
    assert checked(NOTE + same_key.cosign(TEXT, time), asked) == ["quorum-not-met"]


def test_a_policy_may_name_its_logs() -> None:
    note = NOTE + W[0].cosign(TEXT, 7)
    assert checked(note, policy("all", 0, log=LOG.vkey())) == []
    other = log_signer(bytes(32)).vkey()
    assert checked(note, policy("all", 0, log=other)) == ["unknown-signer"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    made = Certified(tmp_path_factory.mktemp("log"))
    made.issue()
    return made


@pytest.fixture
def bundle(world: Certified, tmp_path: Path) -> Path:
    """Cosigned by W0 and W1."""
    head = world.store.head
    text = head.checkpoint.partition(b"\n\n")[0] + b"\n"
    files = bundle_writer.write(
        world.store,
        world.artifacts,
        world.signers["certification"],
        evidence.statement_of(world.store.get(world.certificate.event_index)),
        include_artifacts=False,
        checkpoint=Published(head.size, add_lines(head.checkpoint, [w.cosign(text, 7) for w in W[:2]])),
    )
    write_folder(((file.path, file.content) for file in files if isinstance(file.content, bytes)), tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_carries_its_cosignatures(world: Certified, bundle: Path) -> None:
    vkeys = [world.store.signer.vkey()]
    assert verify_bundle(bundle, vkeys).ok
    for asked, reasons in (
        (policy("all", 0, 1), []),
        (policy("2", 0, 1, 2), []),
        (policy("3", 0, 1, 2), ["quorum-not-met"]),
    ):
        report = verify_bundle(bundle, vkeys, witnesses=asked)
        assert [check.reason for check in report.failures] == reasons
        assert report.ok == (not reasons)


def test_the_command_refuses_what_is_not_cosigned_enough(
    world: Certified, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy"
    command = ["verify", str(bundle), "--trust", world.store.signer.vkey(), "--policy", str(file)]
    wanted = "".join(f"witness W{number} {one.vkey()}\n" for number, one in enumerate(W))
    file.write_text(f"{wanted}group q 2 W0 W1 W2\nquorum q\n")
    assert cli.run(command) == 0
    file.write_text(f"{wanted}group q all W0 W1 W2\nquorum q\n")
    assert cli.run(command) == 1
    assert "quorum-not-met (quorum q is not met: cosigned by W0, W1; missing W2)" in capsys.readouterr().out
    file.write_text(f"{wanted}group q 9 W0 W1 W2\nquorum q\n")
    assert cli.run(command) == 1
    assert f"error: {file}: line 5: 9 of 3 members is not possible" in capsys.readouterr().err
