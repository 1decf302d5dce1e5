"""What a killed training run leaves behind, and what the next one may trust of it.

    <workdir>/run.json                      the run these files belong to; another run is refused
    <workdir>/<base>/checkpoints/checkpoint-<step>/   weights, optimiser, schedule, random state
    <workdir>/<base>/checkpoints/checkpoint-<step>/epochs.json   written last: the checkpoint is whole
    <workdir>/<base>/adapter/               the finished adapter
    <workdir>/<base>/completed.json         written last: the base is finished

A marker is written after everything it vouches for was flushed to disk, by a rename, so it never stands
beside half a result.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ledger import strict_json
from ledger.errors import Refused
from ledger.kit.artifacts import sync_directory

PREFIX = "checkpoint-"  # the name transformers' Trainer gives


def bind(workdir: Path, run: dict[str, Any]) -> None:
    """Make `workdir` this run's own. Raises Refused when it holds another run's files."""
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "run.json"
    if not file.exists():
        write_json(file, run)
    elif strict_json.loads(file.read_bytes()) != run:
        raise Refused(f"{workdir} holds another run's checkpoints (see {file}); give each run its own folder")


class BaseFolder:
    """One base model's part of the working folder."""

    def __init__(self, workdir: Path, key: str) -> None:
        self.path = workdir / key
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.merged = self.path / "merged"
        self._completed = self.path / "completed.json"

    def completed(self) -> dict[str, Any] | None:
        """The message of a base that is finished, or None."""
        if not self._completed.exists():
            return None
        message: dict[str, Any] = strict_json.loads(self._completed.read_bytes())
        return message

    def complete(self, message: dict[str, Any]) -> None:
        """Call when the adapter is in place. The checkpoints are not needed after that."""
        sync_tree(self.adapter)
        write_json(self._completed, message)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        shutil.rmtree(self.merged, ignore_errors=True)

    def latest(self) -> tuple[Path, list[dict[str, Any]]] | None:
        """The last whole checkpoint and the epoch messages up to it; anything half-written is removed."""
        whole = {}
        for checkpoint in self.checkpoints.glob(PREFIX + "*"):
            if (checkpoint / "epochs.json").exists():
                whole[int(checkpoint.name.removeprefix(PREFIX))] = checkpoint
            else:
                shutil.rmtree(checkpoint)
        if not whole:
            return None
        checkpoint = whole[max(whole)]
        return checkpoint, strict_json.loads((checkpoint / "epochs.json").read_bytes())

    def seal(self, step: int, epochs: list[dict[str, Any]]) -> None:
        """Vouch for the checkpoint just written at `step`, then drop the ones before it."""
        checkpoint = self.checkpoints / f"{PREFIX}{step}"
        sync_tree(checkpoint)
        write_json(checkpoint / "epochs.json", epochs)
        for older in self.checkpoints.glob(PREFIX + "*"):
            if older != checkpoint:
                shutil.rmtree(older)


def write_json(file: Path, value: Any) -> None:
    """All of it or nothing, and still there after a power cut."""
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(strict_json.canonical(value))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
    sync_directory(file.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file below `folder`, every directory, and the folder's own entry."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_directory(path)
    sync_directory(folder)
    sync_directory(folder.parent)
