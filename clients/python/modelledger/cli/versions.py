"""`modelledger versions`: the versions of a model, which one is active, and who made it so."""

from __future__ import annotations

import click

from modelledger.cli.session import (
    Session,
    flag,
    json_option,
    number,
    pass_session,
    plain,
    print_facts,
    print_json,
    print_messages,
    print_table,
    short,
    size_text,
)
from modelledger.ledger.v1 import registry_pb2

ADAPTER = "LORA"  # the type of a GGUF file that holds only an adapter and answers nothing on its own
_MODEL = click.argument("model", metavar="ORG/MODEL")


@click.group()
def versions() -> None:
    """Versions of a model: list, inspect, make active, roll back, revoke."""


@versions.command("models")
@click.argument("org", default="-")
@json_option
@pass_session
def list_models(session: Session, org: str, as_json: bool) -> None:
    """List the models, of one organisation or of all."""
    found = session.client.models(org)
    if as_json:
        return print_messages(found)
    print_table(
        ["Model", "Active", "Latest", "Versions"],
        [
            (_plain_name(model.name), model.active_version or "none", model.latest_version, str(model.versions))
            for model in found
        ],
        empty="no models yet; make one: modelledger train ORG/MODEL --base NAME --data FILE",
    )
    return None


@versions.command("list")
@_MODEL
@json_option
@pass_session
def list_versions(session: Session, model: str, as_json: bool) -> None:
    """List versions, newest first."""
    found = session.client.versions(model)
    if as_json:
        return print_messages(found)
    print_table(
        ["Version", "", "Bases", "Run", "GGUF", "Certificates", "Made"],
        [
            (
                version.version,
                _state("ACTIVE" if version.active else "", version.revoked),
                ", ".join(adapter.base for adapter in version.record.adapters),
                version.record.run,
                ", ".join(sorted({file.file.type for file in version.files})),
                str(len(version.certificates) or ""),
                version.create_time,
            )
            for version in found
        ],
        empty=f"{model} has no versions",
    )
    return None


@versions.command()
@_MODEL
@click.argument("version")
@json_option
@pass_session
def info(session: Session, model: str, version: str, as_json: bool) -> None:
    """Show one version: a number like v1.0, "active" or "latest"."""
    _show(session.client.version(model, version), as_json)


@versions.command()
@_MODEL
@json_option
@pass_session
def active(session: Session, model: str, as_json: bool) -> None:
    """Show the active version; exit 1 when there is none."""
    _show(session.client.version(model, "active"), as_json)


@versions.command()
@_MODEL
@json_option
@pass_session
def latest(session: Session, model: str, as_json: bool) -> None:
    """Show the newest version."""
    _show(session.client.version(model, "latest"), as_json)


@versions.command("set-active")
@_MODEL
@click.argument("version")
@click.option("--reason", default="set active on the command line", show_default=True, help="Why; recorded.")
@json_option
@pass_session
def set_active(session: Session, model: str, version: str, reason: str, as_json: bool) -> None:
    """Make a version the active one: what the name serves from now on."""
    found = session.client.version(model, version)
    activation = session.client.activate(model, found.version, reason)
    if found.active and not as_json:
        click.echo(f"{model} {found.version} is already active since event {activation.event_index}")
    else:
        _show_activation(activation, as_json)
    if not any(file.file.type != ADAPTER and not file.revoked for file in found.files):
        click.echo(
            f"warning: asking {model} fails until it has a GGUF file: modelledger quantize {model} {found.version}",
            err=True,
        )


@versions.command()
@_MODEL
@click.option("--reason", default="rolled back on the command line", show_default=True, help="Why; recorded.")
@json_option
@pass_session
def rollback(session: Session, model: str, reason: str, as_json: bool) -> None:
    """Make the version that was active before active again."""
    _show_activation(session.client.rollback(model, reason), as_json)


@versions.command()
@_MODEL
@click.argument("version")
@click.option("--reason", required=True, help="Why; recorded.")
@json_option
@pass_session
def revoke(session: Session, model: str, version: str, reason: str, as_json: bool) -> None:
    """Forbid a version: nothing made of it is served or certified any more. There is no way back."""
    revoked = session.client.revoke(model, version, reason)
    _show(revoked, as_json)
    if revoked.active:
        click.echo(
            f"{model} has no version to serve now; make another one active: modelledger versions rollback {model}, or "
            f"modelledger versions set-active {model} VERSION",
            err=True,
        )


@versions.command()
@_MODEL
@click.option("--at", "at_time", default="", metavar="TIME", help="Only what was active then, 2026-01-31T12:00:00Z.")
@json_option
@pass_session
def history(session: Session, model: str, at_time: str, as_json: bool) -> None:
    """List who made what active, when and why, newest first."""
    found = list(session.client.activations(model, at_time))
    if as_json:
        print_messages(found)
    else:
        print_table(
            ["Time", "Version", "Before", "", "By", "Reason", "Event"],
            [
                (
                    one.time,
                    one.record.version,
                    one.record.previous_version,
                    flag(one.record.rollback, "rollback"),
                    one.record.caller.id,
                    one.record.reason,
                    str(one.event_index),
                )
                for one in found
            ],
            empty=f"no version of {model} was active{f' at {at_time}' if at_time else ' yet'}",
        )
    if at_time and not found:
        raise SystemExit(1)


def _state(state: str, revoked: bool) -> str:
    """A version may be active and revoked at once: it is what the name stands for, and nothing is served."""
    return ", ".join(word for word in (state, flag(revoked, "revoked")) if word)


def _plain_name(resource: str) -> str:
    """orgs/acme/models/support -> acme/support"""
    parts = resource.split("/")
    return f"{parts[1]}/{parts[3]}"


def _show_activation(activation: registry_pb2.Activation, as_json: bool) -> None:
    if as_json:
        return print_json(plain(activation))
    record = activation.record
    print_facts(
        [
            ("active", f"{record.org}/{record.model} {record.version}"),
            ("before", record.previous_version or "none"),
            ("reason", record.reason),
            ("by", record.caller.id),
            ("event", str(activation.event_index)),
        ]
    )
    return None


def _show(version: registry_pb2.Version, as_json: bool) -> None:
    if as_json:
        return print_json(plain(version))
    record = version.record
    print_facts(
        [
            ("version", f"{record.org}/{record.model} {version.version}"),
            ("state", _state("ACTIVE" if version.active else "", version.revoked) or "not active"),
            ("made", f"{version.create_time}, event {version.event_index}"),
            ("run", record.run),
            ("continues", record.parent_version),
            ("dataset", f"{version.request.dataset}, sha256 {version.training.dataset_sha256}"),
            ("certificates", ", ".join(version.certificates)),
        ]
    )
    for adapter in record.adapters:
        chain = " + ".join(short(ref.sha256) for ref in adapter.chain)
        click.echo(f"{adapter.base} {short(adapter.base_sha256)} + {chain}, weight {number(adapter.weight)}")
    for trained in version.training.trained:
        if trained.HasField("validation_loss"):
            click.echo(f"{trained.key}: validation loss {number(trained.validation_loss)}")
    for file in version.files:
        revoked = flag(file.revoked, ", revoked")
        size = size_text(file.file.file.size)
        click.echo(f"{file.file.type} of {file.base}: {size}, sha256 {file.file.file.sha256}{revoked}")
    return None
