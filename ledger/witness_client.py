"""A log's side of C2SP tlog-witness: one `POST /add-checkpoint`, with a bounded wait and a bounded answer."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from urllib.parse import urlsplit

from ledger.add_checkpoint import SIZE_TYPE, parse_size
from ledger.errors import InvalidConfig, Refused, Unreachable

SECONDS = 10.0  # for a connection and for each piece; twice that for the whole answer from its first byte on
MAX_ANSWER = 64 << 10


class WitnessClient:
    """One witness, by its submission prefix."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise InvalidConfig(f"URL of a witness: {url!r}: {error}") from None
        plain = url.isascii() and url.isprintable() and not set(url) & set(" ?#@")
        if parts.scheme not in ("http", "https") or not self._host or not plain:
            raise InvalidConfig(f"URL of a witness: {url!r} is not of the form http[s]://host[:port][/path]")
        self._path = f"{parts.path.rstrip('/')}/add-checkpoint"
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None

    def add_checkpoint(self, body: bytes) -> bytes | int:
        """Signature lines; or the size that the witness is at, when it is at another one than the request says.

        Raises Unreachable when there is no answer, Refused when there is another one.
        """
        status, kind, answer = self._post(body)
        if status == 200:
            return answer
        if status == 409 and kind == SIZE_TYPE:
            try:
                return parse_size(answer)
            except ValueError as error:
                raise Refused(f"it answered 409 without its size: {error}") from None
        told = answer[:200].decode(errors="replace").strip()
        raise Refused(f"it answered {status}{f': {told!r}' if told else ''}")

    def _post(self, body: bytes) -> tuple[int, str, bytes]:
        connection = _Connection(self._host, self._port, self._tls)
        try:
            connection.request("POST", self._path, body, {"content-type": "text/plain; charset=utf-8"})
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER + 1)
            if connection.is_cut:
                raise Unreachable("its answer does not end")
            if len(answer) > MAX_ANSWER:
                raise Refused(f"its answer has more than {MAX_ANSWER} bytes")
            return response.status, response.headers.get("content-type", ""), answer
        except (OSError, http.client.HTTPException) as error:
            if connection.is_cut:
                raise Unreachable("its answer does not end") from None
            raise Unreachable(f"it does not answer: {error or type(error).__name__}") from None
        finally:
            connection.end()


class _Connection(http.client.HTTPConnection):
    """One that is cut when its time is over.

    http.client bounds the wait for each piece only: headers, or `100 Continue`, may come for ever.
    """

    def __init__(self, host: str, port: int | None, tls: ssl.SSLContext | None) -> None:
        self.default_port = http.client.HTTPS_PORT if tls else http.client.HTTP_PORT
        super().__init__(host, port, timeout=SECONDS)
        self.is_cut = False
        self._tls = tls
        self._handle: socket.socket | None = None
        self._timer = threading.Timer(2 * SECONDS, self._cut)
        self._timer.daemon = True

    def connect(self) -> None:
        self.sock = socket.create_connection((self.host, self.port), self.timeout)
        self.sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # as http.client's own: the body follows at once
        self._handle = self.sock.dup()  # stays usable while the other becomes one of TLS
        self._timer.start()
        if self._tls:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)

    def end(self) -> None:
        """Not `close`, which http.client calls before the answer is read."""
        self.close()
        self._timer.cancel()
        if self._handle:
            self._handle.close()

    def _cut(self) -> None:
        self.is_cut = True
        if self._handle:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                self._handle.shutdown(socket.SHUT_RDWR)
