"""Hypothesis strategies from protobuf descriptors: any message of a type, valid on the wire and wild in its values.

`messages` makes them from nothing; few get past the first check. `near` changes a message that is known to be accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

MAX_DEPTH = 3

# Field name -> texts that mean something in it, "" -> in any field; or the only floats that are sent in it.
Words = Mapping[str, Sequence[str] | Sequence[float]]

WILD_TEXTS = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\n",
    "\ud7ff\ue000\U0010ffff",
    "e\u0301\u202e\u2028",
    "..",
    "../../../etc/passwd",
    "/",
    "a/" * 500,
    "%s%n{0}",
    "' OR 1=1 --",
    "-1",
    "9" * 30,
    "٣",
    "v1.0\n",
    "x" * 1_001,
    "ö" * 70_000,
)
texts = st.sampled_from(WILD_TEXTS) | st.text(max_size=30)
blobs = st.binary(max_size=60) | st.sampled_from([b"", b"\x00", b"{}", b"[" * 5_000, b"\xff" * 70_000])
floats = st.sampled_from([0.0, -1.0, 0.5, 1e308, float("inf"), float("-inf"), float("nan")]) | st.floats(width=32)


def messages(descriptor: Descriptor, words: Words, depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of a type. About half of the texts are words that are known for the field."""
    made = GetMessageClass(descriptor)
    fields = [field for field in descriptor.fields if depth < MAX_DEPTH or field.message_type is None]
    if not fields:
        return st.just(made())
    choices = st.fixed_dictionaries({}, optional={field.name: _field(field, words, depth) for field in fields})
    return choices.map(lambda values: _fill(made(), values))


def near(template: Message, words: Words) -> st.SearchStrategy[Message]:
    """The template with up to two of its fields taken away or replaced by anything."""
    fields = list(template.DESCRIPTOR.fields)
    if not fields:
        return st.just(template)
    change = st.sampled_from(fields).flatmap(
        lambda field: st.tuples(st.just(field.name), st.none() | _field(field, words, 0))
    )
    return st.lists(change, max_size=2, unique_by=lambda changed: changed[0]).map(
        lambda changes: _changed(template, dict(changes))
    )


def _changed(template: Message, changes: Mapping[str, Any]) -> Message:
    message = type(template)()
    message.CopyFrom(template)
    for name in changes:
        message.ClearField(name)
    return _fill(message, {name: value for name, value in changes.items() if value is not None})


def _fill(message: Message, values: Mapping[str, Any]) -> Message:
    for name, value in values.items():  # of a oneof the last one stays
        place = getattr(message, name)
        if isinstance(value, Message):
            place.CopyFrom(value)
            place.SetInParent()
        elif isinstance(value, list):
            place.extend(value)
        elif isinstance(value, dict):
            place.update(value)
        else:
            setattr(message, name, value)
    return message


def _field(field: FieldDescriptor, words: Words, depth: int) -> st.SearchStrategy[Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        values = _one(kind.fields_by_name["value"], words, depth)
        return st.dictionaries(_one(kind.fields_by_name["key"], words, depth), values, max_size=3)
    one = _one(field, words, depth)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _one(field: FieldDescriptor, words: Words, depth: int) -> st.SearchStrategy[Any]:
    kind = field.type
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return messages(field.message_type, words, depth + 1)
    if kind == FieldDescriptor.TYPE_STRING:
        known = [*words.get(field.name, ()), *words.get("", ())]
        return (st.sampled_from(known) | texts) if known else texts
    if kind == FieldDescriptor.TYPE_BYTES:
        return blobs
    if kind == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return st.sampled_from(words[field.name]) if field.name in words else floats
    if kind == FieldDescriptor.TYPE_ENUM:
        return st.integers(-1, 9)
    low, high = _RANGES[kind]
    return st.sampled_from([0, 1, 2, 21, 22, 1_000, low, high, low // 2]) | st.integers(low, high)


_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
