"""`modelledger subscriptions`: consumer groups, and the events that they set aside."""

from __future__ import annotations

from itertools import islice

import click

from modelledger.cli.session import (
    Session,
    flag,
    json_option,
    pass_session,
    plain,
    print_json,
    print_messages,
    print_table,
)


@click.group()
def subscriptions() -> None:
    """Consumer groups: list them, see what they parked, replay it."""


@subscriptions.command("list")
@json_option
@pass_session
def list_groups(session: Session, as_json: bool) -> None:
    """List the groups by name, and how far each is."""
    found = session.client.groups()
    if as_json:
        return print_messages(found)
    print_table(
        ["Group", "Events", "Behind", "Leased", "Waiting", "Parked", "Done", ""],
        [
            (
                group.name.rpartition("/")[2],
                f"{group.stream_prefix}* {', '.join(group.kinds)}".strip(),
                str(group.behind),
                str(group.leased),
                str(group.waiting),
                str(group.parked),
                str(group.acked),
                flag(bool(group.closed_reason), f"closed: {group.closed_reason}"),
            )
            for group in found
        ],
        empty="no groups yet; a program makes one: client.create_group(...)",
    )
    return None


@subscriptions.command()
@click.argument("group")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="At most this many.")
@json_option
@pass_session
def parked(session: Session, group: str, limit: int, as_json: bool) -> None:
    """List the events that GROUP set aside, oldest first, and why."""
    found = islice(session.client.parked(group), limit)
    if as_json:
        return print_messages(found)
    print_table(
        ["Event", "Stream", "Attempts", "Consumer", "Parked", "Reason"],
        [(str(one.index), one.stream, str(one.attempts), one.consumer, one.park_time, one.reason) for one in found],
        empty="nothing is parked",
    )
    return None


@subscriptions.command()
@click.argument("group")
@click.argument("events", nargs=-1, type=click.IntRange(0), metavar="[EVENT]...")
@json_option
@pass_session
def replay(session: Session, group: str, events: tuple[int, ...], as_json: bool) -> None:
    """Deliver parked events of GROUP again: these, or all of them. Exit 1 when some stay parked."""
    response = session.client.replay_parked(group, events)
    missing = sorted(set(events) - set(response.replayed)) if not response.left else []
    if as_json:
        print_json(plain(response))
    else:
        click.echo(f"{len(response.replayed)} events will be delivered again")
    if response.left:
        click.echo(f"{response.left} stay parked: the group takes no more at once; replay them later", err=True)
    for event in missing:
        click.echo(f"event {event} is not parked", err=True)
    if response.left or missing:
        raise SystemExit(1)
