"""The keys that the ledger process itself signs with: the log's, and one for each role."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ledger.events import ROLES
from ledger.kit.keys import FileSigner, actor_signer, log_key
from ledger.note import LogSigner


def log_signer(keys: Path, origin: str) -> LogSigner:
    """The log's key in `keys`, made on first run, under `origin` or a name made from the key."""
    key = log_key(keys / "log.key")
    public = key.public_key().public_bytes_raw()
    return LogSigner(origin or f"modelledger.local/{hashlib.sha256(public).hexdigest()[:12]}", key)


def actor_signers(keys: Path) -> dict[str, FileSigner]:
    """One signing key per role, made on first run; an actor is called like its role."""
    return {role: actor_signer(keys / f"{role}.key") for role in ROLES}
