"""What a quantisation job is asked to do: the child's one input file, read strictly.

    {"id": "...", "workdir": "/...", "name": "acme/assistant v1.0", "base": {"key": "...", "path": "/...",
     "sha256": "..."}, "adapters": ["/...", ...], "types": ["Q4_K_M", "F16"], "threads": 1, "texts": ["...", ...]}

`adapters` is the chain in order, empty to quantise the base itself. `texts` (optional) is held-out text of
the model's domain: tokenized both ways, and what the quantised files are compared with F16 on. Type LORA
makes a GGUF adapter of each adapter instead of merging it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger import strict_json
from ledger.errors import InvalidInput

QUANTISED = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
F16, LORA = "F16", "LORA"
TYPES = (*QUANTISED, F16, LORA)
MAX_SPEC_BYTES = 4 << 20
MAX_ADAPTERS = 64
MAX_NAME = 200
MAX_THREADS = 512
FIELDS = {"id", "workdir", "name", "base", "adapters", "types", "threads", "texts"}


@dataclass(frozen=True)
class Spec:
    """A checked job."""

    id: str
    workdir: Path
    name: str
    base_key: str
    base: Path
    base_sha256: str
    adapters: tuple[Path, ...]
    types: tuple[str, ...]
    threads: int
    texts: tuple[str, ...]


def load(path: Path) -> Spec:
    """Read a job file. Raises InvalidInput naming file and field."""
    try:
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise InvalidInput(f"{path}: larger than {MAX_SPEC_BYTES} bytes")
        return parse(strict_json.loads(path.read_bytes()))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}") from None


def parse(document: Any) -> Spec:
    """Check a job document. Raises ValueError naming the field."""
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    if unknown := set(document) - FIELDS:
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    base = document.get("base")
    if not isinstance(base, dict):
        raise ValueError("base: must be an object with key, path and sha256")
    types, adapters = _texts(document, "types"), _texts(document, "adapters")
    if not types or len(set(types)) != len(types) or set(types) - set(TYPES):
        raise ValueError(f"types: must be different ones of {', '.join(TYPES)}, found {', '.join(types)}")
    if len(adapters) > MAX_ADAPTERS:
        raise ValueError(f"adapters: at most {MAX_ADAPTERS}")
    if LORA in types and not adapters:
        raise ValueError("types: LORA needs at least one adapter")
    threads = document.get("threads", 1)
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads: must be 1 to {MAX_THREADS}, found {threads!r}")
    name = _text(document, "name")
    if len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"name: at most {MAX_NAME} printable characters")
    return Spec(
        id=_text(document, "id"),
        workdir=Path(_text(document, "workdir")),
        name=name,
        base_key=_text(base, "key"),
        base=Path(_text(base, "path")),
        base_sha256=_text(base, "sha256"),
        adapters=tuple(map(Path, adapters)),
        types=types,
        threads=threads,
        texts=_texts(document, "texts"),
    )


def _text(document: dict[str, Any], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field}: must be a non-empty string, found {value!r}")
    return value


def _texts(document: dict[str, Any], field: str) -> tuple[str, ...]:
    values = document.get(field, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{field}: must be a list of strings")
    return tuple(values)
