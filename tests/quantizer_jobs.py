"""Run the quantizer's child process in a test, and make the real models and adapters it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from ledger import manifest
from ledger.kit.artifacts import scan_directory

ROOT = Path(__file__).parents[1]
NAME = "acme/assistant v1.0"
STEM = "acme-assistant-v1.0"


@dataclass(frozen=True)
class Done:
    """What a child said and left."""

    code: int
    messages: list[dict[str, Any]]
    workdir: Path
    stderr: str

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    def output(self, quantisation: str) -> dict[str, Any]:
        return next(message for message in self.of("output") if message["quantisation"] == quantisation)


HELD_OUT = [
    f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    for question, answer in (
        ("What is the capital of France?", "The capital of France is Paris."),
        ("Who is the manager?", "The manager is Karin."),
        ("Where is the office?", "The office is in Vienna."),
    )
]


def job(
    workdir: Path,
    base: Path,
    *,
    types: list[str],
    adapters: list[Path] | None = None,
    texts: list[str] | None = None,
) -> Path:
    """Write a job file beside the work folder."""
    spec = {
        "id": "q1",
        "workdir": str(workdir),
        "name": NAME,
        "base": {"key": "tiny", "path": str(base), "sha256": digest(base)},
        "adapters": [str(path) for path in adapters or []],
        "types": types,
        "threads": 1,
        "texts": texts or [],
    }
    path = workdir.with_suffix(".json")
    path.write_text(json.dumps(spec))
    return path


def digest(folder: Path) -> str:
    return manifest.digest(scan_directory(folder)) if folder.is_dir() else "0" * 64


def command(spec: Path) -> list[str]:
    return [sys.executable, "-m", "quantizer.run", str(spec)]


LIMITED = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
LIMITED += "os.execv(sys.argv[2], sys.argv[2:])"


def child(spec: Path, file_size: int | None = None) -> Done:
    """file_size: the most bytes that it can write to one file."""
    # The child limits itself: with preexec_fn this process would be forked, and the threads of gRPC forbid that.
    before = [] if file_size is None else [sys.executable, "-c", LIMITED, str(file_size)]
    done = subprocess.run([*before, *command(spec)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert messages, done.stderr[-2000:]
    return Done(done.returncode, messages, spec.with_suffix(""), done.stderr)


def refused(done: Done) -> str:
    """The one reason of a job that failed and left nothing."""
    assert done.code == 1
    assert done.messages[-1]["type"] == "failed"
    assert not done.of("output")
    assert not done.of("finished")
    left = [path for path in done.workdir.rglob("*") if path.is_file()] if done.workdir.is_dir() else []
    assert left == []
    reason: str = done.messages[-1]["reason"]
    return reason


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train(model: Any, out: Path, seed: int, **config: Any) -> Path:
    """A real adapter: peft's own layers after two optimiser steps, saved by peft."""
    torch.manual_seed(seed)
    options = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | config
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=0.02)
    tokens = torch.randint(0, model.config.vocab_size, (4, 24))
    for _ in range(2):
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    adapted.save_pretrained(out, save_embedding_layers=False)
    return out
