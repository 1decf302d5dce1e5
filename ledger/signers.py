"""The keys that the ledger process itself signs with: the log's, and one for each role."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ledger.envelope import Signer
from ledger.events import ROLES
from ledger.kit.keys import log_key, open_signer
from ledger.note import LogSigner


def log_signer(keys: Path, origin: str) -> LogSigner:
    """The log's key in `keys`, made on first run, under `origin` or a name made from the key."""
    key = log_key(keys / "log.key")
    public = key.public_key().public_bytes_raw()
    return LogSigner(origin or f"modelledger.local/{hashlib.sha256(public).hexdigest()[:12]}", key)


def actor_signers(keys: Path, configured: Mapping[str, str] = MappingProxyType({})) -> dict[str, Signer]:
    """One signing key per role, where it is configured to be, made on first run; an actor is called like its role."""
    return {role: open_signer(configured.get(role, ""), keys / f"{role}.key") for role in ROLES}
