"""The header of a GGUF file: its metadata and the stored type of every tensor, read without any weights.

    magic | version | tensor count | metadata count | key-value pairs | tensor descriptions | data
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

What a file contains is read back from the file: llama.cpp labels a file "Q4_K_M" even when every tensor
stayed F16.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ledger.errors import InvalidInput

MAX_TENSORS = 100_000
MAX_PAIRS = 10_000
MAX_STRING = 16 << 20
MAX_ITEMS = 4_000_000
MAX_DIMENSIONS = 4

# gguf_metadata_value_type: number -> struct format; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# ggml_type, as written in tensor descriptions.
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Name, shape as GGUF counts it (row length first), and stored type."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class Header:
    """Scalars, strings and arrays by key; tensors in file order."""

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]

    def histogram(self) -> dict[str, int]:
        """Stored type -> number of tensors."""
        return dict(sorted(Counter(tensor.type for tensor in self.tensors).items()))


def read(path: Path) -> Header:
    """Raises InvalidInput naming the file and the byte when it is not a whole GGUF header."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        if reader.bytes(4) != b"GGUF":
            raise InvalidInput(f"{path}: not a GGUF file")
        if (version := reader.number("I")) not in (2, 3):
            raise InvalidInput(f"{path}: GGUF version {version}; 2 and 3 are understood")
        tensors = reader.count(MAX_TENSORS, "tensors")
        pairs = reader.count(MAX_PAIRS, "metadata pairs")
        metadata = {reader.string(): reader.value(reader.number("I")) for _ in range(pairs)}
        return Header(metadata, tuple(reader.tensor() for _ in range(tensors)))


@dataclass(frozen=True)
class _Reader:
    path: Path
    file: BinaryIO

    def bytes(self, length: int) -> bytes:
        data = self.file.read(length)
        if len(data) != length:
            raise InvalidInput(f"{self.path}: ends inside its header at byte {self.file.tell()}")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.bytes(struct.calcsize("<" + code)))[0]

    def count(self, limit: int, what: str) -> int:
        count: int = self.number("Q")
        if count > limit:
            raise InvalidInput(f"{self.path}: byte {self.file.tell() - 8}: {count} {what}, at most {limit}")
        return count

    def string(self) -> str:
        data = self.bytes(self.count(MAX_STRING, "bytes of text"))
        return data.decode("utf-8", errors="surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.number("I"), self.count(MAX_ITEMS, "array items")
            if kind in SCALARS:
                size = struct.calcsize("<" + SCALARS[kind])
                return struct.unpack(f"<{count}{SCALARS[kind]}", self.bytes(count * size))
            if kind == STRING:
                return tuple(self.string() for _ in range(count))
        elif kind in SCALARS:
            return self.number(SCALARS[kind])
        raise InvalidInput(f"{self.path}: byte {self.file.tell() - 4}: unknown value type {kind}")

    def tensor(self) -> Tensor:
        name, dimensions = self.string(), self.number("I")
        if dimensions > MAX_DIMENSIONS:
            raise InvalidInput(f"{self.path}: {name}: {dimensions} dimensions, at most {MAX_DIMENSIONS}")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        kind, _offset = self.number("I"), self.number("Q")
        return Tensor(name, shape, TENSOR_TYPES.get(kind, f"type-{kind}"))
