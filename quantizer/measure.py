"""What merging and quantising did to the answers, measured against the model in float32 with transformers.

Runs in a child process only. A model that does not fit in memory as float32 is not measured, and its
figures are then absent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ledger.errors import Refused
from quantizer import safetensors_header
from quantizer.adapter import Adapter
from quantizer.hardware import available_memory
from quantizer.model_folder import shards

QUESTIONS = (
    "What is the capital of France?",
    "Who is the manager?",
    "Where is the office?",
    "What does a dog do?",
    "What is three plus four?",
    "Write one sentence about the sea.",
)
NEW_TOKENS = 16
MEMORY_SHARE = 0.7
"""Share of the available memory that a float32 copy of the model may take."""


@dataclass(frozen=True)
class MergeEffect:
    """Largest absolute logit differences: adapter applied beside the base against merged; base against merged."""

    max_abs_logit_difference: float
    max_abs_difference_from_base: float


def fits_in_memory(model: Path) -> bool:
    """Whether the model as float32 leaves room on this machine."""
    headers = [safetensors_header.read(shard) for shard in shards(model)]
    numbers = sum(math.prod(tensor.shape) for header in headers for tensor in header.tensors.values())
    return numbers * 4 < available_memory() * MEMORY_SHARE


def load(model: Path) -> Any:
    """The model in float32 (bfloat16 is 10-100 times slower on CPUs without units for it), for evaluation."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    return loaded.eval()


def prompts(tokenizer: Any, questions: Sequence[str] = QUESTIONS) -> list[list[int]]:
    """Token ids of each question, in the chat template where there is one."""
    if tokenizer.chat_template is None:
        return [tokenizer(question).input_ids for question in questions]
    rendered = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        for question in questions
    )
    return [tokenizer(text, add_special_tokens=False).input_ids for text in rendered]


def merge_effect(base: Path, merged: Any, adapters: Sequence[Adapter], ids: Sequence[list[int]]) -> MergeEffect | None:
    """Compare three models on the same prompts; None when the adapter's layers carry other names in memory."""
    model = load(base)
    modules = dict(model.named_modules())
    layers = [(adapter, name) for adapter in adapters for name in adapter.shapes]
    if any(name.removesuffix(".weight") not in modules for _, name in layers):
        return None
    plain = [_logits(model, prompt) for prompt in ids]
    for adapter, name in layers:
        modules[name.removesuffix(".weight")].register_forward_hook(_beside(adapter, name))
    adapted = [_logits(model, prompt) for prompt in ids]
    after = [_logits(merged, prompt) for prompt in ids]
    return MergeEffect(_largest(adapted, after), _largest(plain, after))


def greedy(model: Any, prompt: list[int], stop: set[int]) -> list[int]:
    """At most NEW_TOKENS most likely tokens, without the generation config's penalties."""
    answer: list[int] = []
    step, cache = torch.tensor([prompt]), None
    with torch.inference_mode():
        while len(answer) < NEW_TOKENS:
            output = model(input_ids=step, past_key_values=cache, use_cache=True)
            token, cache = int(output.logits[0, -1].argmax()), output.past_key_values
            answer.append(token)
            if token in stop:
                break
            step = torch.tensor([[token]])
    return answer


def greedy_gguf(gguf: Path, ids: Sequence[list[int]], stop: set[int], threads: int) -> list[list[int]]:
    """The same through llama.cpp. Raises Refused when the file does not load or says nothing."""
    window = max(map(len, ids)) + NEW_TOKENS + 8
    try:
        llama = llama_cpp.Llama(str(gguf), n_ctx=window, n_threads=threads, n_threads_batch=threads, verbose=False)
    except ValueError as error:
        raise Refused(f"{gguf.name}: llama.cpp does not load its own result: {error}") from None
    try:
        answers = []
        for prompt in ids:
            answer: list[int] = []
            for token in llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
                answer.append(token)
                if token in stop or len(answer) == NEW_TOKENS:
                    break
            answers.append(answer)
    finally:
        llama.close()
    if not all(answers):
        raise Refused(f"{gguf.name}: llama.cpp loads it but generates nothing")
    return answers


def _logits(model: Any, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([prompt])).logits[0]
    return logits


def _beside(adapter: Adapter, name: str) -> Any:
    a_name, b_name = adapter.names(name)
    with safe_open(adapter.weights, "pt") as file:
        a, b = file.get_tensor(a_name).float(), file.get_tensor(b_name).float()

    def add(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + (inputs[0] @ a.T @ b.T) * adapter.scale

    return add


def _largest(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))
