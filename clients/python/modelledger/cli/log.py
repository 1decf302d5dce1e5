"""`modelledger log`: the transparency log, read and proven on this side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import click

from ledger import envelope, statement, strict_json
from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.errors import DamagedLog, InvalidInput, InvalidSignature
from ledger.note import NoteError, Verifier
from ledger.proof_file import encode_proof, parse_proof, verify_proof
from ledger.trust import read_all
from ledger.verify_keys import UNPINNED
from modelledger.audit import audit
from modelledger.cli.session import Command, Session, json_option, pass_session, print_facts, print_json, print_table
from modelledger.client import Client
from modelledger.ledger.v1 import ledger_pb2

SHOWN = 20  # events that are not trusted, one line each


def _trust(command: Command) -> Command:
    return click.option(
        "--trust",
        "trusted",
        multiple=True,
        metavar="KEY|FILE",
        help="Key of the log that you trust.  [default: the key that the server names, which proves less]",
    )(command)


AUDIT = """Read the whole log and verify everything: the same as `log verify`.

Exit 1 with the position of the first thing that is wrong."""


@click.group()
def log() -> None:
    """The transparency log: read it, prove it, verify all of it."""


@log.command("list")
@click.option("--stream", default="", help="Only streams that begin with this, for example models/acme/.")
@click.option("--kind", "kinds", multiple=True, help="Only this kind of event; repeatable.")
@click.option("--from", "start", default=0, type=click.IntRange(0), help="Only from this index on.")
@click.option("--oldest", is_flag=True, help="Oldest first.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most this many.")
@json_option
@pass_session
def list_events(
    session: Session, stream: str, kinds: tuple[str, ...], start: int, oldest: bool, limit: int, as_json: bool
) -> None:
    """List events, newest first."""
    found = session.client.events(
        stream_prefix=stream, kinds=kinds, start_index=start, descending=not oldest, page_size=min(limit, 500)
    )
    events = [(event, _statement(event)) for event in islice(found, limit)]
    if as_json:
        return print_json([_plain(event) for event, _ in events])
    print_table(
        ["Index", "Time", "Kind", "Stream", "Actor"],
        [
            (str(event.index), read.time, read.kind, f"{read.stream}@{read.version}", read.actor)
            for event, read in events
        ],
        empty="no such events",
    )
    return None


@log.command()
@click.argument("event", metavar="INDEX|ID")
@click.option("--raw", is_flag=True, help="Print the DSSE envelope, byte for byte as it is in the log.")
@pass_session
def show(session: Session, event: str, raw: bool) -> None:
    """Print the in-toto statement of one event."""
    found = session.client.event(int(event) if event.isascii() and event.isdigit() else event)
    if raw:
        click.echo(found.envelope, nl=False)
    else:
        print_json(_plain(found))


@log.command()
@pass_session
def key(session: Session) -> None:
    """Print the log's verifier key, as --trust wants it. Hand it on by a way that the log does not control."""
    click.echo(session.client.checkpoint().vkey)


@log.command()
@click.option("--cosigned", is_flag=True, help="The newest one that a quorum of the ledger's witnesses has cosigned.")
@_trust
@json_option
@pass_session
def checkpoint(session: Session, cosigned: bool, trusted: tuple[str, ...], as_json: bool) -> None:
    """Print the newest signed checkpoint, verified."""
    client = session.client
    response = client.checkpoint(cosigned=cosigned)
    verified = _open(response.checkpoint, _verifiers(client, trusted))
    if as_json:
        return print_json(
            {
                "origin": verified.origin,
                "size": verified.size,
                "root": verified.root.hex(),
                "note": response.checkpoint.decode(),
            }
        )
    return click.echo(response.checkpoint.decode(), nl=False)


@log.command()
@click.argument("index", type=click.IntRange(0))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it here instead of to stdout.")
@_trust
@pass_session
def proof(session: Session, index: int, out: Path | None, trusted: tuple[str, ...]) -> None:
    """Write the C2SP tlog-proof of one event, after verifying it."""
    client = session.client
    verifiers = _verifiers(client, trusted)
    response = client.inclusion_proof(index)
    encoded = encode_proof(index, response.proof.hashes, response.checkpoint)
    origin = _open(response.checkpoint, verifiers).origin
    try:
        verify_proof(parse_proof(encoded), client.event(index).envelope, verifiers, origin)
    except NoteError as error:
        raise DamagedLog(f"the ledger's proof of event {index} does not hold: {error}") from None
    if out:
        out.write_bytes(encoded)
        click.echo(f"{out}: event {index} is in the log {origin}", err=True)
    else:
        click.echo(encoded, nl=False)


@log.command()
@_trust
@json_option
@pass_session
def verify(session: Session, trusted: tuple[str, ...], as_json: bool) -> None:
    """Read the whole log and verify everything: every signature, every rule, every hash, the signed root.

    Exit 1 with the position of the first thing that is wrong, or when an event is by a key or in a role that a trust
    file does not allow. Events by keys that the log calls compromised are listed: it holds them rightly.
    """
    client = session.client
    verifiers = _verifiers(client, trusted)
    # The checkpoint first: what is appended while we read lies behind it.
    verified = _open(client.checkpoint().checkpoint, verifiers)
    summary = audit((event.envelope for event in _first(client, verified.size)), verified, read_all(trusted))
    facts = {
        "origin": verified.origin,
        "events": verified.size,
        "root": verified.root.hex(),
        "streams": summary.streams,
        "artifacts": summary.artifacts,
        "actors": summary.actors,
    }
    refused = any(one.reason.startswith(UNPINNED) for one in summary.untrusted)
    if as_json:
        print_json({**facts, "trusted": bool(trusted), "untrusted": [asdict(one) for one in summary.untrusted]})
    else:
        print_facts([(name, ", ".join(v) if isinstance(v, list) else str(v)) for name, v in facts.items()])
        for one in summary.untrusted[:SHOWN]:
            click.echo(f"NOT TRUSTED event {one.index}: {one.reason} ({one.detail})")
        if len(summary.untrusted) > SHOWN:
            click.echo(f"NOT TRUSTED: {len(summary.untrusted)} events in all; --json names every one")
        click.echo(_verdict(bool(trusted), refused))
    if refused:
        raise SystemExit(1)


# What an auditor looks for has a name of its own: `modelledger audit`.
audit_command = click.Command("audit", callback=verify.callback, params=verify.params, help=AUDIT)


def _verdict(trusted: bool, refused: bool) -> str:
    if refused:
        return "NOT VALID: your trust file does not allow every signer"
    if trusted:
        return "VALID"
    return "VALID for the key this ledger handed out; pass --trust to check against a key you hold"


def _first(client: Client, size: int) -> Iterator[ledger_pb2.Event]:
    for position, event in enumerate(islice(client.events(), size)):
        if event.index != position:
            raise DamagedLog(f"event {position} is missing; the ledger sent event {event.index}")
        yield event


def _verifiers(client: Client, trusted: tuple[str, ...]) -> list[Verifier]:
    if not trusted:
        return [Verifier.parse(client.checkpoint().vkey)]
    return read_all(trusted).verifiers()


def _open(note: bytes, verifiers: list[Verifier]) -> Checkpoint:
    """Of the log that we trust, whatever the note calls itself. Raises InvalidSignature."""
    origin = note.partition(b"\n")[0].decode(errors="replace")
    if origin not in {verifier.name for verifier in verifiers}:
        raise InvalidSignature(f"the checkpoint is of log {origin!r}, which is not one you trust")
    try:
        return open_checkpoint(note, verifiers, origin)
    except NoteError as error:
        raise InvalidSignature(f"the ledger's checkpoint does not verify: {error}") from None


def _statement(event: ledger_pb2.Event) -> statement.Event:
    return statement.decode(envelope.parse(event.envelope).payload)


def _plain(event: ledger_pb2.Event) -> dict[str, object]:
    parsed = envelope.parse(event.envelope)
    try:
        read = strict_json.loads(parsed.payload)
    except ValueError as error:
        raise InvalidInput(f"event {event.index}: {error}") from None
    return {"index": event.index, "signedBy": [s.keyid for s in parsed.signatures], "statement": read}
