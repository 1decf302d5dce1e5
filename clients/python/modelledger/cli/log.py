"""`modelledger log`: the transparency log, read and proven on this side."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import click

from ledger import envelope, statement, strict_json
from ledger.audit import open_trusted
from ledger.errors import DamagedLog, InvalidInput
from ledger.events import KINDS
from ledger.note import NoteError, Verifier
from ledger.proof_file import encode_proof, parse_proof, verify_proof
from ledger.trust import read_all
from modelledger.cli.audit import audit_and_tell, open_database, trust_option
from modelledger.cli.session import Session, json_option, pass_session, print_json, print_table, size_text
from modelledger.client import Client
from modelledger.ledger.v1 import ledger_pb2

_data = click.option(
    "--data", type=click.Path(file_okay=False, path_type=Path), help="The ledger's data directory: DATA/log.db."
)
_database = click.option("--database", default="", metavar="URL", help="The ledger's database, instead.")


@click.group()
def log() -> None:
    """The transparency log: read it, prove it, verify all of it."""


def _known(ctx: click.Context, parameter: click.Parameter, kinds: tuple[str, ...]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in KINDS:
            raise click.BadParameter(f"no event is of the kind {kind!r}; known are {', '.join(KINDS)}")
    return kinds


@log.command("list")
@click.option("--stream", default="", help="Only streams that begin with this, for example models/acme/.")
@click.option("--kind", "kinds", multiple=True, callback=_known, help="Only this kind of event; repeatable.")
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
@trust_option
@json_option
@pass_session
def checkpoint(session: Session, cosigned: bool, trusted: tuple[str, ...], as_json: bool) -> None:
    """Print the newest signed checkpoint, verified."""
    client = session.client
    response = client.checkpoint(cosigned=cosigned)
    verified = open_trusted(response.checkpoint, _verifiers(client, trusted), "the ledger")
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
@trust_option
@pass_session
def proof(session: Session, index: int, out: Path | None, trusted: tuple[str, ...]) -> None:
    """Write the C2SP tlog-proof of one event, after verifying it."""
    client = session.client
    verifiers = _verifiers(client, trusted)
    response = client.inclusion_proof(index)
    origin = open_trusted(response.checkpoint, verifiers, "the ledger").origin
    try:
        encoded = encode_proof(index, response.proof.hashes, response.checkpoint)
        verify_proof(parse_proof(encoded), client.event(index).envelope, verifiers, origin)
    except NoteError as error:
        raise DamagedLog(f"the ledger's proof of event {index} does not hold: {error}") from None
    if out:
        out.write_bytes(encoded)
        click.echo(f"{out}: event {index} is in the log {origin}", err=True)
    else:
        click.echo(encoded, nl=False)


@log.command()
@trust_option
@json_option
@pass_session
def verify(session: Session, trusted: tuple[str, ...], as_json: bool) -> None:
    """Read the whole log of the ledger and verify everything: `modelledger audit` without more ado.

    Exit 1 with the position of the first thing that is wrong, or when an event is by a key or in a role that a trust
    file does not allow. Events by keys that the log calls compromised are listed: it holds them rightly.
    """
    from modelledger.audit_sources import RemoteLog

    audit_and_tell(RemoteLog(session.client, session.server), trusted, None, 0, as_json)


@log.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_data
@_database
@json_option
def backup(file: Path, data: Path | None, database: str, as_json: bool) -> None:
    """Write the whole log into FILE, also while its ledger is running.

    One file for SQLite and PostgreSQL alike: entries, checkpoints and the log's verifier key. It holds no private keys:
    back DATA/keys up too, by a safer way.
    """
    from ledger.backup import back_up

    with open_database(_url(data, database)) as source:
        done = back_up(source, file)
    if as_json:
        return print_json({"file": str(file), **dataclasses.asdict(done)})
    return click.echo(f"{file}: {done.size} events of {done.origin}, {size_text(done.bytes)}")


@log.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_data
@_database
@click.option("--trust", "trusted", multiple=True, required=True, metavar="KEY|FILE", help="Key of the log you trust.")
@json_option
def restore(file: Path, data: Path | None, database: str, trusted: tuple[str, ...], as_json: bool) -> None:
    """Verify a backup, then write it into an empty database.

    All of it is audited before anything is written, and all of it is written or nothing. A database that holds a log
    is refused.
    """
    from ledger.restore import restore as restore_log
    from modelledger.cli.progress import counting_bar

    verifiers = read_all(trusted).verifiers()
    if data:
        data.mkdir(parents=True, exist_ok=True)
    with counting_bar("verifying events") as progress:
        audited = restore_log(file, _url(data, database), verifiers, progress)
    if as_json:
        return print_json({"origin": audited.origin, "events": audited.size, "root": audited.root.hex()})
    return click.echo(f"{audited.size} events of {audited.origin} restored and verified")


@log.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The ledger's data directory.",
)
@click.option("--database", default="", metavar="URL", help="The ledger's database, when it is not DATA/log.db.")
@json_option
def rebuild(data: Path, database: str, as_json: bool) -> None:
    """Forget the registry and read it out of the log again, to identical bytes.

    Also while the ledger runs; whoever reads the registry is told to retry meanwhile. Ctrl-C ends it: what was read so
    far counts, and the ledger goes on from there. Exit 1 with the index of an event that cannot be taken in.
    """
    from modelledger.cli.rebuild import rebuild_registry

    done, size = rebuild_registry(data, database or f"sqlite:///{data}/log.db")
    if as_json:
        print_json({"folded": done, "events": size})
    else:
        click.echo(f"registry: {done} of {size} events folded")
    if done < size:
        click.echo("interrupted: the ledger goes on from there, now if it runs, otherwise when it starts", err=True)
        raise SystemExit(130)


@log.command()
@click.option("--database", required=True, metavar="URL", help="The ledger's database, under the role that owns it.")
@click.option("--role", default="", help="PostgreSQL role that ledgers run under: it may append, and change nothing.")
@json_option
def migrate(database: str, role: str, as_json: bool) -> None:
    """Bring a ledger's database to the form that this version needs.

    A ledger does so itself when it starts, if its role may. With --role that role gets the rights a ledger needs, and
    loses all others on these tables: the log cannot be changed under it.
    """
    from ledger.privileges import migrate as migrate_database

    applied = migrate_database(database, role)
    if as_json:
        return print_json({"applied": applied, "role": role})
    click.echo(f"applied: {', '.join(applied)}" if applied else "nothing to migrate")
    if role:
        click.echo(f"{role} may read and append, and change nothing of the log")
    return None


def _url(data: Path | None, database: str) -> str:
    if (data is None) == (not database):
        raise click.UsageError("name the ledger's --data directory or its --database URL, one of them")
    return database or f"sqlite:///{data}/log.db"


def _verifiers(client: Client, trusted: tuple[str, ...]) -> list[Verifier]:
    if not trusted:
        try:
            return [Verifier.parse(client.checkpoint().vkey)]
        except NoteError as error:
            raise DamagedLog(f"the ledger hands out a key that is none: {error}") from None
    return read_all(trusted).verifiers()


def _statement(event: ledger_pb2.Event) -> statement.Event:
    return statement.decode(envelope.parse(event.envelope).payload)


def _plain(event: ledger_pb2.Event) -> dict[str, object]:
    parsed = envelope.parse(event.envelope)
    try:
        read = strict_json.loads(parsed.payload)
    except ValueError as error:
        raise InvalidInput(f"event {event.index}: {error}") from None
    return {"index": event.index, "signedBy": [s.keyid for s in parsed.signatures], "statement": read}
