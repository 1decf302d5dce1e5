"""Which of llama.cpp's ways to split text a tokenizer.json uses, read from its exact structure.

llama.cpp knows a tokenizer by a hash over the token ids of a fixed text, so a newly trained vocabulary is never
in its table, however ordinary its pre-tokenizer. A structure equal in every field to one below splits text
the same way; anything else is refused, never guessed, and what is derived here is then proved by parity.py.
"""

from __future__ import annotations

from typing import Any

from ledger.errors import MissingCapability

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = _WORDS + r"\p{N}" + _REST
LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST


def derive(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for this tokenizer.json document. Raises MissingCapability when no structure is equal."""
    model = tokenizer.get("model") or {}
    splitter, normalizer = tokenizer.get("pre_tokenizer") or {}, tokenizer.get("normalizer")
    if model.get("type") == "BPE" and not model.get("byte_fallback"):
        if normalizer is None and _byte_level(splitter, use_regex=True):
            return "gpt-2"
        pattern = _split_pattern(splitter)
        if pattern == QWEN2 and normalizer in (None, {"type": "NFC"}):
            return "qwen2"
        if pattern == LLAMA3 and normalizer is None and model.get("ignore_merges"):
            return "llama-bpe"
    raise MissingCapability(
        f"llama.cpp has no pre-tokenizer for this tokenizer.json (model {model.get('type')!r}, pre_tokenizer "
        f"{splitter.get('type')!r}, normalizer {(normalizer or {}).get('type')!r}); use a base whose "
        "tokenizer is byte-level BPE of the GPT-2, Qwen2 or Llama 3 form"
    )


def _byte_level(step: dict[str, Any], *, use_regex: bool) -> bool:
    return (
        step.get("type") == "ByteLevel"
        and step.get("add_prefix_space") is False
        and step.get("use_regex", True) is use_regex
    )


def _split_pattern(splitter: dict[str, Any]) -> str | None:
    """The regular expression of Sequence[Split(isolated), ByteLevel without its own], else None."""
    steps = splitter.get("pretokenizers") or []
    if splitter.get("type") != "Sequence" or len(steps) != 2 or not _byte_level(steps[1], use_regex=False):
        return None
    split = steps[0]
    if split.get("type") != "Split" or split.get("behavior") != "Isolated" or split.get("invert"):
        return None
    pattern: str | None = (split.get("pattern") or {}).get("Regex")
    return pattern
