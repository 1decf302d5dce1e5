"""The command line against a real ledger that holds a version: what people are told, and what is not done."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certified import Certified
from tests.ledger_alone import Run, commands, serving

MODEL = "acme/assistant"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command on a log with acme/assistant v1.0, quantised."""
    with serving(Certified(tmp_path / "data"), tmp_path / "data") as address:
        yield commands(address, capsys)


@pytest.fixture
def run_unquantised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    world = Certified(tmp_path / "data", skip=frozenset({"QuantizationCompleted"}))
    with serving(world, tmp_path / "data") as address:
        yield commands(address, capsys)


def _size(run: Run) -> int:
    return int(json.loads(run("log", "checkpoint", "--json")[1])["size"])


def test_no_certificate_is_issued_when_its_bundle_could_not_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    size = _size(run)
    code, _, err = run("certify", MODEL, "v1.0", "--out", str(tmp_path / "there"))
    assert code == 1
    assert "there is already there" in err
    code, _, err = run("certify", MODEL, "v1.0", "--out", str(tmp_path / "file" / "certificate"))
    assert code == 1
    assert err.count("\n") == 1
    code, _, err = run("certify", MODEL, "v1.0", "--out", "/proc/self/certificate")
    assert code == 1
    assert "/proc/self" in err
    assert _size(run) == size
    assert run("certify", MODEL, "v1.0", "--out", str(tmp_path / "new"))[0] == 0
    assert _size(run) == size + 1


def test_a_bundle_that_cannot_be_written_is_there_later(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("modelledger.cli.certify.save", lambda *_: os.open("/no/space/left", 0))
        code, _, err = run("certify", MODEL, "v1.0", "--out", str(tmp_path / "new"))
    assert code == 1
    [command] = re.findall("modelledger (certify --certificate .*) PATH", err)
    assert run(*command.split(), str(tmp_path / "new"))[0] == 0
    assert (tmp_path / "new").is_dir()


def test_the_verdict_is_short_and_the_checks_are_shown_on_request(run: Run, tmp_path: Path) -> None:
    bundle, key = tmp_path / "bundle", tmp_path / "log.vkey"
    assert run("certify", MODEL, "--with-artifacts", "--out", str(bundle))[0] == 0
    key.write_text(run("log", "key")[1])
    code, out, _ = run("verify", str(bundle), "--trust", str(key))
    assert code == 0
    assert not [line for line in out.splitlines()[:-1] if line.startswith("VALID")]
    verdict = out.splitlines()[-1]
    assert verdict.startswith("VALID: ")
    code, out, _ = run("verify", str(bundle), "--trust", str(key), "--verbose")
    listed = [line for line in out.splitlines()[:-1] if line.startswith("VALID")]
    assert (code, verdict) == (0, f"VALID: {len(listed)} checks")

    [victim] = bundle.rglob("*.gguf")
    victim.write_bytes(victim.read_bytes() + b"x")
    code, out, _ = run("verify", str(bundle), "--trust", str(key))
    assert code == 1
    assert victim.name in out
    assert not [line for line in out.splitlines() if line.startswith("VALID")]


def test_a_version_without_a_gguf_names_the_command_that_makes_one(run_unquantised: Run, tmp_path: Path) -> None:
    run = run_unquantised
    command = f"modelledger quantize {MODEL} v1.0"
    code, _, err = run("certify", MODEL, "--out", str(tmp_path / "certificate"))
    assert code == 1
    assert f"run: {command}" in err
    assert not (tmp_path / "certificate").exists()
    code, _, err = run("versions", "set-active", MODEL, "latest")
    assert code == 0
    assert err.startswith("warning: ")
    assert command in err


def test_setting_the_active_version_active_again_says_since_when(run: Run) -> None:
    size = _size(run)
    code, out, err = run("versions", "set-active", MODEL, "v1.0")
    assert (code, err) == (0, "")
    assert "before  none" in out
    assert run("versions", "set-active", MODEL, "v1.0") == (
        0,
        f"{MODEL} v1.0 is already active since event {size}\n",
        "",
    )
    assert _size(run) == size + 1


def test_an_active_version_that_is_revoked_is_shown_as_both(run: Run) -> None:
    assert run("versions", "set-active", MODEL, "v1.0")[0] == 0
    code, out, err = run("versions", "revoke", MODEL, "v1.0", "--reason", "it says wrong things")
    assert code == 0
    assert "ACTIVE, revoked" in out
    assert f"modelledger versions set-active {MODEL}" in err
    for command in (("list",), ("info", "v1.0"), ("active",)):
        assert "ACTIVE, revoked" in run("versions", command[0], MODEL, *command[1:])[1]


def test_a_version_that_is_not_active_is_revoked_without_further_advice(run: Run) -> None:
    code, out, err = run("versions", "revoke", MODEL, "v1.0", "--reason", "it says wrong things")
    assert (code, err) == (0, "")
    assert "revoked" in out
    assert "ACTIVE" not in out


def test_an_audit_says_whose_key_it_believed(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "log.vkey"
    key.write_text(run("log", "key")[1])
    for command in (("log", "verify"), ("audit",)):
        assert run(*command)[1].splitlines()[-1] == (
            "VALID for the key this log handed out; pass --trust to check against a key you hold"
        )
        assert run(*command, "--trust", str(key))[1].splitlines()[-1] == "VALID"
        assert json.loads(run(*command, "--json")[1])["trusted"] is False


def test_without_witnesses_there_is_no_cosigned_checkpoint(run: Run) -> None:
    code, _, err = run("log", "checkpoint", "--cosigned")
    assert code == 1
    assert "[ledger] witnesses" in err


def test_a_service_that_runs_elsewhere_is_looked_for_with_its_option(run: Run) -> None:
    for command in (("runs", "list"), ("quantize", "--list"), ("deploy", "list")):
        code, _, err = run(*command)
        assert code == 1
        assert "this address does not serve it" in err
        assert "MODELLEDGER_TRAINER" in err
        assert err.count("\n") == 1
