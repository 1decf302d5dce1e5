"""The [inference] section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ledger.kit.client import Calling
from ledger.kit.keys import Signing
from ledger.kit.serve import Listening


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Listening, Calling, Signing):
    """How the inference process runs.

    data:      directory with keys/ and artifacts/
    serving:   file that lists the served models (inference/serving_config.py); empty for data/serving.toml
    listen:    gRPC address when it runs on its own
    http:      address of the OpenAI API
    """

    data: Path = Path("data")
    serving: str = ""
    listen: str = "127.0.0.1:50054"
    http: str = "127.0.0.1:8000"

    @property
    def serving_file(self) -> Path:
        return Path(self.serving).expanduser() if self.serving else self.data / "serving.toml"
