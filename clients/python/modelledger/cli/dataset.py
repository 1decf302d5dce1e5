"""`modelledger dataset`: is this file fit to train on?"""

from __future__ import annotations

from pathlib import Path

import click

from modelledger.cli.progress import upload_bar
from modelledger.cli.session import (
    Session,
    json_option,
    pass_session,
    plain,
    print_facts,
    print_json,
    print_messages,
    print_table,
    short,
    size_text,
)
from modelledger.trainer.v1 import trainer_pb2

SHOWN_PROBLEMS = 20


@click.group()
def dataset() -> None:
    """Datasets: check one, register it."""


@dataset.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--register", is_flag=True, help="Record it in the log; needs --org.")
@click.option("--org", default="", help="The owning organisation.")
@click.option("--name", default="", help="The dataset's name; the file's name when absent.")
@click.option("--accept-below-minimum", is_flag=True, help="Register even fewer than 50 examples; this is recorded.")
@json_option
@pass_session
def check(
    session: Session, file: Path, register: bool, org: str, name: str, accept_below_minimum: bool, as_json: bool
) -> None:
    """Check a dataset; exit 1 when it is not ready to train on.

    Lines are JSON: {"prompt","completion"}, {"instruction","input","output"} or {"messages"}.
    """
    if register and not org:
        raise click.UsageError("--register needs --org: a dataset belongs to an organisation")
    with upload_bar(file) as progress:
        response = session.client.check_dataset(
            file,
            org=org,
            name=name or file.stem,
            register=register,
            accept_below_minimum=accept_below_minimum,
            progress=progress,
        )
    registered = response.HasField("event_index")
    if as_json:
        print_json(plain(response))
    else:
        print_facts(
            [
                ("examples", f"{response.examples} valid, {response.problem_count} lines with a problem"),
                ("readiness", _readiness(response)),
                ("form", response.form),
                ("size", size_text(response.size)),
                ("sha256", response.sha256),
                ("registered", f"as {org}/{name or file.stem}, event {response.event_index}" if registered else ""),
            ]
        )
        for problem in response.problems[:SHOWN_PROBLEMS]:
            field = f" {problem.field}:" if problem.field else ""
            click.echo(f"{file}:{problem.line}:{field} {problem.reason}", err=True)
        if response.problem_count > SHOWN_PROBLEMS:
            click.echo(f"… and {response.problem_count - SHOWN_PROBLEMS} more lines; --json lists them", err=True)
    if response.band == "not_ready" and not registered:
        raise SystemExit(1)


def _readiness(response: trainer_pb2.CheckDatasetResponse) -> str:
    band = response.band.replace("_", " ")
    if response.examples >= response.minimum_examples:
        return band
    needed = f"{response.examples} valid examples of {response.minimum_examples} needed"
    return f"{band}: {needed}; --accept-below-minimum registers it all the same"


@dataset.command("list")
@click.argument("org")
@json_option
@pass_session
def list_datasets(session: Session, org: str, as_json: bool) -> None:
    """List an organisation's registered datasets, newest first."""
    found = session.client.datasets(org)
    if as_json:
        return print_messages(found)
    print_table(
        ["Dataset", "Examples", "Readiness", "Form", "SHA-256", "Event"],
        [
            (
                one.record.name,
                str(one.record.examples),
                one.record.band.replace("_", " "),
                one.record.form,
                short(one.sha256),
                str(one.event_index),
            )
            for one in found
        ],
        empty=f"{org} has no dataset; register one: modelledger dataset check FILE --org {org} --register",
    )
    return None
