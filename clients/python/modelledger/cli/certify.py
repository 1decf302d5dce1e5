"""`modelledger certify`: a certificate and its bundle."""

from __future__ import annotations

from pathlib import Path

import click

from ledger.errors import ModelLedgerError
from modelledger.bundle_download import check_writable, prepare, save
from modelledger.cli.session import (
    Session,
    flag,
    json_option,
    pass_session,
    plain,
    print_facts,
    print_json,
    print_messages,
    print_table,
)


@click.command()
@click.argument("model", metavar="[ORG/MODEL]", default="")
@click.argument("version", default="latest")
@click.option("--out", type=click.Path(path_type=Path), help="Folder, or file.zip.  [default: the certificate's name]")
@click.option("--with-artifacts", is_flag=True, help="Put adapters and GGUF files into the bundle too.")
@click.option("--policy", default="", help="What evidence is asked for.  [default: default]")
@click.option("--category", "categories", multiple=True, help="Category of the data, for the fingerprint; repeatable.")
@click.option("--certificate", default="", metavar="ID", help="Download the bundle of an earlier certificate.")
@click.option("--list", "list_only", is_flag=True, help="List certificates, of MODEL or all.")
@click.option("--revoke", is_flag=True, help="Revoke --certificate.")
@click.option("--reason", default="", help="Why it is revoked; recorded.")
@json_option
@pass_session
def certify(
    session: Session,
    model: str,
    version: str,
    out: Path | None,
    with_artifacts: bool,
    policy: str,
    categories: tuple[str, ...],
    certificate: str,
    list_only: bool,
    revoke: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Issue a certificate for a version and download its bundle.

    VERSION is a number like v1.0, "active" or "latest". Exit 1 when evidence is missing; each missing item is named.
    """
    client = session.client
    if list_only:
        return _list(session, model, as_json)
    if bool(model) == bool(certificate):
        raise click.UsageError("name a model to certify, or --certificate ID to work with an earlier certificate")
    if revoke:
        if not certificate or not reason:
            raise click.UsageError("--revoke needs --certificate and --reason")
        issued = client.revoke_certificate(certificate, reason)
        return print_json(plain(issued)) if as_json else click.echo(f"{issued.name} is revoked")
    # A certificate is for ever, so what can go wrong goes wrong before it.
    if out:
        prepare(out)
    else:
        check_writable(Path())
    if certificate:
        issued = client.certificate(certificate)
    else:
        number = client.version(model, version).version
        issued = client.certify(model, number, policy=policy, categories=categories)
    out = out or Path(issued.record.certificate)
    try:
        paths = save(client.download_bundle(issued.name, include_artifacts=with_artifacts), out)
    except (ModelLedgerError, OSError):
        name = issued.record.certificate
        click.echo(f"{name} is issued; get its bundle: modelledger certify --certificate {name} --out PATH", err=True)
        raise
    if as_json:
        return print_json({**plain(issued), "bundle": str(out), "files": paths})
    record = issued.record
    print_facts(
        [
            ("certificate", record.certificate + flag(issued.revoked, ", revoked")),
            ("version", f"{record.org}/{record.model} {record.version}"),
            ("policy", record.policy),
            ("fingerprint", record.dna),
            ("evidence", f"{len(record.evidence)} events"),
            ("event", str(issued.event_index)),
            ("bundle", f"{out}, {len(paths)} files"),
        ]
    )
    click.echo(f"audit it: modelledger verify {out} --trust KEY    (KEY: modelledger log key)", err=True)
    return None


def _list(session: Session, model: str, as_json: bool) -> None:
    found = session.client.certificates(model)
    if as_json:
        return print_messages(found)
    print_table(
        ["Certificate", "Version", "", "Policy", "Fingerprint", "Issued"],
        [
            (
                one.record.certificate,
                f"{one.record.org}/{one.record.model} {one.record.version}",
                flag(one.revoked, "revoked"),
                one.record.policy,
                one.record.dna,
                one.issue_time,
            )
            for one in found
        ],
        empty="no certificates yet; issue one: modelledger certify ORG/MODEL",
    )
    return None
