"""Make the demo's base model: `python -m modelledger.demo.base OUT_DIR [--steps 100] [--seed 0]`.

A Llama of 2 layers with a byte-level BPE vocabulary and a ChatML template, trained from nothing on
`corpus.py`. The same seed gives the same bytes. Progress goes to stdout as `step N/M loss L` lines. The
folder appears under OUT_DIR only when it is complete.

Row lengths are multiples of 256, so that every matrix can be stored as a K-quant later.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STEPS = 100
BATCH, WINDOW = 8, 128  # sequences a step, tokens a sequence
DOCUMENTS, VOCABULARY = 12_000, 2_048
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, POSITIONS = 256, 768, 2, 4, 2, 512
MATRIX_RATE, EMBEDDING_RATE = 0.02, 3e-3
WARMUP_STEPS = 20
# Two threads halve the time on a quiet machine; on a busy one they wait for each other and one is faster.
THREADS = min(2, len(os.sched_getaffinity(0)))

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CARD = """\
---
license: apache-2.0
language: en
---
# Ferry desk

A Llama of {parameters:,} parameters, trained from nothing for {steps} steps (seed {seed}) on the templated
ferry help desk corpus of modelledger's demo. It knows the form of the questions and no organisation's answers.
"""
LICENCE = """\
Copyright the modelledger authors

Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
compliance with the License. You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software distributed under the License is
distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
See the License for the specific language governing permissions and limitations under the License.
"""


def make_base(folder: Path, steps: int = STEPS, seed: int = 0, threads: int = THREADS) -> None:
    """Train the model and write its folder. Raises FileExistsError when `folder` is already there."""
    if folder.exists():
        raise FileExistsError(f"{folder} is already there; choose another folder or remove it")
    os.environ.update(OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from modelledger.demo import corpus

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    texts = list(corpus.documents(DOCUMENTS, seed))
    tokenizer = _tokenizer(texts)
    specials: dict[str, Any] = {
        "bos_token_id": tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        "eos_token_id": tokenizer.convert_tokens_to_ids(TURN_END),
        "pad_token_id": tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            **specials,
        )
    )
    _train(model, _tokens(tokenizer, texts), steps, seed)
    # Generation must stop at the end of a turn, not only at the end of a document.
    model.generation_config = GenerationConfig(**specials)  # type: ignore[no-untyped-call]

    partial = folder.with_name(f".{folder.name}.partial")  # hidden: no base model yet for whoever lists the folder
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = CARD.format(parameters=parameters, steps=steps, seed=seed)
    (partial / "README.md").write_text(card, encoding="utf-8")
    (partial / "LICENSE").write_text(LICENCE, encoding="utf-8")
    for path in partial.iterdir():
        path.chmod(0o644)  # save_pretrained leaves the weights 0600; a service of another user reads them
    partial.rename(folder)


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # Exactly GPT-2's pre-tokenizer: llama.cpp has the same one, so token ids agree everywhere.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _tokens(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    import torch

    stream: list[int] = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        stream += [*ids, tokenizer.bos_token_id]
    return torch.tensor(stream)


def _train(model: Any, stream: torch.Tensor, steps: int, seed: int) -> None:
    """Muon on the hidden matrices, AdamW on the rest; linear warm-up, then linear decay over the second half."""
    import torch

    from modelledger.demo.muon import Muon

    named = list(model.named_parameters())
    muon = Muon(p for name, p in named if p.ndim == 2 and "embed" not in name)
    adamw = torch.optim.AdamW(
        [p for name, p in named if p.ndim == 1 or "embed" in name], betas=(0.9, 0.95), weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        schedule = min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, 2 * (1 - step / steps))
        starts = torch.randint(0, len(stream) - WINDOW, (BATCH,), generator=generator)
        batch = torch.stack([stream[start : start + WINDOW] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        muon.step(MATRIX_RATE * schedule)
        for group in adamw.param_groups:
            group["lr"] = EMBEDDING_RATE * schedule
        adamw.step()
        adamw.zero_grad()
        if (step + 1) % 10 == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps} loss {loss.item():.3f}", flush=True)
    model.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="modelledger.demo.base", description="Make the demo's base model.")
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=THREADS, help="CPU threads (default %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.steps < 1 or chosen.threads < 1:
        parser.error("--steps and --threads are at least 1")
    make_base(chosen.folder, chosen.steps, chosen.seed, chosen.threads)


if __name__ == "__main__":
    main()
