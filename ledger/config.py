"""The [ledger] section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ledger.events import CERTIFICATION, LEDGER, REGISTRY
from ledger.kit.serve import Listening


@dataclass(frozen=True, kw_only=True)
class LedgerConfig(Listening):
    """How the ledger process runs.

    data:      directory of everything it keeps: keys/, artifacts/, log.db, log-views.db
    database:  SQLAlchemy URL; empty for SQLite at data/log.db
    listen:    gRPC address
    http:      address of the static reads
    origin:    name of the log; made from its key when empty
    key, registry_key, certification_key: where its three actors' keys are, see ledger/kit/keys.py
    administrators: callers who may enrol, rotate and revoke actors (comma list), for example "ops.example.com", as
               their certificates name them; when empty, whoever calls over the loopback interface and nobody else
    witnesses: tlog-policy file; every witness in it that has a URL is asked to cosign the log's checkpoints
    max_watchers:         streams of WatchEvents at the same time
    watch_stall_seconds:  how long one of them may take nothing before it is ended
    """

    data: Path = Path("data")
    database: str = ""
    listen: str = "127.0.0.1:50051"
    http: str = "127.0.0.1:8080"
    origin: str = ""
    key: str = ""
    registry_key: str = ""
    certification_key: str = ""
    administrators: tuple[str, ...] = ()
    witnesses: Path | None = None
    max_watchers: int = 256
    watch_stall_seconds: float = 60.0

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data / 'log.db'}"

    @property
    def actor_keys(self) -> dict[str, str]:
        """What is configured for the actors inside the ledger process."""
        return {LEDGER: self.key, REGISTRY: self.registry_key, CERTIFICATION: self.certification_key}

    @property
    def keys(self) -> Path:
        return self.data / "keys"

    @property
    def artifacts(self) -> Path:
        return self.data / "artifacts"
