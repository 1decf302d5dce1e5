"""`python -m trainer [CONFIG.toml]`: the trainer as a service of its own."""

from __future__ import annotations

from ledger.kit.process import main, serve_section
from trainer.config import TrainerConfig
from trainer.wiring import TrainerPart

if __name__ == "__main__":
    main(lambda: serve_section("trainer", TrainerConfig, TrainerPart))
