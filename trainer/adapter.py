"""LoRA adapter folders with one byte-exact form, so that equal training gives an equal digest.

PEFT writes sets in random order, the local path of the base model, and a README; none of that is a fact
about the adapter. What stays is `adapter_model.safetensors` and a canonical `adapter_config.json` whose
`base_model_name_or_path` is the base model's key.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ledger import strict_json
from ledger.errors import InvalidInput

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
# Lists that PEFT reads as sets.
_SETS = ("target_modules", "exclude_modules", "modules_to_save")


def canonicalise(folder: Path, base_key: str) -> None:
    """Bring a folder that PEFT has just written into that form, in place."""
    config = strict_json.loads((folder / CONFIG).read_bytes())
    config["base_model_name_or_path"] = base_key
    for name in _SETS:
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    (folder / CONFIG).write_bytes(strict_json.canonical(config))
    for path in folder.iterdir():
        if path.name not in (WEIGHTS, CONFIG):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            path.chmod(0o644)


def read_config(folder: Path, base_key: str) -> dict[str, Any]:
    """An adapter's configuration. Raises InvalidInput unless the folder is such an adapter for that base."""
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise InvalidInput(f"{folder} is no adapter: it has no {name}")
    if (folder / CONFIG).stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidInput(f"{folder / CONFIG} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        config: dict[str, Any] = strict_json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise InvalidInput(f"{folder / CONFIG}: {error}") from None
    named = config.get("base_model_name_or_path")
    if named != base_key:
        raise InvalidInput(f"{folder} was trained on {named!r}, not on {base_key!r}")
    return config
