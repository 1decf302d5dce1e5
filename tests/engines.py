"""Questions for engines, and reading what they answer."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from inference.engine_client import Engine
from inference.generation import Done, Generation, Message, Piece

CONTEXT = 256
QUESTIONS = ("What is the capital of France?", "Who is the manager?", "What colour is a banana?", "Hello!")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def chat(question: str, max_tokens: int | None = 24) -> Generation:
    return Generation(messages=(Message("user", question),), max_tokens=max_tokens, temperature=0)


# With `endless_gguf`: runs until the context is full.
RAMBLING = Generation(prompt="Last summer", temperature=0)


async def ask(engine: Engine, request: Generation) -> tuple[str, Done]:
    return await collect(engine.generate(request))


async def collect(items: AsyncGenerator[Piece | Done, None]) -> tuple[str, Done]:
    text, done = "", None
    async with aclosing(items):
        async for item in items:
            assert done is None
            if isinstance(item, Done):
                done = item
            else:
                assert item.text
                text += item.text
    assert done
    return text, done
