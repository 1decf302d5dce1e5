"""A view's rows in the database: scans, snapshots, and the position that goes with them."""

from __future__ import annotations

import pytest

from ledger.store import Store


def test_view_rows_scan_by_bytes(store: Store) -> None:
    keys = ["a/B", "a/a", "a/Z", "a/é", "a/_", "a/10", "a/9", "b/1", "A/1", "a0"]
    with store.views.open("v", write=True) as rows:
        for key in keys:
            rows.put(key, key.encode())
        rows.put("a/9", b"again")
        rows.advance(1, "a")
    inside = sorted((key for key in keys if key.startswith("a/")), key=str.encode)
    with store.views.open("v") as rows:
        found = rows.scan("a/")
        assert [key for key, _ in found] == inside
        assert dict(found)["a/9"] == b"again"
        assert [key for key, _ in rows.scan("a/", descending=True)] == inside[::-1]
        assert [key for key, _ in rows.scan("a/", after=inside[2], limit=2)] == inside[3:5]
        assert [key for key, _ in rows.scan("a/", after=inside[2], descending=True)] == inside[1::-1]
        assert len(rows.scan("")) == len(keys)
        assert rows.get("a/9") == b"again"
        assert rows.get("nothing") is None


def test_a_view_and_its_position_change_together_or_not_at_all(store: Store) -> None:
    with store.views.open("v", write=True) as rows:
        rows.put("k", b"1")
        rows.advance(1, "a")

    def fail_half_way() -> None:
        with store.views.open("v", write=True) as rows:
            rows.put("k", b"2")
            rows.advance(2, "b")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    with store.views.open("v") as rows, store.views.open("other") as other:
        assert (rows.get("k"), rows.next_position) == (b"1", 1)
        assert (other.get("k"), other.next_position) == (None, 0)


def test_a_reader_of_a_view_keeps_its_snapshot(store: Store) -> None:
    with store.views.open("v", write=True) as rows:
        rows.put("k", b"1")
        rows.advance(1, "a")
    with store.views.open("v") as reader:
        assert reader.get("k") == b"1"
        with store.views.open("v", write=True) as writer:
            writer.put("k", b"2")
            writer.advance(5, "e")
        assert (reader.get("k"), reader.next_position) == (b"1", 1)
    with store.views.open("v") as reader:
        assert (reader.get("k"), reader.next_position) == (b"2", 5)


def test_clear_forgets_one_view(store: Store) -> None:
    for name in ("v", "w"):
        with store.views.open(name, write=True) as rows:
            rows.put("k", b"1")
            rows.advance(3, "c")
    with store.views.open("v", write=True) as rows:
        rows.clear()
    with store.views.open("v") as cleared, store.views.open("w") as kept:
        assert (cleared.scan(""), cleared.next_position) == ([], 0)
        assert (kept.scan(""), kept.next_position) == ([("k", b"1")], 3)
