"""The quick look at an event's data never accepts what protobuf's own reader refuses."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.schema import MESSAGES, _form, to_data, violations

ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        2**31,
        2**32,
        2**63,
        2**64,
        1.5,
        1e308,
        "",
        "7",
        "-7",
        "007",
        "1e3",
        " 1",
        "nan",
        "é",
        [],
        {},
    ]
)


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        return st.dictionaries(st.sampled_from(["a", "7", "true"]), _single(nested.fields[1]), max_size=2)
    single = _single(field)
    return st.lists(single, max_size=2) if field.is_repeated else single


def _single(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    nested = field.message_type
    if nested is not None:
        return ODD | st.deferred(lambda: _data(nested))
    names = list(field.enum_type.values_by_name) if field.enum_type else []
    return ODD | st.sampled_from([*names, "text"]) | st.integers(-(2**33), 2**33)


def _data(descriptor: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    fields = {field.json_name: _values(field) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=fields | {descriptor.fields[0].name: ODD, "unknownField": ODD})


@pytest.mark.parametrize("kind", MESSAGES)
@settings(max_examples=40)
@given(data=st.data())
def test_what_is_certain_is_what_protobuf_reads(kind: str, data: st.DataObject) -> None:
    message = MESSAGES[kind]
    value = data.draw(_data(message.DESCRIPTOR))
    try:
        json_format.ParseDict(value, message())
    except json_format.ParseError:
        assert not _form(message.DESCRIPTOR)(value)
        assert violations(kind, value)
    else:
        assert not violations(kind, value)


@pytest.mark.parametrize("kind", MESSAGES)
def test_what_our_writers_write_is_certain(kind: str) -> None:
    message = MESSAGES[kind]()
    for field in message.DESCRIPTOR.fields:
        if not field.is_repeated and field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, "text")
        elif not field.is_repeated and field.type in (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_INT32):
            setattr(message, field.name, 7)
    assert _form(message.DESCRIPTOR)(to_data(message))
