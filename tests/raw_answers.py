"""A server that answers with the bytes it is given, however wrong they are."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress


@contextmanager
def answering(*answers: bytes, again: bytes = b"", tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that gives these answers on one connection; behind the last comes `again`, for ever."""
    over = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            with closing(tls.wrap_socket(connection, server_side=True) if tls else connection) as connection:
                for answer in answers:
                    connection.recv(10_000)
                    connection.sendall(answer)
                while again and not over.wait(0.01):
                    connection.sendall(again)

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            thread.join()
