"""The [trainer] section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ledger.kit.serve import Listening


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Listening):
    """How the trainer process runs.

    data:        directory with keys/, artifacts/ and work/
    bases:       folders that hold base model folders
    base_models: keys to train when a request names none (comma list in MODELLEDGER_TRAINER_BASE_MODELS)
    profile:     "laptop" or "workstation"
    ledger:      address of the ledger
    listen:      gRPC address when it runs on its own
    """

    data: Path = Path("data")
    bases: tuple[Path, ...] = ()
    base_models: str = ""
    profile: str = "laptop"
    ledger: str = "127.0.0.1:50051"
    ledger_ca: str = ""
    listen: str = "127.0.0.1:50052"
