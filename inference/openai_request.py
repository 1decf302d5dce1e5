"""Request bodies of the OpenAI API, checked field by field: a body -> a call, or an InvalidInput naming the field.

What this server does not do is refused, not ignored, unless the value asks for nothing (`n: 1`, `logprobs: false`,
`tools: []`). `null` counts as not given, as in the official clients. Types are checked here, bounds in
inference/generation.py. Fields: platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from inference.generation import Generation, Message
from ledger import strict_json
from ledger.errors import InvalidInput

COMPLETIONS_MAX_TOKENS = 16  # the default of /v1/completions
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_COMMON = {"model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "user"}
_CHAT = _COMMON | {"messages", "max_completion_tokens"}
_COMPLETIONS = _COMMON | {"prompt"}
# Known parameters this server cannot honour, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "store": (False,),
    "suffix": ("",),
}


@dataclass(frozen=True)
class GenerateCall:
    """One checked request. `model` None: the default model."""

    model: str | None
    caller: str
    generation: Generation


@dataclass(frozen=True)
class Delivery:
    """How the answer is wanted back."""

    stream: bool
    include_usage: bool


def parse_chat(body: bytes, caller: str) -> tuple[GenerateCall, Delivery]:
    """The body of /v1/chat/completions."""
    given = _given(body, _CHAT)
    if "max_completion_tokens" in given:
        if "max_tokens" in given:
            _refuse("max_tokens", "give max_completion_tokens or max_tokens, not both")
        given["max_tokens"] = given.pop("max_completion_tokens")
    return _call(given, caller, messages=_messages(given), prompt=None)


def parse_completion(body: bytes, caller: str) -> tuple[GenerateCall, Delivery]:
    """The body of /v1/completions."""
    given = {"max_tokens": COMPLETIONS_MAX_TOKENS, **_given(body, _COMPLETIONS)}
    return _call(given, caller, messages=None, prompt=_prompt(given))


def _given(body: bytes, known: set[str]) -> dict[str, Any]:
    try:
        document = strict_json.loads(body)
    except ValueError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput("the body must be a JSON object")
    given = {name: value for name, value in document.items() if value is not None}
    for name, value in given.items():
        if name in known or any(value == neutral for neutral in _NEUTRAL.get(name, ())):
            continue
        if name in _NEUTRAL:
            _refuse(name, f"{value!r} is not supported by this server", "unsupported_value")
        _refuse(name, "is not a parameter of this server", "unsupported_parameter")
    return given


def _call(
    given: dict[str, Any], caller: str, *, messages: tuple[Message, ...] | None, prompt: str | None
) -> tuple[GenerateCall, Delivery]:
    model = _typed(given, "model", (str,), None)
    if model == "":
        _refuse("model", "must not be empty")
    _typed(given, "user", (str,), None)
    generation = Generation(
        messages=messages,
        prompt=prompt,
        max_tokens=_typed(given, "max_tokens", (int,), None),
        temperature=_typed(given, "temperature", (int, float), 1.0),
        top_p=_typed(given, "top_p", (int, float), 1.0),
        seed=_typed(given, "seed", (int,), None),
        stop=_stop(given),
    )
    return GenerateCall(model, caller, generation), _delivery(given)


def _messages(given: dict[str, Any]) -> tuple[Message, ...]:
    messages = _typed(given, "messages", (list,), [])
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        _refuse(where, "must be an object with role and content")
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, []):
            _refuse(f"{where}.{name}", "is not supported by this server", "unsupported_parameter")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(f"{where}.role", f"{role!r} is not one of {', '.join(_ROLES)}")
    return Message(_ROLES[role], _content(message.get("content"), f"{where}.content"))


def _content(content: Any, where: str) -> str:
    """A string, or a list of text parts; other parts (images, audio) are refused."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        _refuse(where, "must be a string or a list of text parts")
    for index, part in enumerate(content):
        text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not text:
            _refuse(f"{where}[{index}]", 'must be {"type": "text", "text": "..."}', "unsupported_value")
    return "".join(part["text"] for part in content)


def _prompt(given: dict[str, Any]) -> str:
    prompt = given.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        _refuse("prompt", "must be one string; several prompts or token ids are not supported")
    return prompt


def _stop(given: dict[str, Any]) -> tuple[str, ...]:
    stop = _typed(given, "stop", (str, list), [])
    stops = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(text, str) for text in stops):
        _refuse("stop", "must be a string or a list of strings")
    return tuple(stops)


def _delivery(given: dict[str, Any]) -> Delivery:
    stream = _typed(given, "stream", (bool,), False)
    options = _typed(given, "stream_options", (dict,), {})
    if options and not stream:
        _refuse("stream_options", "is only allowed with stream: true")
    for name, value in options.items():
        # Obfuscation pads chunks against traffic analysis; asking for none of it is what this server does.
        if name != "include_usage" and not (name == "include_obfuscation" and value is False):
            _refuse(f"stream_options.{name}", "is not supported by this server", "unsupported_parameter")
    return Delivery(stream, _typed(options, "include_usage", (bool,), False))


def _typed(given: dict[str, Any], name: str, kinds: tuple[type, ...], default: Any) -> Any:
    value = given.get(name, default)
    # Exact types: in Python, True is an int.
    if value is not default and type(value) not in kinds:
        words = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
        words |= {list: "a list", dict: "an object"}
        _refuse(name, f"must be {' or '.join(words[kind] for kind in kinds)}")
    return value


def _refuse(field: str, reason: str, code: str = "invalid_value") -> NoReturn:
    raise InvalidInput(f"{field}: {reason}", metadata={"field": field, "code": code})
