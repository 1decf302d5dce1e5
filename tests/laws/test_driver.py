"""Rows for PostgreSQL are all sent, in their order, in messages that a socket takes at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ledger.driver import MESSAGE, MESSAGE_ROWS, Statement, _messages

rows = st.lists(st.tuples(st.integers(), st.integers(0, 2 * MESSAGE).map(bytes)), min_size=1, max_size=20)


@given(rows)
def test_messages_hold_every_row_once_and_are_as_large_as_may_be(rows: list[tuple[int, bytes]]) -> None:
    messages = list(_messages(rows))
    assert [row for message in messages for row in message] == rows
    sizes = [sum(8 + len(content) for _, content in message) for message in messages]
    assert all(size <= MESSAGE or len(message) == 1 for size, message in zip(sizes, messages, strict=True))
    for size, following in zip(sizes, messages[1:], strict=False):
        assert size + 8 + len(following[0][1]) > MESSAGE


def test_small_rows_are_bounded_in_number() -> None:
    assert [len(message) for message in _messages([(1,)] * (2 * MESSAGE_ROWS + 1))] == [MESSAGE_ROWS, MESSAGE_ROWS, 1]


def test_a_statement_of_several_rows_repeats_what_is_between_the_parentheses_of_values() -> None:
    statement = Statement("INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT (a) DO UPDATE SET b = excluded.b")
    expected = "INSERT INTO t (a, b) VALUES (%s, %s), (%s, %s) ON CONFLICT (a) DO UPDATE SET b = excluded.b"
    assert statement.of_rows(2) == expected
    assert statement.of_rows(1) == statement.postgresql
