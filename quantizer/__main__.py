"""`python -m quantizer [CONFIG.toml]`: the quantizer as a service of its own."""

from __future__ import annotations

from ledger.kit.process import main, serve_section
from quantizer.config import QuantizerConfig
from quantizer.wiring import QuantizerPart

if __name__ == "__main__":
    main(lambda: serve_section("quantizer", QuantizerConfig, QuantizerPart))
