"""Following the log over gRPC: what arrives, in which order, and what happens to those who do not read."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelledger.cli.bench_watch import measure_watch
from modelledger.ledger.v1 import ledger_pb2 as pb
from modelledger.ledger.v1 import ledger_pb2_grpc

from ledger import event_messages, watching
from ledger.committer import Committer
from ledger.errors import InvalidInput, ModelLedgerError, Overloaded
from ledger.kit.client import from_rpc_error
from ledger.kit.live import LOOK_AGAIN
from ledger.kit.serve import Address, GrpcServer, Servicer
from ledger.service import LedgerServicer
from ledger.store import Store
from ledger.watching import Wanted, Watchers, WatchLimits
from ledger.writing import Row
from tests.databases import StoreFactory
from tests.logs import in_process

STREAMS = ("models/a/x", "models/b/y", "training-runs/1", "training-runs/2")
KINDS = ("VersionCreated", "EpochCompleted", "TrainingFailed")
LARGE = 60_000  # bytes of an entry


@pytest.fixture
def store(sqlite_stores: StoreFactory) -> Store:
    return sqlite_stores()


def write(store: Store, events: Sequence[tuple[str, str]], size: int = 10) -> None:
    """Events of these (stream, kind), one transaction. No rule looks at them: following is about rows."""
    versions: dict[str, int] = {}
    for row in store.select(limit=None):
        versions[row.stream] = row.version
    rows = []
    for stream, kind in events:
        versions[stream] = versions.get(stream, 0) + 1
        rows.append(Row(str(uuid.uuid4()), stream, versions[stream], kind, "0" * 64, uuid.uuid4().bytes.ljust(size)))
    with store.writing() as writing:
        writing.append(rows)


def mixed(number: int) -> list[tuple[str, str]]:
    return [(STREAMS[i % len(STREAMS)], KINDS[i % len(KINDS)]) for i in range(number)]


@asynccontextmanager
async def serving(store: Store, limits: WatchLimits) -> AsyncIterator[Any]:
    """A stub for the log of this store. Its messages may be large, as the command line's may."""
    servicer = LedgerServicer(store, in_process(Committer(store)), limits=limits)

    def add(server: grpc.aio.Server) -> None:
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server(servicer, server)

    server = GrpcServer([Servicer("modelledger.ledger.v1.LedgerService", add)], Address())
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield ledger_pb2_grpc.LedgerServiceStub(channel)
    finally:
        await server.stop()


def run(store: Store, use: Callable[[Any], Awaitable[None]], limits: WatchLimits | None = None) -> None:
    async def whole() -> None:
        async with serving(store, limits or WatchLimits()) as stub:
            await asyncio.wait_for(use(stub), 60)

    asyncio.run(whole())


async def until_caught_up(call: Any) -> list[pb.WatchEventsResponse]:
    pages = [await call.read()]
    while not pages[-1].caught_up:
        pages.append(await call.read())
    return pages


async def until_refused(call: Any) -> tuple[list[int], ModelLedgerError]:
    """Indexes that arrived, and the error that ended it."""
    seen: list[int] = []
    try:
        while True:
            seen += [event.index for event in (await call.read()).events]
    except grpc.aio.AioRpcError as error:
        return seen, from_rpc_error(error)


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 45),
    prefix=st.sampled_from(["", "models/", "models/b", "training-runs/1", "nothing"]),
    kinds=st.lists(st.sampled_from(KINDS), unique=True),
    batch=st.integers(1, 8),
    scan=st.integers(1, 20),
    room=st.integers(1, 2_000),
)
def test_pages_hold_exactly_what_was_wanted(
    start: int,
    prefix: str,
    kinds: list[str],
    batch: int,
    scan: int,
    room: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = _forty(tmp_path_factory)
    watchers = Watchers(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "BATCH", batch)
        patch.setattr(event_messages, "MAX_SCAN", scan)
        patch.setattr("ledger.store.RARE", scan)
        patch.setattr(watching, "MAX_PAGE_BYTES", room)
        pages = [watchers._page(Wanted(start, prefix, kinds), start)]
        while not pages[-1].caught_up:
            pages.append(watchers._page(Wanted(start, prefix, kinds), pages[-1].next_index))
            assert pages[-1].next_index > pages[-2].next_index
    expected = [
        number
        for number, (stream, kind) in enumerate(mixed(40))
        if number >= start and stream.startswith(prefix) and (not kinds or kind in kinds)
    ]
    assert [event.index for page in pages for event in page.events] == expected
    assert pages[-1].next_index == max(start, 40)
    assert all(len(page.events) <= batch for page in pages)


_made: dict[str, Store] = {}


def _forty(folders: pytest.TempPathFactory) -> Store:
    """One log of forty events for every example."""
    if "forty" not in _made:
        from tests.databases import sqlite_factory

        _made["forty"] = sqlite_factory(folders.mktemp("forty"))()
        write(_made["forty"], mixed(40))
    return _made["forty"]


def test_what_was_there_comes_first_then_what_is_written(store: Store) -> None:
    write(store, mixed(1_200))

    async def use(stub: Any) -> None:
        call = stub.WatchEvents(pb.WatchEventsRequest(start_index=100, kinds=["EpochCompleted"]))
        pages = await until_caught_up(call)
        indexes = [event.index for page in pages for event in page.events]
        assert indexes == [number for number in range(100, 1_200) if number % 3 == 1]
        assert pages[-1].next_index == 1_200

        write(store, [(STREAMS[0], "VersionCreated"), (STREAMS[1], "EpochCompleted")])
        page = await call.read()
        assert [(event.index, event.stream, event.version) for event in page.events] == [(1_201, STREAMS[1], 301)]
        assert page.caught_up
        assert page.next_index == 1_202

    run(store, use)


def test_who_leaves_in_the_moment_of_an_answer_is_gone(store: Store) -> None:
    async def whole() -> None:
        sent = asyncio.get_running_loop().create_future()

        class Leaving:
            def write(self, message: pb.WatchEventsResponse) -> Awaitable[None]:
                writing.set()
                return sent

            def add_done_callback(self, callback: Callable[[Any], None]) -> None: ...

        writing = asyncio.Event()
        following = asyncio.create_task(Watchers(store).follow(Wanted(), Leaving()))
        await writing.wait()
        sent.set_result(None)
        following.cancel()
        await asyncio.wait({following}, timeout=10)
        assert following.cancelled()

    asyncio.run(whole())


def test_a_commit_is_told_and_not_found_out_later(store: Store) -> None:
    async def use(stub: Any) -> None:
        call = stub.WatchEvents(pb.WatchEventsRequest())
        await until_caught_up(call)
        started = time.monotonic()
        for _ in range(10):
            write(store, mixed(1))
            assert len((await call.read()).events) == 1
        assert time.monotonic() - started < 10 * LOOK_AGAIN / 2

    run(store, use)


def test_a_watcher_ahead_of_the_log_gets_what_comes_there(store: Store) -> None:
    async def use(stub: Any) -> None:
        call = stub.WatchEvents(pb.WatchEventsRequest(start_index=3))
        first = await call.read()
        assert (len(first.events), first.caught_up, first.next_index) == (0, True, 3)
        write(store, mixed(5))
        page = await call.read()
        assert [event.index for event in page.events] == [3, 4]

    run(store, use)


def test_who_does_not_read_is_ended_with_the_index_to_go_on_from(store: Store) -> None:
    write(store, mixed(600), LARGE)
    pages_read = 0
    real = store.select

    def counting(**wanted: Any) -> Any:
        nonlocal pages_read
        pages_read += 1
        return real(**wanted)

    async def use(stub: Any) -> None:
        nonlocal pages_read
        call = stub.WatchEvents(pb.WatchEventsRequest())
        seen = [event.index for event in (await call.read()).events]
        await asyncio.sleep(1.5)
        stalled = pages_read
        await asyncio.sleep(0.5)
        assert stalled == pages_read, "a page was read for somebody who takes none"
        more, error = await until_refused(call)
        seen += more
        assert isinstance(error, Overloaded)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 0 < len(seen) < 600
        # The page under way when time was up may still have arrived; what the error names was never skipped.
        assert seen == list(range(len(seen)))
        assert int(error.metadata["next_index"]) <= len(seen)
        assert error.metadata["next_index"] in error.message
        again = await until_caught_up(stub.WatchEvents(pb.WatchEventsRequest(start_index=len(seen))))
        assert [event.index for page in again for event in page.events] == list(range(len(seen), 600))

    store.select = counting  # type: ignore[method-assign]
    run(store, use, WatchLimits(stall_seconds=1))


def test_an_idle_watcher_is_not_a_slow_one(store: Store) -> None:
    write(store, mixed(3))

    async def use(stub: Any) -> None:
        call = stub.WatchEvents(pb.WatchEventsRequest())
        await until_caught_up(call)
        await asyncio.sleep(0.6)
        write(store, mixed(2))
        assert len((await call.read()).events) == 2

    run(store, use, WatchLimits(stall_seconds=0.2))


class Reader:
    """A call that takes everything and never ends."""

    def __init__(self) -> None:
        self.read: list[pb.WatchEventsResponse] = []

    async def write(self, message: pb.WatchEventsResponse) -> None:
        self.read.append(message)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None: ...


def test_a_watcher_that_waits_when_its_event_loop_ends_can_be_closed(store: Store) -> None:
    write(store, mixed(3))
    reader, watchers, loop = Reader(), Watchers(store), asyncio.new_event_loop()

    async def until_it_waits() -> None:
        while not (reader.read and reader.read[-1].caught_up):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    following = watchers.follow(Wanted(), reader)
    task = loop.create_task(following)
    loop.run_until_complete(until_it_waits())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    following.close()  # as when it is collected
    write(store, mixed(1))  # nobody is told in the loop that is no more


def test_one_watcher_too_many_is_refused_until_another_leaves(store: Store) -> None:
    write(store, mixed(3))

    async def use(stub: Any) -> None:
        calls = [stub.WatchEvents(pb.WatchEventsRequest()) for _ in range(2)]
        for call in calls:
            await until_caught_up(call)
        _, error = await until_refused(stub.WatchEvents(pb.WatchEventsRequest()))
        assert isinstance(error, Overloaded)
        assert "2 watchers" in error.message
        assert "max_watchers" in error.message
        calls[0].cancel()
        for _ in range(100):
            call = stub.WatchEvents(pb.WatchEventsRequest())
            try:
                assert len((await until_caught_up(call))[0].events) == 3
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
        raise AssertionError("the place of a watcher that left was not given to another")

    run(store, use, WatchLimits(watchers=2))


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (pb.WatchEventsRequest(start_index=-1), "start_index"),
        (pb.WatchEventsRequest(stream_prefix="a\x00b"), "stream_prefix"),
        (pb.WatchEventsRequest(stream_prefix="a" * 601), "stream_prefix"),
        (pb.WatchEventsRequest(kinds=["a"] * 101), "kinds"),
        (pb.WatchEventsRequest(kinds=["\x00"]), "kinds[0]"),
    ],
)
def test_a_wrong_request_is_refused_with_its_field(store: Store, request_: pb.WatchEventsRequest, said: str) -> None:
    async def use(stub: Any) -> None:
        _, error = await until_refused(stub.WatchEvents(request_))
        assert isinstance(error, InvalidInput)
        assert said in error.message

    run(store, use)


def test_the_benchmark_measures_what_arrived() -> None:
    measured = measure_watch(1_000, 1)
    assert measured["conditions"]["events"] > 1_000  # and those that a log begins with
    assert measured["conditions"]["messages"] >= 3
    assert measured["value"] > 0
    assert measured["floor"] > 0
