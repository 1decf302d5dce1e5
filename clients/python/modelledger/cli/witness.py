"""`modelledger witness`: watch other people's logs, and say so under each checkpoint."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ledger.errors import MissingCapability

if TYPE_CHECKING:  # the witness needs more than the base install
    from ledger.kit.serve import HttpServer


@click.command()
@click.option("--listen", default="127.0.0.1:8090", show_default=True, metavar="HOST:PORT", help="Port 0 takes any.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default="witness",
    show_default=True,
    help="Its key and its memory; back up both together.",
)
@click.option("--log", "logs", multiple=True, required=True, metavar="KEY|FILE", help="Key of a log; repeatable.")
@click.option("--name", default="", help="Name of the witness, kept from then on.  [default: made from its key]")
@click.option("--tls-certificate", default="", metavar="FILE", help="PEM; needed to listen beyond this machine.")
@click.option("--tls-key", default="", metavar="FILE", help="Its private key (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as JSON.")
def witness(
    listen: str, data: Path, logs: tuple[str, ...], name: str, tls_certificate: str, tls_key: str, as_json: bool
) -> None:
    """Run a witness: cosign the checkpoints of logs that stay append-only.

    It speaks C2SP tlog-witness. The key is made on first run; hand the printed line `witness NAME KEY URL` to those who
    write policies. It answers until interrupted.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        from ledger.kit.serve import Address
        from ledger.note import Verifier
        from ledger.verify import read_trust
        from ledger.witness.serving import open_witness, serve
    except ModuleNotFoundError as error:
        raise MissingCapability(
            f"the witness is not installed here ({error.name} is missing); run: pip install 'modelledger[ledger]'"
        ) from None

    address = Address.parse(listen, "--listen", tls_certificate=tls_certificate, tls_key=tls_key)
    address.check()
    verifiers = [Verifier.parse(vkey) for text in logs for vkey in read_trust(text)]
    opened, state = open_witness(data, name, verifiers)
    vkey = opened.cosigner.vkey()

    def ready(server: HttpServer) -> None:
        scheme = "https" if tls_certificate else "http"
        url = f"{scheme}://{server.address.host}:{server.port}"
        if as_json:
            click.echo(json.dumps({"vkey": vkey, "url": url}))
        else:
            click.echo(f"witness {opened.cosigner.name} {vkey} {url}")
        sys.stdout.flush()

    asyncio.run(serve(opened, state, address, ready))
