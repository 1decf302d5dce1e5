"""Values over a pipe come whole, and waiting for one without sleep ends when it comes, or in time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from ledger.kit.frames import Frames, frame

Pipe = tuple[int, Frames]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reading, writing = os.pipe()
    yield writing, Frames(reading)
    os.close(reading)
    os.close(writing)


def test_what_comes_in_pieces_is_taken_whole(pipe: Pipe) -> None:
    writing, frames = pipe
    taken = []
    for byte in frame("one") + frame(["two"]):
        os.write(writing, bytes([byte]))
        taken += frames.take(wait=False)
    assert taken == ["one", ["two"]]
    assert frames.take(wait=False) == []


def test_it_is_watched_until_something_comes(pipe: Pipe) -> None:
    writing, frames = pipe
    threading.Timer(0.05, os.write, (writing, frame("one"))).start()
    begun = time.monotonic()
    frames.watch(60)
    assert time.monotonic() - begun < 30
    assert frames.take(wait=False) == ["one"]


def test_it_is_watched_no_longer_than_was_said(pipe: Pipe) -> None:
    _, frames = pipe
    begun = time.monotonic()
    frames.watch(0.05)
    assert 0.05 <= time.monotonic() - begun < 30
