"""F16 GGUF -> a smaller GGUF through libllama, and the proof of what became of each tensor.

`llama_model_quantize` answers only 0 or 1, leaves half a file behind on errors, and answers 0 when every row
length was unsuitable and nothing was quantised. So: temporary name, log lines for progress and reasons, and
the result's tensor types are read back before it gets its name. Runs in a child process only.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from ledger.errors import MissingCapability, Refused
from quantizer import gguf_header

FILE_TYPES = {
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q5_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}
UNQUANTISED = {"F32", "F16", "BF16"}
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_FALLBACK = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Quantised:
    """Stored types as counted in the file; `fallbacks`: tensors whose rows did not fit the type asked for."""

    tensor_types: dict[str, int]
    fallbacks: int


def quantise(source: Path, target: Path, type_name: str, threads: int, progress: Progress) -> Quantised:
    """Write `target`; the bytes do not depend on `threads`. `progress(tensors done, tensors in all)`.

    Raises Refused with llama.cpp's own words when it fails (disk full, damaged source) and
    MissingCapability when no tensor could be quantised. Nothing is left under either name then.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[type_name], threads
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def listen(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        line = text.decode(errors="replace")
        lines.append(line)
        if step := _STEP.match(line):
            progress(int(step[1]), int(step[2]))

    part = target.with_name(target.name + ".part")
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(part), ctypes.byref(parameters))
        log = "".join(lines)
        if code:
            words = " | ".join(line.strip() for line in log.splitlines()[-3:])
            raise Refused(
                f"llama.cpp could not write {type_name} to {target.parent} (free space? permissions?): {words}"
            )
        header = gguf_header.read(part)
        refuse_unquantised(header, type_name)
        part.rename(target)
    finally:
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        part.unlink(missing_ok=True)
    fallbacks = _FALLBACK.search(log)
    return Quantised(header.histogram(), int(fallbacks[1]) if fallbacks else 0)


def refuse_unquantised(header: gguf_header.Header, type_name: str) -> None:
    """Raises MissingCapability when every matrix kept its 16 or 32 bits."""
    matrices = [tensor for tensor in header.tensors if len(tensor.shape) > 1]
    if any(tensor.type not in UNQUANTISED for tensor in matrices):
        return
    example = f"{matrices[0].name} has rows of {matrices[0].shape[0]}" if matrices else "there is none"
    raise MissingCapability(
        f"{type_name}: no matrix of this model can be quantised ({example}); rows must divide by 256 for the K "
        "types and by 32 for Q8_0; ask for F16"
    )


@llama_cpp.llama_log_callback
def _SILENT(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:  # noqa: N802 - a C function pointer
    """After a run llama.cpp must not call into a callback that no longer exists."""
