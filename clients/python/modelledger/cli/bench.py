"""`modelledger bench`: numbers of this machine, each beside a floor measured in the same run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from modelledger.cli.child import Child, environment
from modelledger.cli.session import json_option

_rounds = click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 100), help="The median counts.")

MIN_SIZE, MAX_SIZE = 1_000, 100_000_000  # events


@click.group()
def bench() -> None:
    """Measure this machine, against a floor measured in the same run."""


@bench.command()
@click.option("--events", default=6_000, show_default=True, type=click.IntRange(100), help="In each round.")
@click.option("--callers", default=64, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="The median counts.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1, 1_000), help="Events in one request.")
@click.option(
    "--stream",
    "streams",
    default=0,
    is_flag=False,
    flag_value=1,
    type=click.IntRange(0, 100),
    metavar="[STREAMS]",
    help="Over so many AppendStream calls (one without a number), which share the callers' requests between them.",
)
@json_option
def append(events: int, callers: int, rounds: int, batch: int, streams: int, as_json: bool) -> None:
    """Signed, verified, durable, proven events a second through gRPC.

    A real ledger in a process of its own, on a fresh SQLite file; events signed beforehand; every proof is checked
    afterwards. The floor is a bare gRPC echo of messages of the same size, with the same client code; for requests of
    several events, and for streams, it is the P-256 signatures that one core verifies in a second.
    """
    from modelledger.cli.bench_load import measure_append  # grpc.aio is for this command only

    _report(measure_append(events, callers, rounds, batch, streams), as_json)


@bench.command()
@click.option("--events", default=300, show_default=True, type=click.IntRange(10), help="One after another.")
@_rounds
@json_option
def lone(events: int, rounds: int, as_json: bool) -> None:
    """Median milliseconds of one append when nobody else appends.

    The floor is the database's own: one row inserted and committed, as durably, in a fresh SQLite file.
    """
    from modelledger.cli.bench_lone import measure_lone

    _report(measure_lone(events, rounds), as_json)


@bench.command()
@click.option("--events", default=20_000, show_default=True, type=click.IntRange(1_000), help="In the log.")
@_rounds
@json_option
def rebuild(events: int, rounds: int, as_json: bool) -> None:
    """Events a second that the registry view is rebuilt from.

    The floor is the same rows read from the same database and nothing done with them.
    """
    from modelledger.cli.bench_rebuild import measure_rebuild

    _report(measure_rebuild(events, rounds), as_json)


@bench.command()
@click.option("--events", default=20_000, show_default=True, type=click.IntRange(1_000, 1_000_000), help="In the log.")
@_rounds
@json_option
def watch(events: int, rounds: int, as_json: bool) -> None:
    """Events a second that one watcher receives while it catches up.

    A real ledger in a process of its own, on a fresh SQLite file, with signed events. The floor is a bare gRPC stream
    of the same bytes to the same client.
    """
    from modelledger.cli.bench_watch import measure_watch  # grpc is for this command only

    _report(measure_watch(events, rounds), as_json)


@bench.command()
@click.option("--events", default=40_000, show_default=True, type=click.IntRange(3_000), help="In the log.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="The median counts.")
@json_option
def audit(events: int, rounds: int, as_json: bool) -> None:
    """Events a second that `modelledger audit` verifies, on all cores.

    A backup of signed events, so that reading it costs next to nothing. The floor is the number of cores times the
    P-256 signatures that one core verifies in a second.
    """
    from modelledger.cli.bench_audit import measure_audit

    _report(measure_audit(events, rounds), as_json)


@bench.command()
@click.option("--sizes", default="1000,10000,100000", show_default=True, metavar="N,N,...", help="Events in the log.")
@click.option(
    "--calls", default=300, show_default=True, type=click.IntRange(100, 100_000), help="Of each, at each size."
)
@click.option("--database", default="", metavar="URL", help="An empty database; a fresh SQLite file when left out.")
@json_option
def growth(sizes: str, calls: int, database: str, as_json: bool) -> None:
    """What appends, proofs, reads and a start cost as the log grows, in milliseconds.

    One database is filled to each size with events that nobody signed; what is measured there is real: signed, durable,
    proven. Ten million events take some ten minutes and seven gigabytes. The floor of an append is a row committed,
    that of a read is a row read by its position, by the database's driver alone.
    """
    from modelledger.cli.bench_growth import measure_growth

    result = measure_growth(_sizes(sizes), calls, database)
    _report(result, as_json)
    if not as_json:
        _report_growth(result["growth"], result["milliseconds"])


@bench.command()
@_rounds
@json_option
def help(rounds: int, as_json: bool) -> None:
    """Seconds that `modelledger --help` takes; the floor is `python -c pass`."""
    value = _median(rounds, lambda: _seconds([sys.executable, "-m", "modelledger.cli", "--help"]))
    _report(_start("help", value, rounds), as_json)


@bench.command()
@_rounds
@json_option
def up(rounds: int, as_json: bool) -> None:
    """Seconds until `modelledger up` is ready; the floor is `python -c pass`."""
    with tempfile.TemporaryDirectory(prefix="modelledger-bench-") as folder:
        data = Path(folder, "data")
        first = _up_seconds(data, Path(folder, "first.log"))
        value = _median(rounds, lambda: _up_seconds(data, Path(folder, "up.log")))
    _report(_start("up", value, rounds, first_run_seconds=round(first, 3)), as_json)


def _start(name: str, value: float, rounds: int, **conditions: Any) -> dict[str, Any]:
    """The result of measuring how long a process takes to start, in seconds."""
    floor = _median(rounds, lambda: _seconds([sys.executable, "-c", "pass"]))
    return {
        "name": name,
        "value": round(value, 4),
        "floor": round(floor, 4),
        "ratio": round(value / floor, 3),
        "unit": "s",
        "conditions": {"rounds": rounds, "cpus": os.cpu_count(), "python": sys.version.split()[0], **conditions},
    }


def _report(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{result['name']}: {result['value']:g} {result['unit']}")
    click.echo(f"  floor {result['floor']:g}, ratio {result['ratio']:g}")
    click.echo(f"  {', '.join(f'{name} {value}' for name, value in result['conditions'].items())}")


def _sizes(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isascii() and number.isdigit() and MIN_SIZE <= int(number) <= MAX_SIZE for number in numbers):
        raise click.UsageError(f"--sizes: numbers of events from {MIN_SIZE} to {MAX_SIZE}, with commas between them")
    return sorted({int(number) for number in numbers})


def _report_growth(growth: dict[str, float], costs: dict[str, dict[str, float]]) -> None:
    """A line for each cost: what it is at each size, and how it grew."""
    click.echo(f"{'':24}{''.join(f'{size:>12}' for size in costs)}{'growth':>9}")
    for name in next(iter(costs.values())):
        row = "".join(f"{cost[name]:>12g}" for cost in costs.values())
        click.echo(f"{name:24}{row}{growth.get(name, ''):>9}")


def _median(rounds: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(rounds))


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - started


def _up_seconds(data: Path, log: Path) -> float:
    started = time.perf_counter()
    with Child.up(data, log):
        return time.perf_counter() - started
