"""A training process that acts a part: it speaks the protocol of trainer/run.py and trains nothing.

SCRIPT in its environment names the part. Its epochs are kept in the working folder, as the real one's checkpoints are.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ledger.kit.child import die_with_parent

EPOCHS = 6
PAUSES = {"slow": 0.4, "brisk": 0.1}  # seconds before an epoch


def main() -> None:
    die_with_parent()
    spec = json.loads(Path(sys.argv[1]).read_bytes())
    workdir, part = Path(spec["workdir"]), os.environ["SCRIPT"]
    if part == "long line":
        print(json.dumps({"type": "step", "text": "x" * (2 << 20)}), flush=True)
    elif part == "no message":
        print('{"type": "step", "loss": NaN}', flush=True)
    elif part == "half a line":
        print('{"type": "st', end="", flush=True)
        os.abort()
    elif part == "silent":
        time.sleep(3_600)
    else:
        epochs(workdir, PAUSES.get(part, 0.0))
        completed(spec, workdir, part)
        say(type="finished", completed=["tiny"], failed=[])


def epochs(workdir: Path, pause: float) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    done = workdir / "epochs"
    before = int(done.read_text()) if done.exists() else 0
    say(type="base_started", base="tiny", earlier_epochs=[epoch(number) for number in range(1, before + 1)])
    for number in range(before + 1, EPOCHS + 1):
        time.sleep(pause)
        done.write_text(str(number))
        say(type="epoch", **epoch(number))


def epoch(number: int) -> dict[str, Any]:
    return {"base": "tiny", "epoch": number, "epochs": EPOCHS, "train_loss": 1.0, "learning_rate": 0.1, "seconds": 0.1}


def completed(spec: dict[str, Any], workdir: Path, part: str) -> None:
    adapter = workdir / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_model.safetensors").write_text(f"{spec['run_id']} made in {workdir}")
    skipped = [{"line": line, "reason": "\u0001" * 1_000} for line in range(1, 101)] if part == "many skipped" else []
    say(
        type="base_completed",
        base="tiny",
        base_sha256="0" * 64 if part == "other base" else os.environ["BASE_SHA256"],
        dataset_sha256="0" * 64 if part == "other dataset" else Path(spec["dataset"]).name,
        adapter=str(adapter),
        epochs=EPOCHS,
        trainable_parameters=1,
        seconds=1.0,
        train_examples=1,
        validation_examples=1,
        skipped=skipped,
        skipped_lines=len(skipped),
        environment={},
    )


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
