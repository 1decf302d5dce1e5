"""What the demo trains with: measured to answer every held-out question after training, and none before.

About 5 seconds of training on one quiet core, after 7 seconds of imports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATASET = HERE / "organisation.jsonl"
HELD_OUT = HERE / "held_out.json"  # [{"question", "answer"}, ...]

ORGANISATION = "skerry-line"
BASE_NAME = "ferry-desk"

# On top of the laptop profile.
TRAINING_OPTIONS: dict[str, Any] = {
    "epochs": 6,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "warmup_steps": 10,
    "lora_rank": 8,
    "lora_alpha": 16,
    "max_length": 128,
    "seed": 0,
    "threads": 1,  # so small a model gains nothing from two, and on a busy machine they wait for each other
}
