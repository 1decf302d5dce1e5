"""`modelledger actors`: who may sign events, and with which keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ledger.errors import NotFound
from ledger.events import ROLES
from modelledger.cli.session import (
    Command,
    Session,
    json_option,
    pass_session,
    plain,
    print_facts,
    print_json,
    print_messages,
    print_table,
    short,
)

if TYPE_CHECKING:
    from ledger.envelope import Signer
    from modelledger.ledger.v1 import actors_pb2


def _key(command: Command) -> Command:
    for option in (
        click.option("--ed25519", is_flag=True, help="Make an Ed25519 key when --key names no file yet, not P-256."),
        click.option(
            "--public-key",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Public key (PEM) of a key in a key service.",
        ),
        click.option(
            "--key", required=True, metavar="FILE|URI", help="The new key: a file, made when there is none, or a URI."
        ),
    ):
        command = option(command)
    return command


_reason = click.option("--reason", required=True, help="Why; recorded.")
_compromised = click.option(
    "--compromised-from",
    type=click.IntRange(1),  # 0 says on the wire that the key was not compromised
    metavar="INDEX",
    help="Others had the present key: verifiers trust no event of it from this index on. For all of its events: the "
    'index that `actors list` shows as "Valid from".',
)


@click.group()
def actors() -> None:
    """Who may sign events: list, enrol, give another key, revoke."""


@actors.command("list")
@json_option
@pass_session
def list_actors(session: Session, as_json: bool) -> None:
    """List actors and every key they ever had, with the indexes at which each counts."""
    found = session.client.actors()
    if as_json:
        return print_messages(found)
    print_table(
        ["Actor", "Role", "Key", "Algorithm", "Valid from", "Until", "Compromised from", "Reason"],
        [
            (
                actor.name.removeprefix("actors/"),
                actor.role,
                short(key.key_id),
                key.algorithm,
                str(key.enrolled_index),
                str(key.retired_index) if key.HasField("retired_index") else "",
                str(key.compromised_from) if key.HasField("compromised_from") else "",
                key.reason,
            )
            for actor in found
            for key in actor.keys
        ],
        empty="no actors",
    )
    return None


@actors.command()
@click.argument("actor")
@click.option("--role", required=True, type=click.Choice(ROLES), help="What it may write.")
@_key
@json_option
@pass_session
def enrol(
    session: Session, actor: str, role: str, key: str, public_key: Path | None, ed25519: bool, as_json: bool
) -> None:
    """Let a new actor sign events, or a revoked one with a new key."""
    _show(session.client.enrol_actor(actor, role, _signer(key, public_key, ed25519)), as_json)


@actors.command()
@click.argument("actor")
@_key
@_reason
@_compromised
@json_option
@pass_session
def rotate(
    session: Session,
    actor: str,
    key: str,
    public_key: Path | None,
    ed25519: bool,
    reason: str,
    compromised_from: int | None,
    as_json: bool,
) -> None:
    """Give an actor another key; the present one is refused from then on.

    Put the new key where the service's configuration names it, and restart the service.
    """
    client = session.client
    present = next((one for one in client.actors() if one.name.removeprefix("actors/") == actor), None)
    if present is None:
        raise NotFound(f"there is no actor {actor!r}; `modelledger actors list` shows them")
    signer = _signer(key, public_key, ed25519)
    _show(client.rotate_actor_key(present, signer, reason, compromised_from=compromised_from or 0), as_json)
    if not as_json:
        click.echo(f"put the new key where {actor}'s configuration names it, and restart its service", err=True)


@actors.command()
@click.argument("actor")
@_reason
@_compromised
@json_option
@pass_session
def revoke(session: Session, actor: str, reason: str, compromised_from: int | None, as_json: bool) -> None:
    """Forbid an actor to sign from now on. What it signed before stays valid, unless the key was compromised."""
    _show(session.client.revoke_actor(actor, reason, compromised_from=compromised_from or 0), as_json)


def _signer(key: str, public_key: Path | None, ed25519: bool) -> Signer:
    from ledger.kit import keys

    if ":" in key and not key.startswith("file:"):
        if public_key is None:
            raise click.UsageError("--key with a URI needs --public-key: the PEM file that says which key it is")
        return keys.open_signer(key, public_key, public_key)
    return keys.actor_signer(Path(key.removeprefix("file:")), ed25519=ed25519)


def _show(actor: actors_pb2.Actor, as_json: bool) -> None:
    if as_json:
        return print_json(plain(actor))
    facts = [("actor", actor.name.removeprefix("actors/")), ("role", actor.role)]
    for key in actor.keys[-1:-3:-1]:  # what is and what was
        until = f" to {key.retired_index}" if key.HasField("retired_index") else ""
        from_ = f", compromised from {key.compromised_from}" if key.HasField("compromised_from") else ""
        facts.append(("key", f"{key.key_id}, {key.algorithm}, valid from {key.enrolled_index}{until}{from_}"))
    return print_facts(facts)
