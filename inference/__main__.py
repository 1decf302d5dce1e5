"""`python -m inference [CONFIG.toml]`: inference as a service of its own."""

from __future__ import annotations

from inference.config import InferenceConfig
from inference.wiring import InferencePart
from ledger.kit.process import main, serve_section

if __name__ == "__main__":
    main(lambda: serve_section("inference", InferenceConfig, InferencePart))
