"""The [trainer] section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ledger.errors import InvalidConfig
from ledger.kit.client import Calling
from ledger.kit.config import FALLBACK
from ledger.kit.keys import Signing
from ledger.kit.serve import Listening
from trainer.options import PROFILES


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Listening, Calling, Signing):
    """How the trainer process runs.

    data:        directory with keys/, artifacts/ and work/
    work:        folder of this worker alone; data/work/trainer when left out. Trainers that share a data directory, and
                 with it the runs, need one each
    bases:       folders that hold base model folders
    base_models: keys to train when a request names none (comma list; else the variable BASE_MODELS)
    profile:     "laptop" or "workstation"
    listen:      gRPC address when it runs on its own
    """

    data: Path = Path("data")
    work: Path | None = None
    bases: tuple[Path, ...] = ()
    base_models: str = field(default="", metadata={FALLBACK: "BASE_MODELS"})
    profile: str = "laptop"
    listen: str = "127.0.0.1:50052"

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise InvalidConfig(f"[trainer] profile: {self.profile!r} is not one of {', '.join(PROFILES)}")

    @property
    def work_folder(self) -> Path:
        return self.work or self.data / "work" / "trainer"
