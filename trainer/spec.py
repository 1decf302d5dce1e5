"""What a training child is told: one JSON file, read and checked before anything heavy is imported.

{"run_id": "run-20260102-030405", "workdir": folder, "dataset": file,
 "bases": [{"key": "qwen-2-5-7b", "path": folder, "adapters": [folder, ...]}],
 "options": {...}}                                      (options.py; `adapters` oldest first, may be empty)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger import strict_json
from ledger.errors import InvalidInput
from trainer import options

MAX_SPEC_BYTES = 1 << 20
MAX_BASES = 64
_KEY = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # what catalog.normalise makes; it becomes a folder's name


@dataclass(frozen=True)
class BaseSpec:
    """A base model to train and the adapters to merge into it first, oldest first."""

    key: str
    path: Path
    adapters: tuple[Path, ...]


@dataclass(frozen=True)
class Spec:
    """A training run to do; `document` is the JSON it was read from."""

    run_id: str
    workdir: Path
    bases: tuple[BaseSpec, ...]
    dataset: Path
    options: options.Options
    document: dict[str, Any]


def read_spec(path: Path) -> Spec:
    """Read and check SPEC.json. Raises InvalidInput, InvalidOption or OSError."""
    if path.stat().st_size > MAX_SPEC_BYTES:
        raise InvalidInput(f"{path} is larger than {MAX_SPEC_BYTES} bytes")
    try:
        document = strict_json.loads(path.read_bytes())
        fields = {"run_id", "workdir", "bases", "dataset", "options"}
        if not isinstance(document, dict) or set(document) != fields:
            raise ValueError(f"must be an object with exactly the fields {', '.join(sorted(fields))}")
        for name in ("run_id", "workdir", "dataset"):
            if not isinstance(document[name], str) or not document[name]:
                raise ValueError(f"{name}: must be text")
        if not isinstance(document["options"], dict):
            raise ValueError("options: must be an object")
        bases = document["bases"]
        if not isinstance(bases, list) or not 1 <= len(bases) <= MAX_BASES:
            raise ValueError(f"bases: must be a list of 1 to {MAX_BASES}")
        checked = tuple(_base(f"bases[{index}]", value) for index, value in enumerate(bases))
        if len({base.key for base in checked}) != len(checked):
            raise ValueError("bases: a key stands twice")
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}") from None
    return Spec(
        run_id=document["run_id"],
        workdir=Path(document["workdir"]),
        bases=checked,
        dataset=Path(document["dataset"]),
        options=options.from_mapping(document["options"]),
        document=document,
    )


def _base(where: str, value: Any) -> BaseSpec:
    if not isinstance(value, dict) or set(value) != {"key", "path", "adapters"}:
        raise ValueError(f"{where}: must be an object with key, path and adapters")
    key, path, adapters = value["key"], value["path"], value["adapters"]
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"{where}.key: {key!r} is not a normalised name")
    if not isinstance(path, str) or not path:
        raise ValueError(f"{where}.path: must be text")
    if not isinstance(adapters, list) or not all(isinstance(item, str) and item for item in adapters):
        raise ValueError(f"{where}.adapters: must be a list of folders")
    return BaseSpec(key, Path(path), tuple(Path(item) for item in adapters))
