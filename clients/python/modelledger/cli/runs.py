"""`modelledger runs`: training runs."""

from __future__ import annotations

from itertools import islice

import click

from modelledger.cli.progress import follow_run, interrupted
from modelledger.cli.session import (
    Session,
    json_option,
    number,
    pass_session,
    plain,
    print_facts,
    print_json,
    print_messages,
    print_table,
)
from modelledger.trainer.v1 import trainer_pb2


def state_name(state: int) -> str:
    return trainer_pb2.RunState.Name(state).removeprefix("RUN_STATE_").lower()  # type: ignore[arg-type]


def show_run(run: trainer_pb2.TrainingRun) -> None:
    """A run for people."""
    request = run.request
    print_facts(
        [
            ("run", run.name.rpartition("/")[2]),
            ("state", state_name(run.state)),
            ("reason", run.reason),
            ("model", f"{request.org}/{request.model}"),
            ("version", run.version),
            ("bases", ", ".join(request.bases)),
            ("dataset", request.dataset),
            ("continues", request.parent_version),
            ("progress", f"{run.progress:.0f} %"),
            ("asked for", f"{run.create_time} by {request.caller.id}"),
            ("options", ", ".join(f"{key}={value}" for key, value in sorted(request.options.items()))),
        ]
    )
    for base in run.outcome.trained:
        facts = [f"{base.epochs} epochs", f"{base.seconds:.1f} s"]
        if base.HasField("train_loss"):
            facts.append(f"training loss {number(base.train_loss)}")
        if base.HasField("validation_loss"):
            facts.append(f"validation loss {number(base.validation_loss)}")
        click.echo(f"trained {base.key}: {', '.join(facts)}")
    for failed in run.outcome.failed:
        click.echo(f"failed {failed.key}: {failed.reason}", err=True)


@click.group()
def runs() -> None:
    """Training runs: list, show, watch, cancel."""


@runs.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="At most this many.")
@json_option
@pass_session
def list_runs(session: Session, limit: int, as_json: bool) -> None:
    """List runs, newest first."""
    found = islice(session.client.runs(), limit)
    if as_json:
        return print_messages(found)
    print_table(
        ["Run", "State", "Model", "Version", "Bases", "Progress"],
        [
            (
                run.name.rpartition("/")[2],
                state_name(run.state),
                f"{run.request.org}/{run.request.model}",
                run.version,
                ", ".join(run.request.bases),
                f"{run.progress:.0f} %",
            )
            for run in found
        ],
        empty="no runs yet; start one: modelledger train ORG/MODEL --base NAME --data FILE",
    )
    return None


@runs.command()
@click.argument("run")
@json_option
@pass_session
def show(session: Session, run: str, as_json: bool) -> None:
    """Show one run."""
    found = session.client.run(run)
    if as_json:
        return print_json(plain(found))
    return show_run(found)


@runs.command()
@click.argument("run")
@json_option
@pass_session
def watch(session: Session, run: str, as_json: bool) -> None:
    """Watch a run until it ends; exit 1 when it made no version."""
    try:
        found = follow_run(session.client.watch_run(run), quiet=as_json)
    except KeyboardInterrupt:
        interrupted(f"{run} goes on without you; cancel it: modelledger runs cancel {run}")
        raise
    if as_json:
        print_json(plain(found))
    else:
        show_run(found)
    if found.state != trainer_pb2.RUN_STATE_COMPLETED:
        raise SystemExit(1)


@runs.command()
@click.argument("run")
@click.option("--reason", default="", help="Why; recorded.")
@json_option
@pass_session
def cancel(session: Session, run: str, reason: str, as_json: bool) -> None:
    """Cancel a queued or running run."""
    found = session.client.cancel_run(run, reason)
    if as_json:
        return print_json(plain(found))
    return show_run(found)
