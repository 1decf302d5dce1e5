"""Appending many requests over one call, each without waiting for the answer to the one before.

    for result in client.append_stream([entry] for entry in entries):
        if isinstance(result, ModelLedgerError):
            print(result.message)                          # this one was refused; the others go on

The answers come in the order of the requests, and a request may build on an earlier one that is not answered yet.
Whatever ends the call early, what has no answer may be in the log nevertheless: send the same entries again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ledger.errors import ModelLedgerError
from ledger.kit.client import from_status
from modelledger.ledger.v1 import ledger_pb2

Send = Callable[[Iterator[ledger_pb2.AppendStreamRequest]], Iterator[ledger_pb2.AppendStreamResponse]]
Result = ledger_pb2.AppendEventsResponse | ModelLedgerError


def append_stream(send: Send, requests: Iterable[Sequence[bytes]]) -> Iterator[Result]:
    """One result for each request. Raises what `requests` raises once everything before is answered."""
    failed: list[Exception] = []

    def numbered() -> Iterator[ledger_pb2.AppendStreamRequest]:
        try:
            for number, envelopes in enumerate(requests):
                yield ledger_pb2.AppendStreamRequest(number=number, envelopes=envelopes)
        except Exception as error:  # here it would be lost: this runs in a thread of gRPC's
            failed.append(error)

    for response in send(numbered()):
        yield response.appended if response.HasField("appended") else from_status(response.refused)
    if failed:
        raise failed[0]
