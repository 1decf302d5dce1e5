"""Does an event's data have the form of its kind's message? Asked of the generated protobuf classes.

`_form` answers first: it knows the plain spellings that our writers use, says yes to nothing else, and takes a
fraction of the time. Whatever it does not know is left to protobuf's own reader.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from modelledger.ledger.v1 import events_pb2

from ledger.errors import Violation
from ledger.events import KINDS

MESSAGES: dict[str, type[Message]] = {name: getattr(events_pb2, name) for name in KINDS}

Reader = Callable[[Any], Any]
"""A JSON value as a message's constructor takes it. Raises ValueError unless it is spelled as `to_data` spells it."""


def to_data(message: Message) -> dict[str, Any]:
    """A message as the `data` of an event: proto3 JSON, absent fields absent."""
    return json_format.MessageToDict(message)


def from_data(kind: str, data: Mapping[str, Any]) -> Message:
    """Read an event's data into its kind's message. Fields a newer writer added are dropped."""
    message = MESSAGES[kind]
    try:
        return message(**read_plain(message.DESCRIPTOR, data))
    except ValueError:
        return json_format.ParseDict(dict(data), message(), ignore_unknown_fields=True)


def violations(kind: str, data: Mapping[str, Any]) -> tuple[Violation, ...]:
    """What keeps `data` from being exactly a message of that kind."""
    message = MESSAGES.get(kind)
    if message is None:
        return ()  # the rules report the unknown kind
    try:
        read_plain(message.DESCRIPTOR, data)
    except ValueError:
        try:
            json_format.ParseDict(dict(data), message())
        except json_format.ParseError as error:
            return (Violation("predicate.data", "MALFORMED_EVENT", str(error)),)
    return ()


def read_plain(message: Any, data: Any) -> dict[str, Any]:
    """The constructor's arguments for the message with this descriptor; several times faster than the library's parser.

    Raises ValueError for what is not spelled as `to_data` spells it, which says nothing yet: proto3 JSON has other
    spellings, and the library knows them all.
    """
    if type(data) is not dict:
        raise ValueError
    readers = _readers(message)
    found = {}
    for json_name, value in data.items():
        if json_name not in readers:
            raise ValueError
        name, read = readers[json_name]
        found[name] = read(value)
    return found


@cache
def _readers(message: Any) -> dict[str, tuple[str, Reader]]:
    """By JSON name: the field's own name, and how to read it. Fields that are not here are left to the library."""
    return {field.json_name: (field.name, read) for field in message.fields if (read := _reader(field)) is not None}


def _reader(field: FieldDescriptor) -> Reader | None:
    nested, oneof = field.message_type, field.containing_oneof
    # An `optional` field stands alone in a oneof.
    if (oneof is not None and len(oneof.fields) > 1) or (
        nested is not None and nested.file.package.startswith("google.")
    ):
        return None
    if nested is not None and nested.GetOptions().map_entry:
        _, of_value = _readers(nested).get("value", ("", None))
        if nested.fields_by_name["key"].type != FieldDescriptor.TYPE_STRING or of_value is None:
            return None
        return lambda value: {key: of_value(item) for key, item in _of(dict, value).items()}
    of_one: Reader | None = partial(read_plain, nested) if nested is not None else _SCALARS.get(field.type)
    if of_one is None or not field.is_repeated:
        return of_one
    return lambda value: [of_one(item) for item in _of(list, value)]


_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,17}")  # below 2^63 whatever its digits


def _of(expected: type, value: Any) -> Any:
    if type(value) is not expected:
        raise ValueError
    return value


def _integer(lowest: int, highest: int) -> Reader:
    def read(value: Any) -> int:
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError
        return value

    return read


def _decimal(lowest: int) -> Reader:
    def read(value: Any) -> int:
        if type(value) is not str or not _DECIMAL.fullmatch(value) or (number := int(value)) < lowest:
            raise ValueError
        return number

    return read


_SCALARS: dict[int, Reader] = {
    FieldDescriptor.TYPE_STRING: partial(_of, str),
    FieldDescriptor.TYPE_BOOL: partial(_of, bool),
    FieldDescriptor.TYPE_DOUBLE: partial(_of, float),
    FieldDescriptor.TYPE_INT32: _integer(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: _integer(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: _decimal(-(2**63)),
    FieldDescriptor.TYPE_UINT64: _decimal(0),
}
