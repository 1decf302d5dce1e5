"""The [quantizer] section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ledger.kit.client import Calling
from ledger.kit.keys import Signing
from ledger.kit.serve import Listening


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig(Listening, Calling, Signing):
    """How the quantizer process runs.

    data:      directory with keys/, artifacts/ and work/
    work:      folder of this worker alone; data/work/quantizer when left out. Quantizers that share a data directory,
               and with it the quantisations, need one each
    bases:     folders that hold base model folders
    threads:   CPU threads of one quantisation
    listen:    gRPC address when it runs on its own
    """

    data: Path = Path("data")
    work: Path | None = None
    bases: tuple[Path, ...] = ()
    threads: int = 1
    listen: str = "127.0.0.1:50053"

    @property
    def work_folder(self) -> Path:
        return self.work or self.data / "work" / "quantizer"
