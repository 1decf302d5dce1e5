"""Datasets: JSON Lines in, checked examples out, every refused line named by its number.

    {"prompt": ..., "completion": ...}
    {"instruction": ..., "input": ... (may be empty or absent), "output": ...}
    {"messages": [{"role": "system"|"user"|"assistant", "content": ...}, ...]}   the last one the assistant's

All three forms become the same `Example`: a conversation whose last message is the answer to learn. A
file in more than one form is allowed and its forms are listed. Length in tokens depends on the base model,
so the training child checks it and reports those lines by number too.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ledger import strict_json
from ledger.errors import InvalidDataset, NotFound

MAX_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 20
MAX_PROBLEMS = 1000  # of a hopeless file the first ones are enough; `Report.refused_lines` counts all

MINIMUM, GOOD, OPTIMAL = 50, 500, 2000

PROMPT_COMPLETION, INSTRUCTION, MESSAGES = "prompt_completion", "instruction", "messages"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """One conversation as (role, content) pairs, the last one the assistant's, and its one-based line."""

    messages: tuple[tuple[str, str], ...]
    line: int


@dataclass(frozen=True)
class Problem:
    """Why a line is no example. `field` is empty when the line as a whole is wrong."""

    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: " + (f"{self.field}: {self.reason}" if self.field else self.reason)


@dataclass(frozen=True)
class Report:
    """What a file holds. `sha256` and `size` are of the very bytes that were checked."""

    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]  # the first MAX_PROBLEMS of them
    refused_lines: int
    forms: tuple[str, ...]  # in order of first use
    band: str
    sha256: str
    size: int


class _Refused(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def check(
    path: Path, *, name: str = "the dataset", max_bytes: int = MAX_BYTES, max_line_bytes: int = MAX_LINE_BYTES
) -> Report:
    """Read and check a dataset file. Bad lines are reported; an unusable file raises InvalidDataset.

    `name` is what errors call it: the file may be a copy that its owner never saw.
    """
    if not path.is_file():
        raise NotFound(f"the file of {name} is not there")
    size = path.stat().st_size
    if size > max_bytes:
        raise InvalidDataset(f"{name} has {size} bytes, the limit is {max_bytes}; split it")
    examples: list[Example] = []
    problems: list[Problem] = []
    refused = 0
    forms: dict[str, None] = {}
    seen: dict[bytes, int] = {}
    hasher = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        for number, data, length in _lines(file, hasher, max_line_bytes):
            size += length
            if size > max_bytes:
                raise InvalidDataset(f"{name} grew beyond the limit of {max_bytes} bytes while it was read")
            if data is not None and not data.strip():
                continue
            try:
                if data is None:
                    raise _Refused("", f"{length} bytes long, the limit of a line is {max_line_bytes}")
                form, messages = _parse(data)
                fingerprint = hashlib.sha256(strict_json.canonical(messages)).digest()
                first = seen.setdefault(fingerprint, number)
                if first != number:
                    raise _Refused("", f"duplicate of line {first}")
            except _Refused as error:
                refused += 1
                if len(problems) < MAX_PROBLEMS:
                    problems.append(Problem(number, error.field, error.reason))
            else:
                forms.setdefault(form)
                examples.append(Example(messages, number))
    if not examples and not refused:
        raise InvalidDataset(f"{name} is empty; write one JSON object a line, {_FORMS_HELP}")
    return Report(
        tuple(examples), tuple(problems), refused, tuple(forms), band(len(examples)), hasher.hexdigest(), size
    )


def band(examples: int) -> str:
    """Readiness by the number of valid examples."""
    if examples < MINIMUM:
        return "not_ready"
    if examples < GOOD:
        return "minimum"
    return "good" if examples < OPTIMAL else "optimal"


def split(examples: Sequence[Example], fraction: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(training, held out): a fixed function of the arguments, both parts in file order.

    At least one example is held out when `fraction` is above zero and there are two; at least one trains.
    """
    if fraction <= 0 or len(examples) < 2:
        return tuple(examples), ()
    count = min(max(1, round(len(examples) * fraction)), len(examples) - 1)
    held = set(random.Random(seed).sample(range(len(examples)), count))  # noqa: S311 - a split, not a secret
    training = tuple(example for index, example in enumerate(examples) if index not in held)
    return training, tuple(examples[index] for index in sorted(held))


def _lines(file: BinaryIO, hasher: hashlib._Hash, max_line_bytes: int) -> Iterator[tuple[int, bytes | None, int]]:
    """(one-based number, bytes, length) of every line; None for the bytes of one over the limit."""
    number = 0
    while piece := file.readline(max_line_bytes + 1):
        number += 1
        hasher.update(piece)
        length = len(piece)
        if length <= max_line_bytes:
            yield number, piece, length
            continue
        # Read past the rest of it without holding it in memory.
        while not piece.endswith(b"\n") and (piece := file.readline(max_line_bytes + 1)):
            hasher.update(piece)
            length += len(piece)
        yield number, None, length


_FORMS_HELP = 'as {"prompt", "completion"}, {"instruction", "input", "output"} or {"messages": [{"role", "content"}]}'


def _parse(data: bytes) -> tuple[str, tuple[tuple[str, str], ...]]:
    try:
        value = strict_json.loads(data)
    except ValueError as error:
        raise _Refused("", str(error)) from None
    if not isinstance(value, dict):
        raise _Refused("", f"is not a JSON object, but {type(value).__name__}")
    # Other fields (an id, a source) are allowed: they carry nothing that is trained on.
    candidates = [form for form, keys in _KEYS.items() if keys & value.keys()]
    if not candidates:
        raise _Refused("", f"has none of the known forms; write it {_FORMS_HELP}")
    if len(candidates) > 1:
        raise _Refused("", f"mixes the forms {' and '.join(candidates)}; keep one")
    return candidates[0], _READ[candidates[0]](value)


def _prompt_completion(value: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return ("user", _text(value, "prompt")), ("assistant", _text(value, "completion"))


def _instruction(value: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    question = _text(value, "instruction")
    given = value.get("input", "")
    if not isinstance(given, str):
        raise _Refused("input", f"must be text, is {type(given).__name__}")
    if given.strip():
        question = f"{question}\n\n{given}"
    return ("user", question), ("assistant", _text(value, "output"))


def _messages(value: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    messages = value["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise _Refused("messages", "must be a list of at least two messages")
    result = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise _Refused(where, 'must be an object with "role" and "content"')
        if message["role"] not in _ROLES:
            raise _Refused(f"{where}.role", f"is {str(message['role'])[:40]!r}, must be one of {', '.join(_ROLES)}")
        result.append((message["role"], _text(message, "content", where + ".")))
    roles = [role for role, _ in result]
    dialogue = roles[1:] if roles[0] == "system" else roles
    # Chat templates render strict turns only; anything else fails there with a less helpful message.
    if dialogue != ["user", "assistant"] * (len(dialogue) // 2) or not dialogue:
        raise _Refused("messages", "must alternate user and assistant, after at most one system message")
    return tuple(result)


# Fields that tell a form ("input" and "output" alone would tell none).
_KEYS = {
    PROMPT_COMPLETION: {"prompt", "completion"},
    INSTRUCTION: {"instruction"},
    MESSAGES: {"messages"},
}
_READ = {PROMPT_COMPLETION: _prompt_completion, INSTRUCTION: _instruction, MESSAGES: _messages}


def _text(value: dict[str, Any], field: str, prefix: str = "") -> str:
    if field not in value:
        raise _Refused(prefix + field, "is missing")
    text = value[field]
    if not isinstance(text, str):
        raise _Refused(prefix + field, f"must be text, is {type(text).__name__}")
    if not text.strip():
        raise _Refused(prefix + field, "is empty")
    return text
