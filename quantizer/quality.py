"""How far a quantised file's predictions are from the F16 file's, on held-out text, through llama.cpp itself.

Perplexity alone does not order the formats on small models; the mean Kullback-Leibler divergence
KL(F16 || quantised) over every position and the share of equal first choices do. Runs in a child process only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

WINDOW = 256
MAX_TOKENS = 4_096
MIN_TOKENS = 2


@dataclass(frozen=True)
class Quality:
    """Over `tokens` predicted tokens: perplexities, mean KL in nats, share of equal most likely tokens."""

    tokens: int
    perplexity: float
    original_perplexity: float
    mean_kl: float
    top1_agreement: float


def windows(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids in windows of at most WINDOW, each from one text; at most MAX_TOKENS in all."""
    cut = [list(ids[at : at + WINDOW]) for ids in texts for at in range(0, len(ids), WINDOW)]
    kept, total = [], 0
    for window in cut:
        if len(window) >= MIN_TOKENS and total + len(window) <= MAX_TOKENS:
            kept.append(window)
            total += len(window)
    return kept


def compare(original: Path, quantised: Path, held_out: Sequence[list[int]], threads: int) -> Quality:
    """Read every window with both files, one window's logits in memory at a time (window x vocabulary)."""
    surprise = original_surprise = divergence = 0.0
    agreed = tokens = 0
    pairs = zip(_predictions(original, held_out, threads), _predictions(quantised, held_out, threads), strict=True)
    for window, (theirs, ours) in zip(held_out, pairs, strict=True):
        positions, following = np.arange(len(window) - 1), window[1:]
        original_surprise -= float(theirs[positions, following].sum())
        surprise -= float(ours[positions, following].sum())
        divergence += float((np.exp(theirs) * (theirs - ours)).sum())
        agreed += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        tokens += len(following)
    return Quality(
        tokens=tokens,
        perplexity=float(np.exp(surprise / tokens)),
        original_perplexity=float(np.exp(original_surprise / tokens)),
        mean_kl=divergence / tokens,
        top1_agreement=agreed / tokens,
    )


def _predictions(gguf: Path, held_out: Sequence[list[int]], threads: int) -> Iterator[np.ndarray]:
    """Log-probabilities of each window's next tokens, [window - 1, vocabulary]."""
    llama = llama_cpp.Llama(
        str(gguf),
        n_ctx=WINDOW,
        n_batch=WINDOW,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )
    try:
        for window in held_out:
            llama.reset()
            llama.eval(window)
            logits = np.asarray(llama.scores[: len(window) - 1], dtype=np.float64)
            logits = logits - logits.max(-1, keepdims=True)
            yield logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    finally:
        llama.close()
