"""A trainer's worker as a process of its own, whose training processes act a part.

Its one argument is JSON: ledger, data, work and bases as in the trainer's configuration; lease in seconds; the part
that its training processes act; base, the digest of the base model; watchful, whether it looks after its lease. It ends
at SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from ledger.kit import commands, hold, work
from trainer import worker
from trainer.config import TrainerConfig
from trainer.wiring import TrainerPart


async def main(settings: dict[str, Any]) -> None:
    def task(module: str, spec: dict[str, Any], folder: Path) -> work.Task:
        environment = {"SCRIPT": settings["part"], "BASE_SHA256": settings["base"]}
        return work.Task("tests.faults.scripted_training", spec, folder, environment)

    commands.LEASE = settings["lease"]
    work.AGAIN_AFTER = 0.2
    worker.Task = task  # type: ignore[misc, assignment]
    if not settings["watchful"]:
        hold.Hold._keep = lambda self: None  # type: ignore[method-assign]
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    part = TrainerPart(
        TrainerConfig(
            ledger=settings["ledger"],
            data=Path(settings["data"]),
            work=Path(settings["work"]),
            bases=(Path(settings["bases"]),),
        )
    )
    await part.start()
    await stopped.wait()
    await part.stop()
    await part.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
