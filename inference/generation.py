"""The words of generation: what is asked (`Generation`), and what comes back (`Piece`, ..., `Piece`, `Done`).

A Generation that exists is within bounds, whoever made it: HTTP, gRPC or a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ledger.errors import InvalidInput

MAX_TOKENS = 1 << 20
MAX_MESSAGES = 1024
MAX_TEMPERATURE = 2.0
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Generation:
    """One request, with exactly one of `messages` and `prompt`. Raises InvalidInput; metadata `field` says which.

    `max_tokens` None: until the model ends or the context is full. `temperature` 0 is greedy. `top_k` None: all
    tokens. `seed` None: a random one; else any integer of 64 bits. `stop`: the answer ends before the first of these.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise _out_of_bounds("messages", "give either messages or a prompt")
        if self.messages is not None and not 1 <= len(self.messages) <= MAX_MESSAGES:
            raise _out_of_bounds("messages", f"must be 1 to {MAX_MESSAGES} messages")
        if self.prompt == "":
            raise _out_of_bounds("prompt", "must not be empty")
        if self.max_tokens is not None and not 1 <= self.max_tokens <= MAX_TOKENS:
            raise _out_of_bounds("max_tokens", f"must be 1 to {MAX_TOKENS}")
        # Written so that NaN fails.
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise _out_of_bounds("temperature", f"must be 0 to {MAX_TEMPERATURE:g}")
        if not 0 <= self.top_p <= 1:
            raise _out_of_bounds("top_p", "must be 0 to 1")
        if self.top_k is not None and not 1 <= self.top_k < 1 << 31:
            raise _out_of_bounds("top_k", "must be 1 or more")
        if self.seed is not None and not -(1 << 63) <= self.seed < 1 << 64:
            raise _out_of_bounds("seed", "must be an integer of 64 bits")
        if len(self.stop) > MAX_STOPS or not all(1 <= len(text) <= MAX_STOP_CHARACTERS for text in self.stop):
            raise _out_of_bounds("stop", f"must be up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters")


@dataclass(frozen=True)
class Piece:
    """Some more text of the answer: whole characters, never empty."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer. `seconds`: from arrival in the engine to the last token."""

    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    seconds: float


def _out_of_bounds(field: str, reason: str) -> InvalidInput:
    return InvalidInput(f"{field}: {reason}", metadata={"field": field, "code": "invalid_value"})
