"""What long work looks like: a bar on a terminal, one line for each thing that happened everywhere else.

Bars go to stderr, so that stdout stays what a program can read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelledger.cli.session import number

if TYPE_CHECKING:
    from rich.progress import Progress

    from modelledger.quantizer.v1 import quantizer_pb2
    from modelledger.trainer.v1 import trainer_pb2

BIG_UPLOAD = 8 << 20  # bytes from which a bar is worth it


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def upload_bar(file: Path) -> Iterator[Callable[[int], None]]:
    """Something to tell the bytes that were sent."""
    size = file.stat().st_size
    if size < BIG_UPLOAD:
        yield lambda sent: None
        return
    with _bar() as bar:
        task = bar.add_task(f"sending {file.name}", total=size)
        yield lambda sent: bar.update(task, advance=sent)


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Something to tell how many are done, of how many."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total, description=f"{what} {done}/{total}")


def follow_run(runs: Iterator[trainer_pb2.TrainingRun], *, quiet: bool = False) -> trainer_pb2.TrainingRun:
    """Show a run until it ends; the run as it ended."""
    told, last = 0, None
    with _bar() as bar:
        task = bar.add_task("waiting for a worker", total=100)
        for last in runs:
            what = f"{last.live.base}: step {last.live.step}/{last.live.steps}" if last.HasField("live") else "running"
            bar.update(task, completed=last.progress, description=what if last.attempts else "waiting for a worker")
            for epoch in last.epochs[told:]:
                losses = [
                    f"{name} {number(getattr(epoch, field))}"
                    for name, field in (("training loss", "train_loss"), ("validation loss", "validation_loss"))
                    if epoch.HasField(field)  # type: ignore[arg-type]  # the two names above are fields
                ]
                if not quiet:
                    bar.console.print(
                        f"{epoch.base}: epoch {epoch.epoch}/{epoch.epochs}, {', '.join(losses)}",
                        markup=False,
                        highlight=False,
                    )
            told = len(last.epochs)
    if last is None:
        raise click.ClickException("the service ended the watch without telling the run's state; try again")
    return last


def follow_quantization(
    states: Iterator[quantizer_pb2.Quantization], *, quiet: bool = False
) -> quantizer_pb2.Quantization:
    """Show a quantisation until it ends; the quantisation as it ended."""
    stage, last = "", None
    with _bar() as bar:
        task = bar.add_task("waiting for a worker", total=None)
        for last in states:
            if not last.HasField("live"):
                continue
            live = last.live
            bar.update(task, description=live.stage, completed=live.done, total=live.total or None)
            if live.stage != stage and not quiet and not bar.console.is_terminal:
                click.echo(live.stage, err=True)
            stage = live.stage
    if last is None:
        raise click.ClickException("the service ended the watch without telling the state; try again")
    return last


def interrupted(*lines: str) -> None:
    """Ctrl-C while watching: the work goes on, and this is how to get back to it."""
    for line in lines:
        click.echo(line, err=True)
    sys.exit(130)
