"""A witness as a process: everything it is lies in one directory.

    keys/witness.key    Ed25519, made on first run, mode 0600; belongs to this witness alone
    witness.vkey        its name and public key, for those who trust it
    witness.db          what it remembers

A witness that lost its memory but kept its key would cosign what contradicts its earlier cosignatures: it does not
start.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.errors import Damaged, InvalidConfig
from ledger.kit.keys import log_key
from ledger.kit.serve import Address, HttpServer
from ledger.note import Cosigner, MalformedKey, Verifier
from ledger.witness.app import create_app
from ledger.witness.state import State, remembers
from ledger.witness.witness import Witness


def open_witness(data: Path, name: str, logs: Sequence[Verifier]) -> tuple[Witness, State]:
    """The witness in `data`, made on first run. Raises InvalidConfig, UnsafeKeyFile, Damaged."""
    key, database = data / "keys" / "witness.key", data / "witness.db"
    if key.exists() and not remembers(database):
        raise Damaged(
            f"{database} is gone or empty, and with it what this witness has cosigned; restore it from a backup, or "
            f"remove {key} too and start as another witness"
        )
    data.mkdir(parents=True, exist_ok=True)
    # The memory before the key: a crash between the two leaves a witness that nobody knows yet.
    state = State(database)
    cosigner = _named(data / "witness.vkey", name, log_key(key))
    return Witness(cosigner, state, logs), state


async def serve(witness: Witness, state: State, address: Address, ready: Callable[[HttpServer], None]) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = HttpServer(create_app(witness), address)
    try:
        await server.start()
        ready(server)
        await stopped.wait()
        await server.stop()
    finally:
        state.close()


def _named(file: Path, name: str, key: Ed25519PrivateKey) -> Cosigner:
    """The cosigner under its name. A witness keeps the name it once had: others trust it by name and key."""
    public = key.public_key().public_bytes_raw()
    try:
        earlier = Verifier.parse(file.read_text().strip()) if file.exists() else None
        cosigner = Cosigner(
            name
            or (earlier.name if earlier else f"modelledger.local/witness-{hashlib.sha256(public).hexdigest()[:12]}"),
            key,
        )
        vkey = cosigner.vkey()
    except (MalformedKey, UnicodeDecodeError) as error:
        raise InvalidConfig(f"name of the witness: {error}") from None
    if earlier is None:
        temporary = file.with_suffix(".new")
        temporary.write_text(f"{vkey}\n")
        temporary.rename(file)
    elif earlier.vkey() != vkey:
        raise InvalidConfig(f"{file} says that this witness is {earlier.vkey()}, not {vkey}")
    return cosigner
