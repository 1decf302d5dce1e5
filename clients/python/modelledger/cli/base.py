"""`modelledger base`: base models."""

from __future__ import annotations

import click

from modelledger.cli.session import (
    Session,
    flag,
    json_option,
    pass_session,
    plain,
    print_facts,
    print_json,
    print_table,
    short,
    size_text,
)


@click.group()
def base() -> None:
    """Base models: list what the trainer sees, register one."""


@base.command("list")
@json_option
@pass_session
def list_bases(session: Session, as_json: bool) -> None:
    """List the base model folders, usable or not, and whether they are registered."""
    local = list(session.client.local_bases())
    registered = {model.sha256: model for model in session.client.base_models()}
    if as_json:
        return print_json(
            [{**plain(one), "registered": bool(one.sha256) and one.sha256 in registered} for one in local]
        )
    usable = [one for one in local if not one.unusable_reason]
    print_table(
        ["Key", "Name", "Architecture", "Parameters", "Size", "Licence", "SHA-256", ""],
        [
            (
                one.key,
                one.display_name,
                one.architecture,
                f"{one.parameters:,}",
                size_text(one.size),
                one.licence or "none stated",
                short(one.sha256),
                _registered(registered[one.sha256].withdrawn) if one.sha256 in registered else "",
            )
            for one in usable
        ],
        empty="no usable base model; put model folders below a folder of `bases` in the trainer's configuration",
    )
    for one in local:
        if one.unusable_reason:
            click.echo(f"unusable: {one.folder}: {one.unusable_reason}", err=True)
    return None


def _registered(withdrawn: bool) -> str:
    return flag(not withdrawn, "registered") or "withdrawn"


@base.command()
@click.argument("name")
@json_option
@pass_session
def register(session: Session, name: str, as_json: bool) -> None:
    """Register a base model in the log. NAME may be shortened while it stays unique."""
    response = session.client.register_base(name)
    if as_json:
        return print_json(plain(response))
    print_facts(
        [
            ("base model", response.base.key),
            ("sha256", response.base.sha256),
            ("event", str(response.event_index)),
        ]
    )
    return None
