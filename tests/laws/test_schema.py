"""The quick reading of an event's data agrees with the protobuf library's, and gives way to it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from ledger import schema

TEXT = st.text(max_size=8)
SCALARS = {
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}


def fields(message: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of a message's constructor."""
    return st.fixed_dictionaries({}, optional={field.name: values(field) for field in message.fields})


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        return st.dictionaries(TEXT, values(nested.fields_by_name["value"]), max_size=3)
    one = fields(nested) if nested is not None else SCALARS[field.type]
    return st.lists(one, max_size=3) if field.is_repeated else one


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, Message]:
    kind = draw(st.sampled_from(sorted(schema.MESSAGES)))
    message = schema.MESSAGES[kind]
    return kind, message(**draw(fields(message.DESCRIPTOR)))


@given(messages())
def test_what_we_write_is_read_back_either_way(drawn: tuple[str, Message]) -> None:
    kind, message = drawn
    data = schema.to_data(message)
    assert schema.from_data(kind, data) == message
    assert schema.violations(kind, data) == ()


# Values of every JSON type, with the borders of the integers among them.
ODD: list[Any] = [
    None, True, 0, -1, 2**31, 2**32, 2**63, 2**64, 0.0, 1.5, 1e400, "", "1", "01", "-0", "-1", "1.0", "1e3", " 1",
    str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64), "NaN", "x", [], [1], ["x"], [[]], [None], {}, {"a": 1},
    {"a": "b"}, {"name": "n"}, [{}], [{"sha256": 1}], {"unknown": {}},
]  # fmt: skip


@given(messages(), st.data())
def test_the_quick_reading_accepts_nothing_that_the_library_refuses(
    drawn: tuple[str, Message], data: st.DataObject
) -> None:
    kind, message = drawn
    value = schema.to_data(message)
    names = [field.json_name for field in message.DESCRIPTOR.fields] + ["unknown", "base_sha256"]
    value[data.draw(st.sampled_from(names))] = data.draw(st.sampled_from(ODD))
    try:
        expected: Message | None = json_format.ParseDict(value, schema.MESSAGES[kind]())
    except json_format.ParseError:
        expected = None
    assert (schema.violations(kind, value) == ()) == (expected is not None)
    try:
        arguments = schema.read_plain(message.DESCRIPTOR, value)
    except ValueError:
        return
    assert schema.MESSAGES[kind](**arguments) == expected


def test_a_field_of_a_newer_writer_is_dropped_when_read_and_refused_when_appended() -> None:
    data = {"key": "tiny", "invented": 1}
    assert schema.from_data("BaseModelRegistered", data).key == "tiny"  # type: ignore[attr-defined]
    (violation,) = schema.violations("BaseModelRegistered", data)
    assert "invented" in violation.description


@pytest.mark.parametrize("kind", sorted(schema.MESSAGES))
def test_every_field_can_be_read_quickly(kind: str) -> None:
    """A field that cannot makes each event of its kind slow; say so here when one has to be."""
    message = schema.MESSAGES[kind].DESCRIPTOR
    assert len(schema._readers(message)) == len(message.fields)
