"""The command line without services: help, usage, errors, configuration, and the pure parts behind the commands."""

from __future__ import annotations

import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from modelledger import __version__, cli
from modelledger.cli import COMMANDS
from modelledger.cli.progress import follow_run
from modelledger.cli.session import Session, size_text
from modelledger.ledger.v1 import events_pb2
from modelledger.names import model_name, version_resource
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import DamagedLog, InvalidName, Refused, Violation

ROOT = Path(__file__).parent.parent.parent


# Reads, so that a program can use its answer; the others start something or print something that is no record.
WITHOUT_JSON = {"demo", "completion", "log key", "log show", "log proof"}


def _walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        yield from _walk(child, (*path, name))


LEAVES = dict(_walk(cli.cli))


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# Help


def test_help_is_shown_without_importing_grpc_or_rich() -> None:
    code = (
        "import sys; from modelledger.cli import run; code = run(['--help']);"
        "heavy = {'grpc', 'rich', 'google.protobuf', 'sqlalchemy', 'cryptography'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_the_auditor_imports_no_network_and_no_protobuf() -> None:
    code = (
        "import sys, modelledger.cli.verify;"
        "heavy = {'grpc', 'google.protobuf', 'sqlalchemy', 'socket'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_in_the_table_is_the_commands_own(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    first_paragraph = " ".join((command.help or "").split("\n\n")[0].split())
    assert first_paragraph == COMMANDS[name].summary
    assert command.name == name


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_says_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*name.split(), "--help"]) == 0
    first_words = (LEAVES[name].help or "").split()[:3]
    assert len(first_words) == 3
    assert " ".join(first_words) in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(LEAVES) - WITHOUT_JSON))
def test_every_command_that_answers_has_json(name: str) -> None:
    assert "as_json" in {parameter.name for parameter in LEAVES[name].params}


def test_both_spellings_of_epochs_are_accepted() -> None:
    [epochs] = [parameter for parameter in LEAVES["train"].params if parameter.name == "epochs"]
    assert {"--epochs", "--num_epochs", "--num-epochs"} <= set(epochs.opts)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell]) == 0
    assert "_MODELLEDGER_COMPLETE" in capsys.readouterr().out


def test_the_version_is_the_projects() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


# Exit codes and errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["train"],
        ["train", "acme/support"],
        ["train", "acme/support", "--data", "/no/such/file"],
        ["train", "acme/support", "--data", __file__, "--set", "epochs"],
        ["train", "acme/support", "--data", __file__, "--epochs", "2", "--set", "epochs=3"],
        ["train", "acme/support", "--data", __file__, "--epochs", "many"],
        ["dataset", "check", __file__, "--register"],
        ["ask"],
        ["ask", "a", "b", "c"],
        ["ask", "q", "--temperature", "-1"],
        ["quantize"],
        ["quantize", "base/x", "v1.0"],
        ["certify"],
        ["certify", "a/b", "--certificate", "c"],
        ["certify", "--certificate", "c", "--revoke"],
        ["verify", "bundle"],
        ["versions", "revoke", "a/b", "v1.0"],
        ["log", "proof", "-1"],
        ["actors", "revoke", "trainer", "--reason", "stolen", "--compromised-from", "0"],
        ["log", "list", "--kind", "TrainingFaild"],
        ["--server", "", "log", "key"],
        ["completion", "tcsh"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["base", "list"],
        ["dataset", "check", __file__],
        ["runs", "list"],
        ["runs", "watch", "run-20260102-030405"],
        ["quantize", "base/x"],
        ["versions", "list", "a/b", "--json"],
        ["deploy", "list"],
        ["ask", "why?"],
        ["certify", "a/b"],
        ["log", "verify"],
        ["subscriptions", "list"],
        ["lineage", "a/b"],
        ["export", "a/b"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_without_a_server_every_command_fails_and_says_what_to_do(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["--server", f"127.0.0.1:{_closed_port()}", *arguments]) == 1
    out, err = capfd.readouterr()
    said = out if arguments == ["doctor"] else err
    assert "no answer from the service" in said
    assert "modelledger up" in said
    assert "Traceback" not in err
    if arguments != ["doctor"]:
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_a_name_of_the_wrong_form_is_refused_before_anything_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["versions", "list", "no-organisation"]) == 1
    assert "{org}/{model}" in capsys.readouterr().err


def test_errors_list_their_violations_once(capsys: pytest.CaptureFixture[str]) -> None:
    violations = [Violation("version", "X", "is missing"), Violation("data", "X", "is too\nlong")]
    cli._show(Refused("refused:\nversion is missing", violations=violations))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: refused: version is missing"
    assert lines[1] == "  - data: is too"
    assert len([line for line in lines if "is missing" in line]) == 1


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: /x: Permission denied"),
        (SystemExit(1), 1, ""),
        (DamagedLog("event 7: changed"), 1, "error: event 7: changed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_is_raised_becomes_an_exit_code(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fails() -> None:
        raise raised

    monkeypatch.setattr(cli, "cli", fails)
    assert cli.run([]) == code
    assert said in capsys.readouterr().err


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fails() -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(cli, "cli", fails)
    with pytest.raises(KeyError):
        cli.run([])


def test_addresses_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Session] = []
    monkeypatch.setenv("MODELLEDGER_SERVER", "ledger:1")
    monkeypatch.setenv("MODELLEDGER_TRAINER", "trainer:2")
    monkeypatch.setattr("modelledger.cli.session.Session.close", lambda session: seen.append(session))
    assert cli.run(["--inference", "inference:3", "completion", "bash"]) == 0
    assert (seen[0].server, seen[0].trainer, seen[0].quantizer, seen[0].inference) == (
        "ledger:1",
        "trainer:2",
        "",
        "inference:3",
    )


# Names


def test_names_of_models() -> None:
    assert model_name("acme/support").resource == "orgs/acme/models/support"
    assert model_name("orgs/acme/models/support") == model_name("acme/support")
    assert version_resource("acme/support", "v1.10") == "orgs/acme/models/support/versions/v1.10"
    for wrong in ("acme", "", "a/b/c", "../b", "a/ b"):
        with pytest.raises(InvalidName):
            model_name(wrong)


def test_sizes_for_people() -> None:
    assert [size_text(n) for n in (0, 1023, 1024, 1 << 20, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 MiB",
        "5.0 TiB",
    ]


# Following a run


def test_each_epoch_is_told_once_and_the_last_state_is_handed_back(capsys: pytest.CaptureFixture[str]) -> None:
    epochs = [events_pb2.EpochCompleted(base="b", epoch=n, epochs=2, train_loss=1.0 / n) for n in (1, 2)]
    states = [
        trainer_pb2.TrainingRun(attempts=1, epochs=epochs[:1], progress=50),
        trainer_pb2.TrainingRun(attempts=1, epochs=epochs[:1], progress=60),
        trainer_pb2.TrainingRun(attempts=1, epochs=epochs, progress=100, version="v1.0"),
    ]
    assert follow_run(iter(states)).version == "v1.0"
    err = capsys.readouterr().err
    assert err.splitlines() == ["b: epoch 1/2, training loss 1", "b: epoch 2/2, training loss 0.5"]
    with pytest.raises(click.ClickException):
        follow_run(iter(()))
