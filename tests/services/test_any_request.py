"""Whatever is asked of the web servers: an answer or a 4xx, never a 5xx, and nothing about what is inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mutations import changed
from tests.random_messages import texts
from tests.target import LEAKS, Target, bounded

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATHS = (
    "/checkpoint",
    "/tile/0/000",
    "/tile/0/000.p/5",
    "/tile/1/000.p/1",
    "/tile/63/x001/x234/067.p/255",
    "/tile/entries/000.p/20",
    "/v1/models",
    "/v1/models/acme/assistant",
    "/healthz",
)
QUESTIONS: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "acme/assistant",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}],
        "max_completion_tokens": 3,
        "temperature": 0.5,
        "top_p": 1,
        "seed": 7,
        "stop": ["."],
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    COMPLETIONS: {"model": "acme/assistant", "prompt": "Hello!", "max_tokens": 3, "n": 1, "logit_bias": {}},
}
FIELDS = sorted({*QUESTIONS[CHAT], *QUESTIONS[COMPLETIONS], "tools", "response_format", "user", "other"})
values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64 - 1, -(2**63), 1e308, -0.0])
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as client:
        yield client


def check(target: Target, response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert not LEAKS.search(response.text), response.text
        assert str(target.house.data) not in response.text


def at(address: str, path: bytes) -> httpx.URL:
    """These very bytes as the path; only what HTTP itself has no room for is left out."""
    return httpx.URL(f"http://{address}").copy_with(
        raw_path=b"/" + bytes(byte for byte in path.lstrip(b"/") if 32 < byte < 127 and byte != ord("#"))
    )


@bounded(100)
@given(
    service=st.sampled_from(["ledger", "inference"]),
    method=st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]),
    path=st.sampled_from(PATHS).flatmap(lambda path: changed(path.encode(), b"/tile/entries/x001/000.p/1%2e%2e%00%ff")),
)
def test_any_path(target: Target, client: httpx.Client, service: str, method: str, path: bytes) -> None:
    check(target, client.request(method, at(target.house.http[service], path)))


@bounded(100)
@given(path=st.sampled_from(sorted(QUESTIONS)), changes=st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))
def test_any_question(target: Target, client: httpx.Client, path: str, changes: dict[str, Any]) -> None:
    body = json.dumps({**QUESTIONS[path], **changes}).encode()
    check(target, client.post(f"http://{target.house.http['inference']}{path}", content=body))


@bounded(70)
@given(path=st.sampled_from(sorted(QUESTIONS)), data=st.data())
def test_any_body(target: Target, client: httpx.Client, path: str, data: st.DataObject) -> None:
    good = json.dumps(QUESTIONS[path]).encode()
    damaged = changed(good, b'{"messages":[[[[[[' + b"[" * 3_000)
    body = data.draw(damaged | values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50))
    response = client.post(f"http://{target.house.http['inference']}{path}", content=body)
    check(target, response)
    assert response.status_code >= 400  # no model is loaded here, so nothing can be answered
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@bounded(20)
@given(token=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(str.strip))
def test_any_authorization(target: Target, client: httpx.Client, token: str) -> None:
    headers = {"authorization": token, "content-type": token}
    check(target, client.get(f"http://{target.house.http['inference']}/v1/models", headers=headers))
