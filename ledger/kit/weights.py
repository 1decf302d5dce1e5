"""safetensors headers: how many parameters a folder's weights hold, and whether the files are whole.

Format: https://github.com/huggingface/safetensors#format. Only headers are read; a file is accepted when its
tensors cover the data section exactly, so a truncated or padded file is found without reading gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ledger import strict_json
from ledger.errors import InvalidBaseModel

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # the format's own limit
MAX_INDEX = 64 << 20

# Bits, because the newest types share bytes.
DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


def count_parameters(folder: Path) -> int:
    """Elements of all tensors of the model in `folder`. Raises InvalidBaseModel with the file and the reason."""
    index = folder / INDEX
    shards: Mapping[str, set[str] | None]
    if index.is_file():
        shards = _shards(index)
    elif (folder / SINGLE).is_file():
        shards = {SINGLE: None}
    elif any(folder.glob("*.safetensors")):
        raise InvalidBaseModel(f"{folder} has safetensors files but neither {SINGLE} nor {INDEX}")
    else:
        raise InvalidBaseModel(f"{folder} has no safetensors weights")
    total = 0
    for name, listed in sorted(shards.items()):
        tensors = read_header(folder / name)
        if listed is not None and not listed <= tensors.keys():
            missing = min(listed - tensors.keys())
            raise InvalidBaseModel(f"{folder / name} lacks the tensor {missing!r} that {INDEX} names")
        total += sum(tensors.values())
    if total == 0:
        raise InvalidBaseModel(f"{folder}: its weights hold no parameters")
    return total


def read_header(file: Path) -> dict[str, int]:
    """Tensor name -> number of elements. Raises InvalidBaseModel when the file is not whole."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, size - 8):
            raise InvalidBaseModel(f"{file} is truncated or no safetensors file ({size} bytes)")
        header = stream.read(length)
    if not header.startswith(b"{"):
        raise InvalidBaseModel(f"{file} is no safetensors file: its header is not a JSON object")
    try:
        value = strict_json.loads(header)
        tensors = {name: _span(name, entry) for name, entry in value.items() if name != "__metadata__"}
    except ValueError as error:
        raise InvalidBaseModel(f"{file}: header: {error}") from None
    position = 0
    for name, (begin, end, _) in sorted(tensors.items(), key=lambda item: item[1]):
        if begin != position:
            raise InvalidBaseModel(f"{file}: tensor {name!r} begins at byte {begin}, expected {position}")
        position = end
    data = size - 8 - length
    if position != data:
        what = "truncated" if data < position else "longer than its tensors"
        raise InvalidBaseModel(f"{file} is {what}: {data} bytes of data, its header describes {position}")
    return {name: elements for name, (_, _, elements) in tensors.items()}


def _span(name: str, entry: Any) -> tuple[int, int, int]:
    """(begin, end, elements) of a tensor, checked against its type and shape."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r}: shape and data_offsets must be lists of non-negative integers")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPE_BITS:
        raise ValueError(f"tensor {name!r} has the unknown type {entry['dtype']!r}")
    elements = math.prod(shape)
    if (offsets[1] - offsets[0]) * 8 != elements * DTYPE_BITS[entry["dtype"]]:
        raise ValueError(f"tensor {name!r}: {offsets[1] - offsets[0]} bytes do not fit its type and shape")
    return offsets[0], offsets[1], elements


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _shards(index: Path) -> dict[str, set[str]]:
    """Shard file name -> names of the tensors it must hold."""
    if index.stat().st_size > MAX_INDEX:
        raise InvalidBaseModel(f"{index} is larger than {MAX_INDEX} bytes")
    try:
        value = strict_json.loads(index.read_bytes())
    except ValueError as error:
        raise InvalidBaseModel(f"{index}: {error}") from None
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidBaseModel(f"{index} has no weight_map")
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise InvalidBaseModel(f"{index}: {tensor!r} is in {name!r}, which is no safetensors file name")
        shards.setdefault(name, set()).add(tensor)
    for name in sorted(shards):
        if not (index.parent / name).is_file():
            raise InvalidBaseModel(f"{index.parent} lacks {name}, which {INDEX} names; the download is incomplete")
    return shards
