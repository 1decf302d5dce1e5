"""The header of a safetensors file: what tensors lie where, without reading any of them.

8 bytes little-endian length N | N bytes of JSON | the tensors' bytes, without holes
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger import strict_json
from ledger.errors import InvalidInput

# The format's own limit on the header is 100 MB.
MAX_HEADER_BYTES = 100_000_000
ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """dtype as the format spells it, shape, and the byte range [begin, end) counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """Tensors in file order; `data` is where the first tensor's bytes begin."""

    path: Path
    data: int
    tensors: dict[str, Tensor]


def read(path: Path) -> Header:
    """Raises InvalidInput, naming file and tensor, on anything that is not a whole safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise InvalidInput(f"{path}: not a safetensors file, or cut off inside its header")
            document = strict_json.loads(file.read(length))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInput(f"{path}: header: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput(f"{path}: header: not a JSON object")
    document.pop("__metadata__", None)
    data = 8 + length
    found = {name: _tensor(path, name, row, data) for name, row in document.items()}
    tensors = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = data
    for name, tensor in tensors.items():
        if tensor.begin != end:
            raise InvalidInput(f"{path}: {name}: begins at byte {tensor.begin}, the one before ends at {end}")
        end = tensor.end
    if end != size:
        raise InvalidInput(f"{path}: has {size} bytes, its header describes {end}; it is cut off or was changed")
    return Header(path, data, tensors)


def _tensor(path: Path, name: str, row: Any, data: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        if not whole or (end - begin) * 8 != math.prod(shape) * ITEM_BITS[dtype]:
            raise ValueError("its byte range does not fit its shape")
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: {name}: not a tensor description ({error})") from None
    return Tensor(dtype, shape, data + begin, data + end)
