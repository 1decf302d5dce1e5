"""Adapters into base weights, one tensor in memory at a time.

A shard's header is copied as it is and its tensors follow in file order: an untouched tensor byte for byte,
a touched one as W + scale * B @ A. For one adapter on a float32 base the file equals peft's
`merge_and_unload`. A chain is summed in float32 in order and rounded once. Runs in a child process only.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open

from ledger.errors import InvalidInput, MissingCapability
from quantizer import safetensors_header
from quantizer.adapter import Adapter
from quantizer.model_folder import shards
from quantizer.safetensors_header import Tensor

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt")
Progress = Callable[[int, int], None]


def merge(base: Path, adapters: Sequence[Adapter], out: Path, progress: Progress) -> Path:
    """Write the merged model to `out` (made anew); `progress(tensors done, tensors in all)`.

    Raises InvalidInput or MissingCapability when an adapter does not fit the base, before anything is written.
    """
    headers = [safetensors_header.read(shard) for shard in shards(base)]
    _check_fit(headers, adapters)
    out.mkdir()
    done, total = 0, sum(len(header.tensors) for header in headers)
    for header in headers:
        with (
            header.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as source,
            (out / header.path.name).open("wb") as target,
        ):
            target.write(source[: header.data])
            for name, tensor in header.tensors.items():
                deltas = [adapter for adapter in adapters if name in adapter.shapes]
                if deltas:
                    target.write(_merged(source, name, tensor, deltas))
                else:
                    _copy(source, tensor, target)
                done += 1
                progress(done, total)
            target.flush()
            os.fsync(target.fileno())
    # Loading and saving a tokenizer changes its bytes, so its files are copied, never re-saved.
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in COPIED_SUFFIXES:
            shutil.copyfile(path, out / path.name)
    return out


def _merged(source: mmap.mmap, name: str, tensor: Tensor, adapters: Sequence[Adapter]) -> memoryview:
    dtype = DTYPES[tensor.dtype]
    raw = bytearray(source[tensor.begin : tensor.end])
    weight = torch.frombuffer(raw, dtype=dtype).reshape(tensor.shape).float()
    for adapter in adapters:
        a, b = adapter.names(name)
        with safe_open(adapter.weights, "pt") as file:
            # In this order and not fused, so that the result has peft's rounding.
            weight += (file.get_tensor(b).float() @ file.get_tensor(a).float()) * adapter.scale
    weight = weight.to(dtype)
    if not torch.isfinite(weight).all():
        raise InvalidInput(f"{name}: merging gives NaN or infinite weights; the adapter is broken")
    return memoryview(weight.contiguous().view(torch.uint8).numpy()).cast("B")


def _copy(source: mmap.mmap, tensor: Tensor, target: BinaryIO) -> None:
    step = 16 << 20
    for begin in range(tensor.begin, tensor.end, step):
        target.write(source[begin : min(begin + step, tensor.end)])


def _check_fit(headers: Sequence[safetensors_header.Header], adapters: Sequence[Adapter]) -> None:
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    for adapter in adapters:
        for name, shape in adapter.shapes.items():
            if name not in tensors:
                raise MissingCapability(
                    f"{adapter.weights}: adapts {name!r}, which the base does not store (a tied output layer, "
                    "or another base); it cannot be merged"
                )
            if tensors[name].shape != shape:
                raise InvalidInput(
                    f"{adapter.weights}: {name} is {list(shape)} there and {list(tensors[name].shape)} in the "
                    "base; the adapter belongs to another base"
                )
            if tensors[name].dtype not in DTYPES:
                raise MissingCapability(
                    f"the base stores {name} as {tensors[name].dtype}; merge onto the unquantised base"
                )
