"""The eventsourcing Application every service is: its aggregates are streams of the ledger."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, TypeVar, cast

from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.persistence import IntegrityError
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from ledger.errors import NotFound, WrongStreamVersion
from ledger.kit.aggregate import LedgerAggregate, Recorded
from ledger.kit.client import call, connect
from ledger.kit.recorder import read

Aggregate = TypeVar("Aggregate", bound=LedgerAggregate)
Result = TypeVar("Result")
RETRIES = 5


class LedgerApplication(Application[str]):
    """Loads and saves aggregates; knows a few questions the library has no name for."""

    def __init__(self, actor: str, key_file: str, address: str, ca_file: str = "") -> None:
        super().__init__(
            {
                "PERSISTENCE_MODULE": "ledger.kit.recorder",
                "LEDGER_ADDRESS": address,
                "LEDGER_ACTOR": actor,
                "LEDGER_KEY_FILE": key_file,
                "LEDGER_CA_FILE": ca_file,
            }
        )
        self.channel = connect(address, ca_file=ca_file)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(self.channel)

    def load(self, kind: type[Aggregate], stream: str) -> Aggregate:
        """The aggregate of a stream; an empty one when the stream has no events."""
        try:
            return cast(Aggregate, self.repository.get(stream, projector_func=cast(Any, kind.project)))
        except AggregateNotFoundError:
            return kind(stream)

    def record(self, *aggregates: LedgerAggregate) -> list[int]:
        """Save all or none; the indexes of the new events. Raises IntegrityError when a race was lost."""
        return [recording.notification.id - 1 for recording in self.save(*aggregates)]

    def retried(self, attempt: Callable[[], Result]) -> Result:
        """Run a load-decide-record again when somebody else wrote to the stream first."""
        for _ in range(RETRIES):
            try:
                return attempt()
            except IntegrityError as error:
                last = error
        raise WrongStreamVersion(f"others kept writing to the stream; try again ({last})")

    def find(self, event_id: str) -> tuple[int, Recorded] | None:
        """Index and event with an id, or None."""
        try:
            found = call(self.ledger.GetEvent, ledger_pb2.GetEventRequest(id=event_id))
        except NotFound:
            return None
        return found.event.index, read(found.event.envelope)

    def event_at(self, index: int) -> Recorded:
        found = call(self.ledger.GetEvent, ledger_pb2.GetEventRequest(index=index))
        return read(found.event.envelope)

    def newest(self, kind: str, page_size: int, page_token: str) -> tuple[list[str], str]:
        """Streams of the newest events of a kind, one page, and the next page's token."""
        request = ledger_pb2.ListEventsRequest(
            kinds=[kind], descending=True, page_size=page_size, page_token=page_token
        )
        response = call(self.ledger.ListEvents, request)
        return [event.stream for event in response.events], response.next_page_token


def event_id(method: str, request_id: str) -> str:
    """The event id of a command: the same for every retry of one request, random without a request id."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{method}/{request_id}")) if request_id else str(uuid.uuid4())
