"""The Ollama Modelfile beside a GGUF, and which file of a model folder is its licence. Pure: text in, text out.

https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ledger.errors import InvalidInput

Conversation = Sequence[tuple[str, str]]
"""(role, content) pairs."""

_SAMPLES: tuple[Conversation, ...] = (
    (("user", "A b?"),),
    (("system", "Be brief."), ("user", "A b?")),
    (("user", "A b?"), ("assistant", "C."), ("user", "D\ne")),
)

# ChatML, in the template language of Ollama (Go text/template).
_CHATML = """\
TEMPLATE \"\"\"{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\"
"""
_NO_TEMPLATE = """\
# No TEMPLATE: the model's chat template is not one that is known to say the same in Ollama's language.
# The original is inside the GGUF under tokenizer.chat_template.
"""
_LICENCE_STEMS = ("licence", "license", "copying", "unlicense")


def chatml(conversation: Conversation) -> str:
    """A conversation in ChatML, open for the assistant's answer."""
    turns = (f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in conversation)
    return "".join(turns) + "<|im_start|>assistant\n"


def is_chatml(render: Callable[[Conversation], str | None]) -> bool:
    """Whether a chat template writes ChatML; judged by what it writes, so its spelling does not matter.

    `render` gives the template's text for a conversation, or None when the template refuses it (some know
    no system role); at least the plain question must render.
    """
    texts = [render(sample) for sample in _SAMPLES]
    return texts[0] is not None and all(
        text in (None, chatml(sample)) for text, sample in zip(texts, _SAMPLES, strict=True)
    )


def render(gguf_name: str, model_name: str, *, chatml_template: bool, stops: Iterable[str]) -> str:
    """The Modelfile's text. Raises InvalidInput on a name or stop token that cannot be written down in it."""
    for name in (gguf_name, model_name):
        if not name or not name.isprintable():
            raise InvalidInput(f"{name!r} cannot stand in a Modelfile: empty, or control characters")
    lines = [f"# {model_name}\n", f"FROM ./{gguf_name}\n", _CHATML if chatml_template else _NO_TEMPLATE]
    lines += [f"PARAMETER stop {_quoted(stop)}\n" for stop in dict.fromkeys(stops)]
    return "".join(lines)


def licence_file(names: Iterable[str]) -> str | None:
    """The folder's licence by its usual names (LICENSE, LICENCE.md, COPYING, LICENSE-MIT ...), or None."""
    found = [name for name in names if name.lower().startswith(_LICENCE_STEMS) and not name.endswith(".json")]
    return min(found, key=lambda name: (len(name), name), default=None)


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"') or not text:
        raise InvalidInput(f"the stop token {text!r} cannot be written in a Modelfile")
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
