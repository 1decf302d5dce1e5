"""The ledger as a persistence module of the eventsourcing library, over gRPC.

An ordinary `eventsourcing.application.Application` whose environment says PERSISTENCE_MODULE=ledger.kit.recorder
records its aggregates' events in the ledger: the mapper turns a domain event into a signed statement, the recorder
appends it. A lost race (expected stream version) is the library's IntegrityError.

    LEDGER_ADDRESS            host:port of the ledger
    LEDGER_ACTOR              the actor that signs
    LEDGER_KEY                its private key, as keys.py says; empty for the file
    LEDGER_KEY_FILE           the file
    LEDGER_CA_FILE            PEM of the ledger's certificate authority; empty without TLS
    LEDGER_CERTIFICATE        PEM of the certificate that says who calls; empty when none is asked for
    LEDGER_CERTIFICATE_KEY    PEM of its private key
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    InfrastructureFactory,
    IntegrityError,
    Mapper,
    Notification,
    ProcessRecorder,
    StoredEvent,
    Subscription,
    TrackingRecorder,
    Transcoder,
)
from modelledger.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from ledger import envelope as dsse
from ledger import schema, statement
from ledger.envelope import Signer
from ledger.errors import EventIdReused, WrongStreamVersion
from ledger.kit.aggregate import Recorded
from ledger.kit.client import call, connect, patiently, stream
from ledger.kit.keys import open_signer
from ledger.statement import Event

log = logging.getLogger("modelledger.recorder")

PAGE = 1_000
RECONNECT, MAX_RECONNECT = 0.2, 2.0  # seconds


class LedgerMapper(Mapper[str]):
    """Domain event <-> signed envelope. The topic is the kind, never a Python path."""

    def __init__(self, actor: str, signer: Signer) -> None:
        super().__init__(transcoder=_NoTranscoder())
        self._actor = actor
        self._signer = signer

    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        event = Event(
            kind=domain_event.kind,
            stream=domain_event.originator_id,
            version=domain_event.originator_version,
            actor=self._actor,
            subjects=domain_event.subjects,
            materials=domain_event.materials,
            data=schema.to_data(domain_event.data),
            id=domain_event.event_id,
            time=domain_event.time,
            correlation=domain_event.correlation,
            causation=domain_event.causation,
        )
        entry = dsse.sign(statement.encode(event), [self._signer])
        return StoredEvent(event.stream, event.version, event.kind, entry)

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        return read(stored_event.state)


def read(entry: bytes) -> Recorded:
    """The domain event in a log entry."""
    event = statement.decode(dsse.parse(entry).payload)
    return Recorded(
        originator_id=event.stream,
        originator_version=event.version,
        data=schema.from_data(event.kind, event.data),
        subjects=event.subjects,
        materials=event.materials,
        event_id=event.id,
        time=event.time,
        correlation=event.correlation,
        causation=event.causation,
        actor=event.actor,
    )


class LedgerRecorder(ApplicationRecorder):
    """ApplicationRecorder over the LedgerService."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(channel)

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        if not stored_events:
            return []
        request = ledger_pb2.AppendEventsRequest(
            envelopes=[stored.state for stored in stored_events], request_id=uuid.uuid4().hex
        )
        try:
            # Idempotent by event id, so it is safe to send it again.
            response = patiently(lambda: call(self._ledger.AppendEvents, request))
        except (WrongStreamVersion, EventIdReused) as error:  # somebody else was faster
            raise IntegrityError(error.message) from error
        return [proof.index + 1 for proof in response.proofs]

    def select_events(
        self,
        originator_id: uuid.UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        events: list[StoredEvent] = []
        request = ledger_pb2.ListEventsRequest(
            stream=str(originator_id), after_version=gt or 0, descending=desc, page_size=PAGE
        )
        while True:
            response = patiently(lambda: call(self._ledger.ListEvents, request))
            events += [_stored(event) for event in response.events if lte is None or event.version <= lte]
            if not response.next_page_token or (limit is not None and len(events) >= limit):
                return events[:limit]
            request.page_token = response.next_page_token

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        first = max(start or 1, 1) if inclusive_of_start else (start or 0) + 1
        request = ledger_pb2.ListEventsRequest(start_index=first - 1, kinds=topics, page_size=min(limit, PAGE))
        response = call(self._ledger.ListEvents, request)
        return [_notification(event) for event in response.events if stop is None or event.index < stop]

    def max_notification_id(self) -> int | None:
        response = call(self._ledger.ListEvents, ledger_pb2.ListEventsRequest(descending=True, page_size=1))
        return response.events[0].index + 1 if response.events else None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        return LedgerSubscription(self, self._ledger, gt, topics)


class LedgerSubscription(Subscription[LedgerRecorder]):
    """Follows the ledger's WatchEvents until it is stopped: whatever ends the watch, it is begun again."""

    def __init__(
        self,
        recorder: LedgerRecorder,
        ledger: ledger_pb2_grpc.LedgerServiceStub,
        gt: int | None,
        topics: Sequence[str],
    ) -> None:
        super().__init__(recorder, gt, topics)
        self._ledger = ledger
        self._next = gt or 0
        self._batch: list[Notification] = []
        self._pause = RECONNECT
        self._cancel: Callable[[], object] = lambda: None
        self._responses: Iterator[ledger_pb2.WatchEventsResponse] | None = None

    def __next__(self) -> Notification:
        while not self._batch and not self._has_been_stopped:
            try:
                self._responses = self._responses or self._watch()
                response = next(self._responses)
            except Exception as error:  # StopIteration too: the ledger ends the watch when it stops
                self._again(error)
                continue
            self._pause = RECONNECT
            self._next = response.next_index
            self._batch = [_notification(event) for event in response.events][::-1]
        if self._has_been_stopped:
            raise StopIteration
        return self._batch.pop()

    def stop(self) -> None:
        super().stop()
        self._cancel()

    def _again(self, error: Exception) -> None:
        self._responses = None
        if self._has_been_stopped:
            return
        if self._pause == RECONNECT:  # once for each time it is lost
            log.warning("the log is not followed at the moment: %s", error or "the watch ended")
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, MAX_RECONNECT)

    def _watch(self) -> Iterator[ledger_pb2.WatchEventsResponse]:
        request = ledger_pb2.WatchEventsRequest(start_index=self._next, kinds=self._topics)
        self._cancel, responses = stream(self._ledger.WatchEvents, request)
        if self._has_been_stopped:  # meanwhile, so that `stop` did not see this one
            self._cancel()
        return responses


class Factory(InfrastructureFactory[TrackingRecorder]):
    """What the library asks for a mapper and a recorder."""

    def mapper(
        self, transcoder: Transcoder | None = None, mapper_class: type[Mapper[Any]] | None = None
    ) -> Mapper[Any]:
        signer = open_signer(self.env.get("LEDGER_KEY", ""), Path(self.env["LEDGER_KEY_FILE"]))
        return LedgerMapper(self.env["LEDGER_ACTOR"], signer)

    def application_recorder(self) -> ApplicationRecorder:
        files = {
            "ca_file": self.env.get("LEDGER_CA_FILE", ""),
            "cert_file": self.env.get("LEDGER_CERTIFICATE", ""),
            "key_file": self.env.get("LEDGER_CERTIFICATE_KEY", ""),
        }
        return LedgerRecorder(connect(self.env["LEDGER_ADDRESS"], **files))

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        return self.application_recorder()

    def tracking_recorder(self, tracking_recorder_class: type[TrackingRecorder] | None = None) -> TrackingRecorder:
        raise NotImplementedError("views live in the ledger process; a service keeps no tracking records")

    def process_recorder(self) -> ProcessRecorder:
        raise NotImplementedError("views live in the ledger process; a service keeps no tracking records")


class _NoTranscoder(Transcoder):
    """The library insists on one; statements are encoded by ledger/statement.py."""

    def encode(self, obj: Any) -> bytes:
        raise NotImplementedError

    def decode(self, data: bytes) -> Any:
        raise NotImplementedError


def _stored(event: ledger_pb2.Event) -> StoredEvent:
    return StoredEvent(event.stream, event.version, event.kind, event.envelope)


def _notification(event: ledger_pb2.Event) -> Notification:
    return Notification(event.stream, event.version, event.kind, event.envelope, id=event.index + 1)
