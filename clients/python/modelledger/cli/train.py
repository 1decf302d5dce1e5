"""`modelledger train`: a dataset and base models become the next version of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelledger.cli.progress import follow_run, interrupted, upload_bar
from modelledger.cli.runs import show_run
from modelledger.cli.session import Session, json_option, pass_session, plain, print_json
from modelledger.names import model_name
from modelledger.trainer.v1 import trainer_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

# Options with a flag of their own; every other one goes through --set. The trainer checks them all.
_FLAGS: tuple[tuple[str, type, str], ...] = (
    ("batch_size", int, "Rows in a forward pass."),
    ("gradient_accumulation", int, "Forward passes in an optimiser step."),
    ("learning_rate", float, "Peak rate."),
    ("warmup_steps", int, "Steps to the peak rate."),
    ("lora_rank", int, ""),
    ("lora_alpha", int, ""),
    ("max_length", int, "Tokens; longer rows are skipped and reported."),
    ("seed", int, ""),
    ("threads", int, "CPU threads."),
    ("device", str, "cpu or cuda."),
)


def _option_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, kind, text in reversed(_FLAGS):
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=text)(command)
    return click.option("--epochs", "--num-epochs", "--num_epochs", "epochs", type=int, help="Passes over the data.")(
        command
    )


@click.command()
@click.argument("model", metavar="ORG/MODEL")
@click.option("--base", "bases", multiple=True, help="Base model; repeat for several. [default: the configured ones]")
@click.option(
    "--data",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The dataset, registered when it is not yet.",
)
@click.option("--name", default="", help="The dataset's name; the file's name when absent.")
@click.option("--accept-below-minimum", is_flag=True, help="Train even on fewer than 50 examples; this is recorded.")
@_option_flags
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other training option; repeatable.")
@click.option("--profile", default="", help="laptop or workstation.  [default: the configured one]")
@click.option("--from-version", default="", metavar="VERSION", help="Continue this version of the model.")
@click.option("--activate", is_flag=True, help="Make the new version the active one.")
@click.option("--major", is_flag=True, help="Make it v2.0 instead of v1.1.")
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@json_option
@pass_session
def train(
    session: Session,
    /,
    model: str,
    bases: tuple[str, ...],
    file: Path,
    name: str,
    accept_below_minimum: bool,
    settings: tuple[str, ...],
    profile: str,
    from_version: str,
    activate: bool,
    major: bool,
    detach: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Fine-tune base models on a dataset: the next version of MODEL.

    The run belongs to the trainer: Ctrl-C stops the watching, not the run. Exit 1 when the run makes no version.
    """
    client = session.client
    options = _options(settings, flags)
    dataset = name or file.stem
    with upload_bar(file) as progress:
        data = client.check_dataset(
            file,
            org=model_name(model).org,
            name=dataset,
            register=True,
            accept_below_minimum=accept_below_minimum,
            progress=progress,
        )
    run = client.train(
        model,
        data.sha256,
        dataset=dataset,
        bases=bases,
        options=options,
        profile=profile,
        parent_version=from_version,
        activate=activate,
        major=major,
    )
    identifier = run.name.rpartition("/")[2]
    if not as_json:
        skipped = f", {data.problem_count} lines refused" if data.problem_count else ""
        bases_named = ", ".join(run.request.bases)
        click.echo(f"{identifier}: {model} from {bases_named} on {data.examples} examples{skipped}")
    if not detach:
        try:
            run = follow_run(client.watch_run(run.name), quiet=as_json)
        except KeyboardInterrupt:
            interrupted(
                f"{identifier} goes on without you",
                f"watch it again:  modelledger runs watch {identifier}",
                f"cancel it:       modelledger runs cancel {identifier}",
            )
    if as_json:
        print_json(plain(run))
    else:
        show_run(run)
    if run.state in (trainer_pb2.RUN_STATE_FAILED, trainer_pb2.RUN_STATE_CANCELLED):
        raise SystemExit(1)


def _options(settings: tuple[str, ...], flags: dict[str, Any]) -> dict[str, str]:
    """Every option that was given, in text; the trainer refuses what it does not know."""
    options = {name: str(value) for name, value in flags.items() if value is not None}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{setting!r} is not KEY=VALUE", param_hint="--set")
        if key in options:
            raise click.BadParameter(f"{key} is given twice", param_hint="--set")
        options[key] = value
    return options
