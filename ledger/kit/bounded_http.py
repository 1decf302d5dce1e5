"""One HTTP request at a time to whoever is not trusted: what an answer may take, in bytes and in time, is bounded.

http.client bounds the wait for each piece only: headers, or `100 Continue`, may come for ever. And it takes a chunk
of negative size for all that is to come, whatever `read` is asked for; `read1` never holds more than a buffer.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message

_PIECE = 1 << 16


@dataclass(frozen=True)
class Answer:
    """status, headers and body; `complete` is False for a body that is longer than it may be, and cut off there."""

    status: int
    headers: Message
    body: bytes
    complete: bool


class Endless(OSError):
    """An answer that takes longer than it may, though it goes on."""


class BoundedConnection(http.client.HTTPConnection):
    """Kept open between requests. `seconds`: for a connection, and for each piece; twice that for a whole answer."""

    def __init__(self, host: str, port: int | None, tls: ssl.SSLContext | None, seconds: float) -> None:
        self.default_port = http.client.HTTPS_PORT if tls else http.client.HTTP_PORT
        super().__init__(host, port, timeout=seconds)
        self._seconds = seconds
        self._tls = tls
        self._connected: socket.socket | None = None  # also when http.client has left it to the answer alone

    def ask(self, method: str, path: str, limit: int, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
        """One request and its answer, of at most `limit` bytes.

        Raises Endless, another OSError, or http.client.HTTPException; the connection is closed then.
        """
        ended = threading.Event()
        timer = threading.Timer(2 * self._seconds, self._cut, [ended])
        timer.daemon = True
        timer.start()
        answer = None
        try:
            self.request(method, path, body, dict(headers))
            answer = _read(self.getresponse(), limit)
        except (OSError, http.client.HTTPException):
            if not ended.is_set():
                raise
        finally:
            timer.cancel()
            if answer is None or not answer.complete or ended.is_set():
                self.close()
        if answer is None or ended.is_set():
            raise Endless("the answer does not end")
        return answer

    def connect(self) -> None:
        self.sock = socket.create_connection((self.host, self.port), self._seconds)
        # As http.client's own does: the body follows the head at once.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)  # in `seconds` altogether
        self._connected = self.sock

    def _cut(self, ended: threading.Event) -> None:
        ended.set()
        if self._connected is not None:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                # Not the method of an SSLSocket, which takes it out of TLS under the thread that reads.
                socket.socket.shutdown(self._connected, socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, limit: int) -> Answer:
    data = bytearray()
    with response:
        while len(data) <= limit and (piece := response.read1(min(_PIECE, limit + 1 - len(data)))):
            data += piece
        if response.length and len(data) <= limit:
            raise http.client.IncompleteRead(bytes(data), response.length)
    return Answer(response.status, response.headers, bytes(data[:limit]), len(data) <= limit)
