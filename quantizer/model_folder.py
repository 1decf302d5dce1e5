"""A model folder as the quantizer wants it: safetensors shards, plain files, no code.

The converter loads tokenizers with `trust_remote_code=True`, so a folder that brings code must never reach it.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ledger import strict_json
from ledger.errors import InvalidBaseModel, MissingCapability

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_JSON_BYTES = 64 << 20


def check(folder: Path) -> None:
    """Raises InvalidBaseModel on code or pickles, MissingCapability on quantised weights."""
    if not folder.is_dir():
        raise InvalidBaseModel(f"{folder} is not a folder")
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py":
            raise InvalidBaseModel(f"{path}: a model folder must not hold code")
        if path.suffix in PICKLES:
            raise InvalidBaseModel(f"{path}: pickled weights can run code; use safetensors")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists() and "auto_map" in read_json(folder / name):
            raise InvalidBaseModel(f"{folder / name}: auto_map names code to run; such models are refused")
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise MissingCapability(f"{folder / 'config.json'}: the weights are quantised already; use the original model")
    shards(folder)


def shards(folder: Path) -> list[Path]:
    """The weight files, in name order: those of the index, else model.safetensors."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise InvalidBaseModel(f"{folder}: no model.safetensors and no model.safetensors.index.json")
        return [single]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidBaseModel(f"{index}: weight_map is missing or empty")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise InvalidBaseModel(f"{index}: {name!r} is not a plain safetensors file name")
        if not (folder / name).is_file():
            raise InvalidBaseModel(f"{index}: {name} is missing; the folder is incomplete")
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A bounded JSON object. Raises InvalidBaseModel naming the file and the place."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InvalidBaseModel(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        value = strict_json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidBaseModel(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidBaseModel(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise InvalidBaseModel(f"{path}: not a JSON object")
    return value
