"""An answer over HTTP takes no more bytes and time than it may, whoever gives it."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from modelledger.audit_sources import StaticLog

from ledger.errors import Unreachable
from ledger.kit.bounded_http import BoundedConnection, Endless
from tests.authority import Authority
from tests.raw_answers import answering

LIMIT = 1_000


def ask(
    port: int, seconds: float = 30.0, times: int = 1, tls: ssl.SSLContext | None = None
) -> Sequence[tuple[int, bytes, bool]]:
    with closing(BoundedConnection("localhost", port, tls, seconds)) as connection:
        answers = [connection.ask("GET", "/", LIMIT, {}) for _ in range(times)]
    return [(answer.status, answer.body, answer.complete) for answer in answers]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
    ],
)
def test_answers_in_every_form(answer: bytes) -> None:
    with answering(answer) as port:
        assert ask(port) == [(200, b"abc", True)]


def test_a_connection_is_kept() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    sized = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno"
    with answering(chunked, sized, chunked) as port:
        assert ask(port, times=3) == [(200, b"abc", True), (404, b"no", True), (200, b"abc", True)]


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 500_000])
@pytest.mark.parametrize("head", [b"", b"content-length: %d\r\n", b"transfer-encoding: chunked\r\n"])
def test_no_more_is_read_than_may_be(size: int, head: bytes) -> None:
    body = b"x" * size
    if b"chunked" in head:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)
    with answering(b"HTTP/1.1 200 OK\r\n" + (head % size if b"%" in head else head) + b"\r\n" + body) as port:
        assert ask(port) == [(200, b"x" * min(size, LIMIT), size <= LIMIT)]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nabc",
        b"nonsense\r\n",
        b"",
    ],
)
def test_half_an_answer_is_none(answer: bytes) -> None:
    with answering(answer) as port, pytest.raises((OSError, http.client.HTTPException)):
        ask(port)


def test_a_chunk_of_negative_size_is_not_all_that_is_to_come() -> None:
    many = b"x" * 1_000_000
    with answering(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n", again=many) as port:
        assert ask(port) == [(200, b"x" * LIMIT, False)]


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_answer_that_goes_on_for_ever_is_cut(
    answer: bytes, again: bytes, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece of it comes at once."""
    monkeypatch.setattr("tests.services.test_bounded_http.LIMIT", 1 << 20)
    server, client = None, None
    if scheme == "https":
        authority = Authority(tmp_path)
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=authority.file)
        server.load_cert_chain(*authority.issue("server", None, "localhost"))
    with answering(answer, again=again, tls=server) as port, pytest.raises(Endless):
        ask(port, 1.0, tls=client)


def test_a_log_that_never_ends_its_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelledger.audit_sources.TIMEOUT", 0.3)
    never = pytest.raises(Unreachable, match="/checkpoint: the answer does not end")
    endless = answering(b"", again=b"HTTP/1.1 100 Continue\r\n\r\n")
    with endless as port, StaticLog(f"http://127.0.0.1:{port}") as log, never:
        log.checkpoint()
