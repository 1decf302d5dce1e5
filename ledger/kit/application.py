"""The eventsourcing Application every service is: its aggregates are streams of the ledger."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.persistence import IntegrityError
from modelledger.ledger.v1 import events_pb2, ledger_pb2, ledger_pb2_grpc

from ledger.errors import EventIdReused, InvalidInput, NotFound, Refused, WrongStreamVersion
from ledger.kit.aggregate import LedgerAggregate, Recorded
from ledger.kit.client import Calling, asked, connect
from ledger.kit.recorder import PAGE, read
from ledger.statement import new_id

Aggregate = TypeVar("Aggregate", bound=LedgerAggregate)
Result = TypeVar("Result")
RETRIES = 5
MAX_A_SECOND = 100  # commands of one kind
MAX_REQUEST_ID = 1_000  # characters


class Command:
    """A call that changes something. `event_id` is the same for every retry that one caller makes of one request."""

    def __init__(self, method: str, caller: events_pb2.Caller, request_id: str) -> None:
        if len(request_id) > MAX_REQUEST_ID:
            raise InvalidInput(f"request_id: has {len(request_id)} characters, more than {MAX_REQUEST_ID}")
        self.request_id = request_id
        # An absent request id asks for no idempotence.
        key = f"{method}\n{caller.id}\n{request_id}"
        self.event_id = str(uuid.uuid5(uuid.NAMESPACE_URL, key)) if request_id else new_id()


class LedgerApplication(Application[str]):
    """Loads and saves aggregates; knows a few questions the library has no name for."""

    def __init__(self, actor: str, key_file: str, calling: Calling, key: str = "") -> None:
        """`key`: where the actor's key is when not in `key_file`, see keys.py."""
        super().__init__(
            {
                "PERSISTENCE_MODULE": "ledger.kit.recorder",
                "LEDGER_ADDRESS": calling.ledger,
                "LEDGER_ACTOR": actor,
                "LEDGER_KEY": key,
                "LEDGER_KEY_FILE": key_file,
                "LEDGER_CA_FILE": calling.ledger_ca,
                "LEDGER_CERTIFICATE": calling.ledger_certificate,
                "LEDGER_CERTIFICATE_KEY": calling.ledger_key,
            }
        )
        self.channel = connect(
            calling.ledger,
            ca_file=calling.ledger_ca,
            cert_file=calling.ledger_certificate,
            key_file=calling.ledger_key,
        )
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

    def begin(
        self, prefix: str, make: Callable[[str], Aggregate], command: Command, same: Callable[[Recorded], bool]
    ) -> Aggregate:
        """Record the aggregate that `make` gives for a new id, or load the one that `command` began before.

        Ids are `prefix` and the second it begins in; -2, -3 … only when that second has one already.
        """
        second = datetime.now(UTC).strftime(f"{prefix}-%Y%m%d-%H%M%S")
        for number in range(1, MAX_A_SECOND):
            made = make(second if number == 1 else f"{second}-{number}")
            try:
                self.record(made)
            except IntegrityError:
                if earlier := self.done(command, same):  # another call of the same request was faster
                    return self.load(type(made), earlier.originator_id)
                continue
            return made
        raise Refused(f"{MAX_A_SECOND} commands came in one second; try again")

    def done(self, command: Command, same: Callable[[Recorded], bool]) -> Recorded | None:
        """The event that an earlier call with this request id made, None when there was none.

        Raises EventIdReused when that call asked for something else (not `same`).
        """
        found = self.find(command.event_id) if command.request_id else None
        if found is None:
            return None
        index, event = found
        if not same(event):
            raise EventIdReused(
                f"request_id {command.request_id[:40]!r} was used for something else, at index {index}; take a new one"
            )
        return event

    def find(self, event_id: str) -> tuple[int, Recorded] | None:
        """Index and event with an id, or None."""
        try:
            found = asked(self.ledger.GetEvent, ledger_pb2.GetEventRequest(id=event_id))
        except NotFound:
            return None
        return found.event.index, read(found.event.envelope)

    def recorded(self, request: ledger_pb2.ListEventsRequest) -> Iterator[Recorded]:
        """What the request asks for, page after page."""
        request.page_size = PAGE
        while True:
            response = asked(self.ledger.ListEvents, request)
            yield from (read(event.envelope) for event in response.events)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def newest(self, kind: str, page_size: int, page_token: str) -> tuple[list[str], str]:
        """Streams of the newest events of a kind, one page, and the next page's token."""
        request = ledger_pb2.ListEventsRequest(
            kinds=[kind], descending=True, page_size=page_size, page_token=page_token
        )
        response = asked(self.ledger.ListEvents, request)
        return [event.stream for event in response.events], response.next_page_token
