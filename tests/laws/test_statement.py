"""Events as in-toto statements: round trips, and every way not to be one."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import statement, strict_json
from ledger.errors import MalformedEvent
from ledger.events import KINDS
from ledger.statement import Artifact, Event

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
artifacts = st.builds(Artifact, names, digests)
segments = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
events = st.builds(
    Event,
    kind=st.sampled_from(sorted(KINDS)),
    stream=st.builds(lambda rest: "/".join(["training-runs", *rest]), st.lists(segments, max_size=3)),
    version=st.integers(1, 2**53 - 1),
    actor=names,
    subjects=st.lists(artifacts, min_size=1, max_size=4, unique=True).map(tuple),
    materials=st.lists(artifacts, max_size=4, unique=True).map(tuple),
    data=st.dictionaries(names, st.integers(-5, 5) | names, max_size=3),
    id=st.uuids().map(str),
    time=st.datetimes(min_value=datetime(1000, 1, 1)).map(lambda t: t.isoformat(timespec="milliseconds") + "Z"),
    correlation=st.just("") | st.uuids().map(str),
    causation=st.just("") | names,
)


@given(events)
def test_an_event_is_read_back_from_its_statement(event: Event) -> None:
    payload = statement.encode(event)
    assert statement.decode(payload) == statement.recall(payload) == event
    assert statement.encode(statement.decode(payload)) == payload
    spaced = json.dumps(json.loads(payload), indent=1).encode()
    assert statement.decode(spaced) == statement.recall(spaced) == event


@given(events)
def test_what_is_written_is_read_the_short_way(event: Event) -> None:
    written = statement._WRITTEN.read(statement.encode(event))
    assert written is not None
    assert statement._sound(written) == event


def test_data_is_nested_as_deep_as_any_json() -> None:
    value = _valid()
    for depth, refused in ((strict_json.MAX_DEPTH - 3, False), (strict_json.MAX_DEPTH - 2, True)):
        value["predicate"]["data"] = {"run": functools.reduce(lambda inner, _: [inner], range(depth), 0)}
        payload = strict_json.canonical(value)
        for spelling in (payload, payload.replace(b":", b": ", 1)):
            if not refused:
                assert statement.decode(spelling).data == value["predicate"]["data"]
                continue
            with pytest.raises(MalformedEvent, match="nested deeper"):
                statement.decode(spelling)


@given(events)
def test_a_statement_is_what_in_toto_says(event: Event) -> None:
    """https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md"""
    value = json.loads(statement.encode(event))
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["predicateType"] == f"https://modelledger.dev/events/{event.kind}/v1"
    assert [subject["digest"]["sha256"] for subject in value["subject"]] == [s.sha256 for s in event.subjects]


@given(events, st.data())
def test_a_changed_byte_never_reads_as_the_same_event(event: Event, data: st.DataObject) -> None:
    payload = bytearray(statement.encode(event))
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedEvent):
        assert statement.decode(bytes(payload)) != event


def _valid() -> dict[str, Any]:
    event = Event(
        "TrainingStarted",
        "training-runs/r",
        1,
        "trainer",
        (Artifact("requests/r", "a" * 64),),
        {"run": "r"},
        (Artifact("base-models/x", "b" * 64),),
    )
    return json.loads(statement.encode(event))


Change = Callable[[dict[str, Any]], object]


def _about(**fields: Any) -> Change:
    return lambda value: value["predicate"]["event"].update(fields)


def _subject(**fields: Any) -> Change:
    return lambda value: value["subject"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda v: v.update(_type="https://in-toto.io/Statement/v0.1"), "_type"),
        (lambda v: v.update(extra=1), "statement"),
        (lambda v: v.pop("subject"), "subject"),
        (lambda v: v.update(subject=[]), "subject"),
        (lambda v: v.update(subject={}), "subject"),
        (lambda v: v.update(subject=v["subject"] * 2), "subject"),
        (lambda v: v.update(subject=[None]), "subject[0]"),
        (lambda v: v.update(predicateType="https://modelledger.dev/events/TrainingFailed/v1"), "predicateType"),
        (lambda v: v.update(predicateType="https://modelledger.dev/events/TrainingStarted/v2"), "predicateType"),
        (lambda v: v.update(predicate=[]), "predicate"),
        (lambda v: v["predicate"].pop("materials"), "predicate"),
        (lambda v: v["predicate"].update(other=1), "predicate"),
        (lambda v: v["predicate"].update(event=[]), "predicate.event"),
        (lambda v: v["predicate"].update(data=[]), "predicate.data"),
        (lambda v: v["predicate"].update(materials=[{}] * 1_001), "predicate.materials"),
        (lambda v: v["predicate"].update(materials={}), "predicate.materials"),
        (lambda v: v["predicate"].update(materials=""), "predicate.materials"),
        (lambda v: v["predicate"]["event"].pop("id"), "predicate.event.id"),
        (_about(other="x"), "predicate.event.other"),
        (_about(version=0), "predicate.event.version"),
        (_about(version=-1), "predicate.event.version"),
        (_about(version=True), "predicate.event.version"),
        (_about(version=1.0), "predicate.event.version"),
        (_about(version="1"), "predicate.event.version"),
        (_about(version=2**53), "predicate.event.version"),
        (_about(id="A0000000-0000-4000-8000-000000000000"), "predicate.event.id"),
        (_about(id="x"), "predicate.event.id"),
        (_about(stream="/x"), "predicate.event.stream"),
        (_about(stream="training-runs/../x"), "predicate.event.stream"),
        (_about(stream="training-runs/x\n"), "predicate.event.stream"),
        (_about(stream="training-runs/" + "x" * 129), "predicate.event.stream"),
        (_about(stream="x" * 601), "predicate.event.stream"),
        (_about(time="2026-11-21 09:00:00Z"), "predicate.event.time"),
        (_about(time="2026-11-21T09:00:00+01:00"), "predicate.event.time"),
        (_about(time="2026-02-30T09:00:00Z"), "predicate.event.time"),
        (_about(time="2026-11-21T25:00:00Z"), "predicate.event.time"),
        (_about(time="٢٠٢٦-11-21T09:00:00Z"), "predicate.event.time"),
        (_about(actor=None), "predicate.event.actor"),
        (_about(actor="a\x00b"), "predicate.event.actor"),
        (_about(actor="x" * 601), "predicate.event.actor"),
        (_about(kind=1), "predicate.event.kind"),
        (_subject(name=""), "subject[0]"),
        (_subject(name="x" * 301), "subject[0]"),
        (_subject(name="a\nb"), "subject[0]"),
        (_subject(name="a\x00b"), "subject[0]"),
        (_subject(digest={"sha256": "A" * 64}), "subject[0]"),
        (_subject(digest={"sha256": "a" * 63}), "subject[0]"),
        (_subject(digest={"sha256": "a" * 64, "md5": "x"}), "subject[0]"),
        (_subject(digest={}), "subject[0]"),
        (_subject(uri="x"), "subject[0]"),
    ],
)
def test_malformed(change: Change, field: str) -> None:
    value = _valid()
    change(value)
    with pytest.raises(MalformedEvent) as caught:
        statement.decode(strict_json.canonical(value))
    assert field in {violation.field for violation in caught.value.violations}


def test_the_unchanged_statement_is_accepted() -> None:
    assert statement.decode(strict_json.canonical(_valid())).kind == "TrainingStarted"


def test_every_problem_is_reported_at_once() -> None:
    value = copy.deepcopy(_valid())
    _about(version=0, id="x", time="y")(value)
    _subject(name="")(value)
    with pytest.raises(MalformedEvent) as caught:
        statement.decode(strict_json.canonical(value))
    assert len(caught.value.violations) == 5  # the subject list is then empty, too


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"{", b'{"a":1,"a":2}', b"\xff", b"{}"])
def test_what_is_no_statement_at_all(payload: bytes) -> None:
    with pytest.raises(MalformedEvent, match="statement"):
        statement.decode(payload)


@given(events, st.data())
def test_the_short_reading_agrees_with_the_explaining_one(event: Event, data: st.DataObject) -> None:
    """Whatever is done to one place of a sound statement, both say the same of it."""
    value = json.loads(statement.encode(event))
    place, key = data.draw(st.sampled_from(list(_places(value))))
    change = data.draw(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names | artifacts)
    change = data.draw(st.sampled_from([change, [change], {"name": change}, f"{place[key]}\n", f"{place[key]}"]))
    place[key] = change
    payload = strict_json.document(value)
    written = statement._WRITTEN.read(payload)
    short = written and statement._sound(written)
    try:
        explained = statement._checked(json.loads(payload))
    except MalformedEvent:
        explained = None
    assert short is None or short == explained


_HEX = "a" * 64


@pytest.mark.parametrize(
    "change",
    [
        _subject(name=f"n\n{_HEX}\nm"),
        _subject(digest={"sha256": f"{_HEX}\nb\n{_HEX}"}),
        lambda v: (_about(kind="A\nB")(v), _subject(name=_HEX, digest={"sha256": f"foo\n{_HEX}"})(v)),
        _about(
            stream="models/acme/bot\n2024-01-02T03:04:05Z", time="20240101", correlation=f"c\n{_HEX}", causation=_HEX
        ),
    ],
)
def test_texts_of_several_lines_do_not_pass_for_others(change: Change) -> None:
    value = _valid()
    change(value)
    value["predicateType"] = f"https://modelledger.dev/events/{value['predicate']['event']['kind']}/v1"
    with pytest.raises(MalformedEvent):
        statement._checked(value)
    with pytest.raises(MalformedEvent):
        statement.decode(strict_json.canonical(value))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything that can be replaced in a document: a container and a key of it."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def test_new_ids_are_version_7_and_in_the_order_of_time() -> None:
    """RFC 9562 section 5.7."""
    before = time.time_ns() // 1_000_000
    ids = [statement.new_id() for _ in range(2_000)]
    after = time.time_ns() // 1_000_000
    made = [uuid.UUID(text) for text in ids]
    assert all(
        (one.version, one.variant) == (7, uuid.RFC_4122) and str(one) == text
        for one, text in zip(made, ids, strict=True)
    )
    times = [one.int >> 80 for one in made]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= after
    assert len(set(ids)) == len(ids)
    noise = [one.int & (2**80 - 1) for one in made]
    seen_set, seen_clear = functools.reduce(int.__or__, noise), functools.reduce(int.__and__, noise)
    assert (seen_set, seen_clear) == (2**80 - 1 & ~(0x8 << 76 | 0x1 << 62), 0x7 << 76 | 0x2 << 62), "74 bits are drawn"
