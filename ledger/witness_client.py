"""A log's side of C2SP tlog-witness: one `POST /add-checkpoint`, with a bounded wait and a bounded answer."""

from __future__ import annotations

import http.client
import ssl
from urllib.parse import urlsplit

from ledger.add_checkpoint import SIZE_TYPE, parse_size
from ledger.errors import InvalidConfig, Refused, Unreachable
from ledger.kit.bounded_http import BoundedConnection

SECONDS = 10.0  # for a connection and for each piece; twice that for the whole answer
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
        connection = BoundedConnection(self._host, self._port, self._tls, SECONDS)
        headers = {"content-type": "text/plain; charset=utf-8", "connection": "close"}
        try:
            answer = connection.ask("POST", self._path, MAX_ANSWER, headers, body)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"it does not answer: {error or type(error).__name__}") from None
        finally:
            connection.close()
        if not answer.complete:
            raise Refused(f"its answer has more than {MAX_ANSWER} bytes")
        return answer.status, answer.headers.get("content-type", ""), answer.body
