"""`modelledger verify`: the auditor. Offline: this file and what it imports know no network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from ledger.report import VALID, Check
from ledger.trust import read_all
from ledger.trust_policy import read_trust_policy
from ledger.verify import verify_bundle
from modelledger.cli.session import json_option, print_facts, print_json

TRUST = "Key of a log you trust, a file of such keys, or a trust file (.toml), which may pin actors' keys; repeatable."


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--trust", "trusted", multiple=True, required=True, metavar="KEY|FILE", help=TRUST)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also demand the cosignatures of witnesses that this tlog-policy asks for.",
)
@click.option(
    "--artifact",
    "artifacts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Also check this file or folder on this machine against the bundle; repeatable.",
)
@click.option("--verbose", is_flag=True, help="Print every check, not only those that failed.")
@json_option
def verify(
    bundle: Path,
    trusted: tuple[str, ...],
    policy: Path | None,
    artifacts: tuple[Path, ...],
    verbose: bool,
    as_json: bool,
) -> None:
    """Audit a certificate's bundle, offline.

    Exit 0 when everything in it is proven by a log you trust, else 1 with everything that is wrong.
    """
    witnesses = read_trust_policy(policy) if policy else None
    report = verify_bundle(bundle, read_all(trusted), artifacts, witnesses=witnesses)
    if as_json:
        print_json(
            {"ok": report.ok, "checks": list(map(dataclasses.asdict, report.checks)), "certified": report.certified}
        )
    else:
        for check in report.checks if verbose else report.failures:
            click.echo(_line(check))
        if report.ok:
            print_facts(_facts(report.certified))
            click.echo(f"VALID: {len(report.checks)} checks")
        else:
            click.echo(f"NOT VALID: {len(report.failures)} of {len(report.checks)} checks failed")
    if not report.ok:
        raise SystemExit(1)


def _line(check: Check) -> str:
    detail = f" ({check.detail})" if check.detail else ""
    reason = "" if check.status == VALID else f" {check.reason}"
    return f"{check.status:<7} {check.name}: {check.where}{reason}{detail}"


def _facts(certified: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """One line for each value, and for each item of a list or a map of names to digests."""
    for name, value in certified.items():
        items = [f"{key} {digest}" for key, digest in value.items()] if isinstance(value, dict) else value
        for number, item in enumerate(items if isinstance(items, list) else [items]):
            yield "" if number else name.replace("_", " "), str(item)
