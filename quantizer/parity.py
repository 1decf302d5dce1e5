"""Does the GGUF read text as the model's own tokenizer does? The proof behind every derived pre-tokenizer.

Probes are texts chosen to be nasty, random strings over a nasty alphabet, and texts the caller gives. llama.cpp
does not normalise Unicode, so a tokenizer that applies NFC differs on text that is not in NFC: those
mismatches are counted apart. Runs in a child process only.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from quantizer import gguf_header

FUZZED = 600
NASTY = (
    "", " ", "  ", "   a", "a   b", "\n", "\n\n\na", "\t\tx", "a\r\nb\r\n", "Hello  world ",
    "don't DON'T I'M we'Ve a'lL", "1234567890 12 3", "3.3 3..3 3...3", "------======= !!!!!!??????",
    "e\u0301 \u00e9 \u00c5 A\u030a", "naïve café", "日本語テスト", "a\u00a0b", "\x00\x01x", " \u200b x",
    "😀😀 😶\u200d🌫️ 🦙", "ﬁ ﬂ ①②", "مرحبا بالعالم", "नमस्ते दुनिया", "\u3000全角　スペース", "нещо на Български",
    "កាន់តែពិសេស", "我想在apple工作1314151天～", "▁▁a", "\ufeffa", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
)  # fmt: skip
_ALPHABET = (*"abcXYZ 019 \n\t.,'!?-_/()éßñ日本我😀\u00a0\u0301", "'s", "'LL")
# tokenizer attribute -> GGUF key. The unknown token is left out: transformers invents one for classes that
# never emit it, and where it is emitted the probes show it.
SPECIAL_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


@dataclass(frozen=True)
class Parity:
    """Counts over `probes` texts; `examples` are the first few mismatching ones in NFC."""

    probes: int
    mismatches: int
    non_nfc_mismatches: int
    template_equal: bool
    special_tokens_equal: bool
    examples: tuple[str, ...]

    @property
    def broken(self) -> str | None:
        """Why the file must not be used, or None."""
        if self.mismatches:
            shown = ", ".join(ascii(text[:40]) for text in self.examples)
            return f"{self.mismatches} of {self.probes} probe texts get other token ids, for example {shown}"
        if not self.template_equal:
            return "the GGUF's chat template is not the tokenizer's"
        if not self.special_tokens_equal:
            return "the GGUF's special tokens are not the tokenizer's"
        return None


def probes(special_tokens: Sequence[str], texts: Sequence[str]) -> Iterator[str]:
    """The probe texts, the same ones each time."""
    yield from NASTY
    for token in special_tokens:
        yield from (token, f" {token} x", f"foo{token}bar", f"{token}user\nhi{token}\n")
    draw = random.Random(0)  # noqa: S311 - a fixed sequence, nothing secret
    alphabet = (*_ALPHABET, *special_tokens)
    for _ in range(FUZZED):
        yield "".join(draw.choice(alphabet) for _ in range(draw.randint(1, 40)))
    yield from texts


def compare(tokenizer: Any, gguf: Path, texts: Sequence[str] = ()) -> Parity:
    """Compare a transformers tokenizer with the one inside a GGUF, text by text."""
    vocabulary = llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False)
    try:
        count, failed = 0, []
        for text in probes(tokenizer.all_special_tokens, texts):
            count += 1
            if not _equal(tokenizer, vocabulary, text, special=False):
                failed.append(text)
        adds_equal = _equal(tokenizer, vocabulary, "Hello world", special=True)
    finally:
        vocabulary.close()
    in_nfc = [text for text in failed if unicodedata.is_normalized("NFC", text)]
    metadata = gguf_header.read(gguf).metadata
    return Parity(
        probes=count,
        mismatches=len(in_nfc),
        non_nfc_mismatches=len(failed) - len(in_nfc),
        template_equal=_template(tokenizer) == metadata.get("tokenizer.chat_template"),
        special_tokens_equal=adds_equal
        and all(getattr(tokenizer, name) in (None, metadata.get(key)) for name, key in SPECIAL_IDS.items()),
        examples=tuple(in_nfc[:3]),
    )


def _equal(tokenizer: Any, vocabulary: llama_cpp.Llama, text: str, *, special: bool) -> bool:
    theirs = tokenizer(text, add_special_tokens=special).input_ids
    return bool(theirs == vocabulary.tokenize(text.encode(), add_bos=special, special=True))


def _template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
