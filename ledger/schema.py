"""Does an event's data have the form of its kind's message? Asked of the generated protobuf classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from modelledger.ledger.v1 import events_pb2

from ledger.errors import Violation
from ledger.events import KINDS

MESSAGES: dict[str, type[Message]] = {name: getattr(events_pb2, name) for name in KINDS}


def to_data(message: Message) -> dict[str, Any]:
    """A message as the `data` of an event: proto3 JSON, absent fields absent."""
    return json_format.MessageToDict(message)


def from_data(kind: str, data: Mapping[str, Any]) -> Message:
    """Read an event's data into its kind's message. Fields a newer writer added are dropped."""
    return json_format.ParseDict(dict(data), MESSAGES[kind](), ignore_unknown_fields=True)


def violations(kind: str, data: Mapping[str, Any]) -> tuple[Violation, ...]:
    """What keeps `data` from being exactly a message of that kind."""
    message = MESSAGES.get(kind)
    if message is None:
        return ()  # the rules report the unknown kind
    try:
        json_format.ParseDict(dict(data), message())
    except json_format.ParseError as error:
        return (Violation("predicate.data", "MALFORMED_EVENT", str(error)),)
    return ()
