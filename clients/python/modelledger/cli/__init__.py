"""`modelledger`: the command line. It talks to the public gRPC API through modelledger/client.py and nothing else.

    __init__.py     the list of commands, and what happens to errors
    session.py      addresses, tables and JSON
    progress.py     what long work looks like on a terminal
    <command>.py    one file for each group of commands

Exit codes: 0 done, 1 the answer is no or it failed, 2 wrong usage, 130 interrupted. A command's file is imported when
the command is used, so `modelledger --help` is quick however heavy a command is.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import cast

import click

from ledger.errors import ModelLedgerError
from modelledger import __version__
from modelledger.cli.session import Session


@dataclass(frozen=True)
class Entry:
    """Where a command is, and the first sentence of its help, which `modelledger --help` shows without importing it."""

    where: str  # module:attribute
    summary: str


COMMANDS = {
    "up": Entry("up:up", "Run all services on this machine until interrupted."),
    "demo": Entry("demo:demo", "Take a small model through its whole life, here, in about a minute."),
    "base": Entry("base:base", "Base models: list what the trainer sees, register one."),
    "dataset": Entry("dataset:dataset", "Datasets: check one, register it."),
    "train": Entry("train:train", "Fine-tune base models on a dataset: the next version of MODEL."),
    "runs": Entry("runs:runs", "Training runs: list, show, watch, cancel."),
    "quantize": Entry("quantize:quantize", "Make GGUF files of a version, or of a base model."),
    "versions": Entry("versions:versions", "Versions of a model: list, inspect, make active, roll back, revoke."),
    "deploy": Entry("deploy:deploy", "What is served: list, enable, disable."),
    "ask": Entry("ask:ask", "Ask a served model a question."),
    "certify": Entry("certify:certify", "Issue a certificate for a version and download its bundle."),
    "verify": Entry("verify:verify", "Audit a certificate's bundle, offline."),
    "actors": Entry("actors:actors", "Who may sign events: list, enrol, give another key, revoke."),
    "log": Entry("log:log", "The transparency log: read it, prove it, verify all of it."),
    "audit": Entry("audit:audit", "Verify a whole log: every signature, rule, hash and stored column."),
    "witness": Entry("witness:witness", "Run a witness: cosign the checkpoints of logs that stay append-only."),
    "subscriptions": Entry(
        "subscriptions:subscriptions", "Consumer groups: list them, see what they parked, replay it."
    ),
    "lineage": Entry("lineage:lineage", "What an artifact is made from, and what was made from it."),
    "export": Entry("export:export", "Write a model's files from the log, or check copies of them."),
    "doctor": Entry("doctor:doctor", "Is everything running and sound?"),
    "bench": Entry("bench:bench", "Measure this machine, against a floor measured in the same run."),
    "completion": Entry("completion:completion", "Print the completion script for a shell."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].where.partition(":")
        return cast(click.Command, getattr(importlib.import_module(f"modelledger.cli.{module}"), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="modelledger")
@click.option(
    "--server", envvar="MODELLEDGER_SERVER", default="127.0.0.1:50051", show_default=True, metavar="HOST:PORT"
)
@click.option("--trainer", envvar="MODELLEDGER_TRAINER", metavar="HOST:PORT", help="When it runs on its own.")
@click.option("--quantizer", envvar="MODELLEDGER_QUANTIZER", metavar="HOST:PORT", help="When it runs on its own.")
@click.option("--inference", envvar="MODELLEDGER_INFERENCE", metavar="HOST:PORT", help="When it runs on its own.")
@click.option("--ca", envvar="MODELLEDGER_CA", metavar="FILE", help="Certificate authority of the servers (PEM): TLS.")
@click.option("--cert", envvar="MODELLEDGER_CERT", metavar="FILE", help="Your certificate (PEM), for mutual TLS.")
@click.option("--key", envvar="MODELLEDGER_KEY", metavar="FILE", help="Its private key (PEM).")
@click.pass_context
def cli(ctx: click.Context, /, **addresses: str | None) -> None:
    """Every step of a model's life, signed and provable.

    `modelledger up` starts the services, `modelledger demo` shows everything at once. Options before the command
    have an environment variable each: MODELLEDGER_SERVER, MODELLEDGER_TRAINER, …
    """
    if not addresses["server"]:
        raise click.BadParameter("is empty; leave it out for the ledger of this machine", param_hint="--server")
    ctx.obj = Session(**{name: value or "" for name, value in addresses.items()})
    ctx.call_on_close(ctx.obj.close)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; its exit code. Errors are one line on stderr, never a traceback for ours."""
    try:
        result = cli.main(arguments, prog_name="modelledger", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except ModelLedgerError as error:
        _show(error)
        return 1
    except BrokenPipeError:
        # The reader of our output went away (`| head`). Python must not complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        click.echo(f"error: {error.filename or 'system'}: {error.strerror or error}", err=True)
        return 1
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    return result if isinstance(result, int) else 0


def _show(error: ModelLedgerError) -> None:
    click.echo(f"error: {' '.join(error.message.split())}", err=True)
    for violation in error.violations:
        if violation.description not in error.message:
            click.echo(f"  - {violation}", err=True)
