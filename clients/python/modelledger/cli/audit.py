"""`modelledger audit`: everything a log says, verified; by any way the log can be read."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ledger.errors import DamagedLog, InvalidInput, InvalidSignature, MissingCapability
from modelledger.cli.session import Command, Session, json_option, pass_session, print_facts, print_json

if TYPE_CHECKING:  # what an audit needs takes longer to import than `modelledger --help` may take
    from ledger.audit import Audited
    from ledger.audit_source import Source
    from ledger.trust import Trust

SHOWN = 20  # events that are not trusted, one line each
STATE = ".state"  # behind the name of the checkpoint's file
SQLITE = b"SQLite format 3\0"


def trust_option(command: Command) -> Command:
    return click.option(
        "--trust",
        "trusted",
        multiple=True,
        metavar="KEY|FILE",
        help="Key of the log that you trust.  [default: the key that the log names itself, which proves less]",
    )(command)


@click.command()
@click.argument("source", default="", metavar="[SOURCE]")
@trust_option
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Continue from the checkpoint in this file, and put the newest there when all is well.",
)
@click.option("--jobs", type=click.IntRange(0), default=0, help="Processes that verify.  [default: one for each core]")
@json_option
@pass_session
def audit(
    session: Session, source: str, trusted: tuple[str, ...], checkpoint: Path | None, jobs: int, as_json: bool
) -> None:
    """Verify a whole log: every signature, rule, hash and stored column.

    SOURCE is the address of static files (https://log.example), of a ledger (HOST:PORT), a database
    (sqlite:///log.db, postgresql+psycopg://…) or a backup file; the ledger of --server without it.

    With --checkpoint the log must continue the one in the file, and only what came since is read; what the rules must
    know of the rest is kept in FILE.state, without which everything is read again.

    Exit 1 with the position of the first thing that is wrong, or when an event is by a key or in a role that a trust
    file does not allow. Of the events read, those by keys that the log calls compromised are listed: it holds them
    rightly.
    """
    with _opened(source, session) as opened:
        audit_and_tell(opened, trusted, checkpoint, jobs, as_json)


def audit_and_tell(source: Source, trusted: tuple[str, ...], checkpoint: Path | None, jobs: int, as_json: bool) -> None:
    """Audit and print what was found; exit 1 when it is not sound."""
    from ledger.audit import claimed_key
    from ledger.trust import Trust, read_all

    trust = read_all(trusted) if trusted else None
    try:
        audited = _audit(source, trust or Trust((claimed_key(source),)), checkpoint, jobs)
    except (DamagedLog, InvalidSignature) as error:
        if not as_json:
            raise
        position = error.metadata.get("position", "checkpoint")
        print_json(
            {
                "valid": False,
                "position": int(position) if position.lstrip("-").isdigit() else position,
                "error": error.message,
            }
        )
        raise SystemExit(1) from None
    refused = _is_refused(audited)
    facts = {
        "origin": audited.origin,
        "events": audited.size,
        "since": audited.since,
        "root": audited.root.hex(),
        "streams": audited.streams,
        "artifacts": audited.artifacts,
        "actors": audited.actors,
    }
    if as_json:
        untrusted = [dataclasses.asdict(one) for one in audited.untrusted]
        print_json({"valid": not refused, **facts, "trusted": bool(trusted), "untrusted": untrusted})
    else:
        print_facts([(name, ", ".join(v) if isinstance(v, list) else str(v)) for name, v in facts.items()])
        for one in audited.untrusted[:SHOWN]:
            click.echo(f"NOT TRUSTED event {one.index}: {one.reason} ({one.detail})")
        if len(audited.untrusted) > SHOWN:
            click.echo(f"NOT TRUSTED: {len(audited.untrusted)} events in all; --json names every one")
        click.echo(_verdict(bool(trusted), refused))
    if refused:
        raise SystemExit(1)


def _is_refused(audited: Audited) -> bool:
    from ledger.verify_keys import UNPINNED

    return any(one.reason.startswith(UNPINNED) for one in audited.untrusted)


def _verdict(trusted: bool, refused: bool) -> str:
    if refused:
        return "NOT VALID: your trust file does not allow every signer"
    if trusted:
        return "VALID"
    return "VALID for the key this log handed out; pass --trust to check against a key you hold"


def _audit(source: Source, trust: Trust, checkpoint: Path | None, jobs: int) -> Audited:
    from ledger.audit import audit as audit_log
    from ledger.audit_state import AuditState
    from ledger.note import MAX_NOTE_SIZE
    from modelledger.cli.progress import counting_bar

    since = b""
    if checkpoint and checkpoint.exists():
        with checkpoint.open("rb") as file:
            since = file.read(MAX_NOTE_SIZE + 1)
        if not since:
            raise InvalidInput(f"{checkpoint}: is empty, and not the last checkpoint seen; remove it to begin anew")
    path = checkpoint.with_name(checkpoint.name + STATE) if checkpoint else None
    with AuditState(path, since) as state, counting_bar("verifying events") as progress:
        audited = audit_log(
            source, trust.verifiers(), since=since, state=state, trust=trust, jobs=jobs, progress=progress
        )
        if checkpoint and not _is_refused(audited):
            # The state first: a checkpoint without its state only costs time, the other way round it would not fit.
            state.save(audited.note)
            _replace(checkpoint, audited.note)
    return audited


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that at any moment there is the old one or the new one."""
    from ledger.kit.artifacts import sync_directory

    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
    sync_directory(path.parent)


@contextmanager
def _opened(source: str, session: Session) -> Iterator[Source]:
    from modelledger.audit_sources import RemoteLog, StaticLog

    scheme, separator, _ = source.partition("://")
    with contextlib.ExitStack() as stack:
        if separator and scheme in ("http", "https"):
            yield stack.enter_context(StaticLog(source, session.ca))
        elif separator or _begins_with(source, SQLITE):
            yield stack.enter_context(open_database(source if separator else f"sqlite:///{source}"))
        elif Path(source).is_file():
            from ledger.backup import Backup

            yield Backup(Path(source))
        elif source and not source.rpartition(":")[2].isdigit():
            raise InvalidInput(f"{source}: not a file, and not the address of a log or of a database")
        else:
            of_source = dataclasses.replace(session, server=source) if source else session
            stack.callback(of_source.close)
            yield RemoteLog(of_source.client, of_source.server)


def open_database(url: str) -> contextlib.AbstractContextManager[Source]:
    """A ledger's database. Raises MissingCapability where its libraries are not installed."""
    try:
        from ledger.whole_log import DatabaseLog
    except ImportError as error:
        raise MissingCapability(f"{error.name} is missing; run: pip install 'modelledger[ledger]'") from None
    return DatabaseLog(url)


def _begins_with(path: str, magic: bytes) -> bool:
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(magic)) == magic
