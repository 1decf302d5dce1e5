"""A Modelfile says what the model says, or says that it does not know."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InvalidInput
from quantizer import modelfile

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The same text, written another way.
CHATML_AGAIN = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
OTHER = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


def renderer(template: str):
    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    compiled = jinja2.Environment(keep_trailing_newline=True, autoescape=False).from_string(  # noqa: S701
        template, globals={"raise_exception": refuse}
    )

    def render(conversation: modelfile.Conversation) -> str | None:
        messages = [{"role": role, "content": content} for role, content in conversation]
        try:
            return compiled.render(messages=messages, add_generation_prompt=True)
        except jinja2.TemplateError:
            return None

    return render


@pytest.mark.parametrize(
    ("template", "known"),
    [(CHATML, True), (CHATML_AGAIN, True), (NO_SYSTEM, True), (DEFAULT_SYSTEM, False), (OTHER, False)],
)
def test_chatml_is_known_by_what_it_writes(template: str, known: bool) -> None:
    assert modelfile.is_chatml(renderer(template)) is known


def test_a_template_that_refuses_everything_is_not_chatml() -> None:
    assert not modelfile.is_chatml(lambda conversation: None)


def test_a_known_template_is_written_and_an_unknown_one_is_said_to_be_missing() -> None:
    known = modelfile.render("a.gguf", "acme/a", chatml_template=True, stops=["<|im_end|>"])
    assert known.splitlines() == [
        "# acme/a",
        "FROM ./a.gguf",
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}',
        "{{ .Content }}<|im_end|>",
        "{{ end }}<|im_start|>assistant",
        '"""',
        'PARAMETER stop "<|im_end|>"',
    ]
    unknown = modelfile.render("a.gguf", "acme/a", chatml_template=False, stops=[])
    assert "# No TEMPLATE" in unknown
    assert not any(line.startswith("TEMPLATE") for line in unknown.splitlines())


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters='"\n'), min_size=1), max_size=4))
def test_every_stop_token_stands_once(stops: list[str]) -> None:
    text = modelfile.render("a.gguf", "a", chatml_template=True, stops=stops)
    found = [line.removeprefix("PARAMETER stop ") for line in text.split("\n") if "PARAMETER stop" in line]
    assert found == [f'"{stop}"' for stop in dict.fromkeys(stops)]


@pytest.mark.parametrize("stop", ["", 'a"""b', 'a"'])
def test_a_stop_token_that_cannot_be_written_is_refused(stop: str) -> None:
    with pytest.raises(InvalidInput, match="stop token"):
        modelfile.render("a.gguf", "a", chatml_template=True, stops=[stop])


@pytest.mark.parametrize("name", ["", "a\nFROM /etc/passwd", "a\x00b"])
def test_a_name_cannot_add_a_line(name: str) -> None:
    with pytest.raises(InvalidInput):
        modelfile.render("a.gguf", name, chatml_template=True, stops=[])
    with pytest.raises(InvalidInput):
        modelfile.render(name, "a", chatml_template=True, stops=[])


@pytest.mark.parametrize(
    ("names", "licence"),
    [
        (["config.json", "LICENSE"], "LICENSE"),
        (["LICENSE.md", "LICENSE"], "LICENSE"),
        (["licence.txt"], "licence.txt"),
        (["COPYING", "model.safetensors"], "COPYING"),
        (["README.md", "license.json"], None),
        ([], None),
    ],
)
def test_the_licence_is_found_by_its_usual_names(names: list[str], licence: str | None) -> None:
    assert modelfile.licence_file(names) == licence
    assert modelfile.licence_file(reversed(names)) == licence
