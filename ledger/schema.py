"""Does an event's data have the form of its kind's message? Asked of the generated protobuf classes.

`_form` answers first: it knows the plain spellings that our writers use, says yes to nothing else, and takes a
fraction of the time. Whatever it does not know is left to protobuf's own reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
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
    if message is None or _form(message.DESCRIPTOR)(data):
        return ()  # the rules report the unknown kind
    try:
        json_format.ParseDict(dict(data), message())
    except json_format.ParseError as error:
        return (Violation("predicate.data", "MALFORMED_EVENT", str(error)),)
    return ()


Check = Callable[[Any], bool]
_RANGES = {
    FieldDescriptor.TYPE_INT32: range(-(2**31), 2**31),
    FieldDescriptor.TYPE_UINT32: range(2**32),
    FieldDescriptor.TYPE_INT64: range(-(2**63), 2**63),
    FieldDescriptor.TYPE_UINT64: range(2**64),
}


@lru_cache(None)
def _form(descriptor: Descriptor) -> Check:
    """Whether a value is certainly proto3 JSON of this message, in its plainest spelling."""
    checks = {
        field.json_name: _field(field)
        for field in descriptor.fields
        # Of a oneof only one field may be there; that is not looked at here.
        if field.containing_oneof is None or field.containing_oneof.name.startswith("_")
    }

    def certain(value: Any) -> bool:
        if type(value) is not dict:
            return False
        for name, item in value.items():
            check = checks.get(name)
            if check is None or not check(item):
                return False
        return True

    return certain


def _field(field: FieldDescriptor) -> Check:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = (_single(part) for part in message.fields)
        return lambda items: type(items) is dict and all(key(k) and value(v) for k, v in items.items())
    single = _single(field)
    if field.is_repeated:
        return lambda items: type(items) is list and all(map(single, items))
    return single


def _single(field: FieldDescriptor) -> Check:
    if field.message_type is not None:
        nested = field.message_type
        if nested.full_name.startswith("google.protobuf."):
            return _unknown  # well-known types have JSON forms of their own
        return lambda value: _form(nested)(value)
    if field.enum_type is not None:
        names = frozenset(field.enum_type.values_by_name)
        return lambda value: type(value) is str and value in names
    if field.type == FieldDescriptor.TYPE_STRING:
        return lambda value: type(value) is str and value.isascii()
    if field.type == FieldDescriptor.TYPE_BOOL:
        return lambda value: type(value) is bool
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return lambda value: type(value) in (float, int) and -1e300 < value < 1e300
    if field.type in _RANGES:
        allowed = _RANGES[field.type]
        # proto3 JSON writes 64-bit numbers as text.
        return lambda value: (
            (type(value) is int and value in allowed)
            or (type(value) is str and value.isascii() and value.isdigit() and len(value) < 10)
        )
    return _unknown


def _unknown(value: Any) -> bool:
    return False
