"""`python -m ledger [CONFIG.toml]`: the ledger as a service of its own."""

from __future__ import annotations

from ledger.config import LedgerConfig
from ledger.kit.process import main, serve_section
from ledger.wiring import LedgerPart

if __name__ == "__main__":
    main(lambda: serve_section("ledger", LedgerConfig, LedgerPart))
