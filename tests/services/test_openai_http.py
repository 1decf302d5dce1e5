"""The OpenAI API over HTTP: the official client, a real uvicorn, a real engine.

The backend here differs from the service's in one thing: names resolve through a table instead of the ledger.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn

from inference.generation import Done, Piece
from inference.openai_http import Answer, ModelCard, Provenance, create_app
from inference.openai_request import GenerateCall
from inference.pool import EnginePool
from inference.serving_config import EngineSettings
from ledger.errors import BY_REASON, InvalidSignature, NotFound, all_errors

TOKEN = "sk-acme"
MODEL, ENDLESS = "acme/support", "acme/endless"
HELLO = [{"role": "user", "content": "Hello!"}]
STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNAVAILABLE": 503,
}


class TableBackend:
    """`acme/support` is the model, `acme/endless` the same without an end.

    `slow/forever` never ends; `error/<reason>` fails before the first piece.
    """

    def __init__(self, **files: Path) -> None:
        self.files = {
            f"acme/{name}": (path, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files.items()
        }
        self.pool = EnginePool(lambda: EngineSettings(context=512, slots=2))
        self.left = threading.Event()
        self.calls: list[GenerateCall] = []

    async def identify(self, token: str | None) -> str:
        if token != TOKEN:
            raise InvalidSignature("send a bearer token this server knows")
        return "acme"

    async def models(self, caller: str) -> Sequence[ModelCard]:
        loaded = self.pool.loaded()
        return [ModelCard(name, 1_763_000_000, caller, sha256 in loaded) for name, (_, sha256) in self.files.items()]

    async def generate(self, call: GenerateCall) -> Answer:
        self.calls.append(call)
        name = call.model or MODEL
        if name in self.files:
            path, sha256 = self.files[name]
            provenance = Provenance(name, "v1.2", sha256, 42)
            return Answer(provenance, self.pool.generate(sha256, path, call.generation))
        if name == "slow/forever":
            return Answer(Provenance(name, "v1.0", "0" * 64, 1), self.forever())
        if name == "error/UNEXPECTED":
            raise RuntimeError("the secret detail")
        if name.startswith("error/"):
            raise BY_REASON[name.removeprefix("error/")]("what went wrong")
        raise NotFound(f"the model {name!r} does not exist or is not served")

    async def forever(self) -> AsyncGenerator[Piece | Done, None]:
        try:
            yield Piece("first")
            while True:
                await asyncio.sleep(0.01)
                yield Piece(" more")
        finally:
            self.left.set()


@pytest.fixture(scope="module")
def backend(tiny_gguf: Path, endless_gguf: Path) -> TableBackend:
    return TableBackend(support=tiny_gguf, endless=endless_gguf)


@pytest.fixture(scope="module")
def address(backend: TableBackend) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(backend), log_level="error"))

    async def serve() -> None:
        await server.serve(sockets=[listener])
        await backend.pool.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as client:
        yield client


def test_models_are_listed_and_found_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, ENDLESS]
    model = client.models.retrieve(MODEL)
    assert (model.id, model.owned_by, model.created, model.object) == (MODEL, "acme", 1_763_000_000, "model")
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("acme/other")
    assert missing.value.code == "model_not_found"


def test_a_chat_answer_says_what_made_it(client: openai.OpenAI, backend: TableBackend) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, temperature=0, max_tokens=12, user="someone"
    )
    answer = raw.parse()
    choice = answer.choices[0]
    assert (answer.object, answer.model, choice.message.role) == ("chat.completion", MODEL, "assistant")
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.modelledger == {
        "model": MODEL,
        "version": "v1.2",
        "sha256": backend.files[MODEL][1],
        "event_index": 42,
    }
    assert raw.headers["x-modelledger-version"] == "v1.2"
    assert raw.headers["x-modelledger-sha256"] == backend.files[MODEL][1]
    assert raw.headers["x-modelledger-event"] == "42"
    assert backend.calls[-1].caller == "acme"


def test_a_stream_says_the_same_as_a_whole_answer(client: openai.OpenAI) -> None:
    request = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_completion_tokens": 20}
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    *pieces, last, usage = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.modelledger["version"] == "v1.2"
    assert usage.choices == []
    assert usage.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_completions_seed_and_stop(client: openai.OpenAI) -> None:
    request = {"model": MODEL, "prompt": "Last summer", "temperature": 2.0, "seed": 5, "max_tokens": 40}
    first, again = (client.completions.create(**request) for _ in range(2))
    text = first.choices[0].text
    assert text == again.choices[0].text
    assert first.object == "text_completion"
    stop = text[10:14]
    cut = client.completions.create(**request, stop=[stop])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = client.completions.create(**request, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == cut.choices[0].text
    assert client.completions.create(model=MODEL, prompt=["Last summer"]).usage.completion_tokens <= 16


def test_the_bytes_of_a_stream_are_server_sent_events(http: httpx.Client) -> None:
    body = {"messages": HELLO, "stream": True, "max_tokens": 3, "temperature": 0}  # no model: the default
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-modelledger-event"] == "42"
    *events, end = response.text.split("\n\n")
    assert end == ""
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in chunks} == {MODEL}
    assert all("usage" not in chunk for chunk in chunks)


def test_an_unknown_model_is_404_and_never_the_default(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as error:
            client.chat.completions.create(model="acme/other", messages=HELLO, stream=stream)
        assert error.value.body == {
            "message": "the model 'acme/other' does not exist or is not served",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }


def test_without_a_known_token_nothing_is_answered(address: str) -> None:
    for headers in ({}, {"Authorization": "Bearer sk-other"}, {"Authorization": "Basic sk-acme"}):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
            response = httpx.request(method, address + path, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit_is_400(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=MODEL, prompt="hello " * 500, stream=stream)
    assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("chat/completions", {"n": 2}, "n"),
        ("chat/completions", {"tools": [{"type": "function"}]}, "tools"),
        ("chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("chat/completions", {"logprobs": True}, "logprobs"),
        ("chat/completions", {"frequency_penalty": 0.5}, "frequency_penalty"),
        ("chat/completions", {"no_such_parameter": 1}, "no_such_parameter"),
        ("chat/completions", {"temperature": 2.5}, "temperature"),
        ("chat/completions", {"temperature": "hot"}, "temperature"),
        ("chat/completions", {"top_p": -0.1}, "top_p"),
        ("chat/completions", {"max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"max_tokens": True}, "max_tokens"),
        ("chat/completions", {"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ("chat/completions", {"seed": 1.5}, "seed"),
        ("chat/completions", {"seed": -(1 << 63) - 1}, "seed"),
        ("chat/completions", {"stop": ["a"] * 17}, "stop"),
        ("chat/completions", {"stop": [""]}, "stop"),
        ("chat/completions", {"stop": [1]}, "stop"),
        ("chat/completions", {"stream": "yes"}, "stream"),
        ("chat/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("chat/completions", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ("chat/completions", {"model": 7}, "model"),
        ("chat/completions", {"model": ""}, "model"),
        ("chat/completions", {"messages": None}, "messages"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": "Hello"}, "messages"),
        ("chat/completions", {"messages": ["Hello"]}, "messages[0]"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("chat/completions", {"messages": [*HELLO, {"role": "user", "content": "x", "name": "y"}]}, "messages[1].name"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ("completions", {"messages": HELLO}, "messages"),
        ("completions", {"prompt": None}, "prompt"),
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": [1, 2]}, "prompt"),
        ("completions", {"prompt": "a", "echo": True}, "echo"),
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    http: httpx.Client, path: str, change: dict[str, object], param: str
) -> None:
    body = {"messages": HELLO, **change} if path.startswith("chat") else change
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]


def test_what_asks_for_nothing_is_accepted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]},
        ],
        n=1,
        logprobs=False,
        tools=[],
        presence_penalty=0,
        response_format={"type": "text"},
        temperature=0,
        max_tokens=1,
    )
    assert answer.usage.completion_tokens <= 1


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b'{"model": 1, "model": 2}', b'{"temperature": NaN}', b"\xff", b'{"prompt": "\\ud800"}'],
)
def test_a_malformed_body_is_400(http: httpx.Client, body: bytes) -> None:
    response = http.post("/v1/completions", content=body)
    assert response.status_code == 400
    assert "the body" in response.json()["error"]["message"]


def test_a_body_is_bounded_and_a_wrong_path_or_method_is_an_error_object(http: httpx.Client) -> None:
    assert http.post("/v1/completions", content=b" " * ((1 << 20) + 1)).status_code == 413
    for response, status in ((http.get("/v1/chat/completions"), 405), (http.get("/v2/models"), 404)):
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("error", list(all_errors()), ids=lambda error: error.reason)
def test_every_error_has_the_status_of_its_grpc_code(http: httpx.Client, error: type) -> None:
    response = http.post("/v1/completions", json={"model": f"error/{error.reason}", "prompt": "a"})
    assert response.status_code == STATUS[error.code]
    body = response.json()["error"]
    assert body["message"] == "what went wrong"
    assert body["code"] == ("model_not_found" if error is NotFound else error.reason.lower())


def test_an_unexpected_error_tells_only_an_id(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"model": "error/UNEXPECTED", "prompt": "a"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_generation(http: httpx.Client, backend: TableBackend, stream: bool) -> None:
    backend.left.clear()
    body = {"model": "slow/forever", "prompt": "a", "stream": stream}
    if stream:
        with http.stream("POST", "/v1/completions", json=body) as response:
            pieces = response.iter_bytes()  # kept: dropping the iterator closes the connection
            assert next(pieces)
            assert not backend.left.is_set()
    else:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/completions", json=body, timeout=2)  # it has begun by then
    assert backend.left.wait(30)


def test_an_engine_killed_in_mid_stream_is_an_error_event_and_the_next_answer_works(
    client: openai.OpenAI, backend: TableBackend
) -> None:
    request = {"model": ENDLESS, "prompt": "Last summer", "temperature": 0, "max_tokens": 500}
    whole = client.completions.create(**request)
    stream = iter(client.completions.create(**request, stream=True))
    next(stream)
    os.kill(backend.pool._engines[backend.files[ENDLESS][1]].engine.pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="SIGKILL") as error:
        list(stream)
    assert type(error.value) is openai.APIError  # not one of its children: the status had been 200
    assert error.value.code == "unreachable"
    assert client.completions.create(**request).choices == whole.choices
