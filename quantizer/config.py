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
    bases:     folders that hold base model folders
    threads:   CPU threads of one quantisation
    listen:    gRPC address when it runs on its own
    """

    data: Path = Path("data")
    bases: tuple[Path, ...] = ()
    threads: int = 1
    listen: str = "127.0.0.1:50053"
