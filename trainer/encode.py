"""Examples to token ids with the base model's own tokenizer and chat template.

The prompt and the answer are tokenised apart, as they are when serving: there the model sees the tokens of
the prompt and adds its own. So training shows it exactly the boundary it will meet. A row that is too long
is never cut: it is skipped, and named by its line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ledger.errors import InvalidBaseModel
from trainer.dataset import Example

IGNORED = -100  # the label PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class Row:
    """Token ids of one conversation and its labels (IGNORED where no loss is taken), equally long."""

    input_ids: list[int]
    labels: list[int]
    line: int


@dataclass(frozen=True)
class Skipped:
    """A line that cannot be trained on with this base model and these options."""

    line: int
    reason: str


def encode(
    examples: Iterable[Example], tokenizer: Any, *, max_length: int, completion_only: bool
) -> tuple[list[Row], list[Skipped]]:
    """Rows in order, and what was too long. Raises InvalidBaseModel when the chat template is unusable."""
    if not tokenizer.chat_template:
        raise InvalidBaseModel(
            "the base model has no chat template; add chat_template.jinja to its folder, as its authors publish it"
        )
    rows, skipped = [], []
    for example in examples:
        prompt, answer = _render(example, tokenizer)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = prompt_ids + answer_ids
        if len(ids) > max_length:
            skipped.append(Skipped(example.line, f"{len(ids)} tokens long, the limit is {max_length}"))
            continue
        masked = [IGNORED] * len(prompt_ids) if completion_only else prompt_ids
        rows.append(Row(ids, masked + answer_ids, example.line))
    return rows, skipped


def _render(example: Example, tokenizer: Any) -> tuple[str, str]:
    """(prompt up to where the answer begins, answer with its end-of-turn mark)."""
    messages = [{"role": role, "content": content} for role, content in example.messages]
    try:
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # the template is the model author's program and may raise anything
        raise InvalidBaseModel(f"its chat template fails on line {example.line}: {error}") from error
    if not whole.startswith(prompt):
        raise InvalidBaseModel(
            f"its chat template changes the prompt once there is an answer (line {example.line}), "
            "so the model would be trained on text it never meets"
        )
    return prompt, whole[len(prompt) :]
