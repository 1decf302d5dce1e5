"""Consumer groups over gRPC and through the client: waiting, settling, consumers that die, and wrong requests."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import grpc
import grpc.aio
import pytest
from modelledger.client import Client
from modelledger.ledger.v1 import ledger_pb2_grpc, subscription_pb2_grpc
from modelledger.ledger.v1 import subscription_pb2 as pb

from ledger import group_waiting
from ledger.committer import Committer
from ledger.errors import InvalidInput, InvalidName, ModelLedgerError, NotFound, Overloaded, Refused, UnknownKind
from ledger.group_store import GroupStore
from ledger.groups import Groups
from ledger.kit import client as kit_client
from ledger.kit.client import call
from ledger.kit.live import LOOK_AGAIN
from ledger.kit.serve import Address, GrpcServer, Servicer
from ledger.service import LedgerServicer
from ledger.subscriptions import Subscriptions
from tests import loops
from tests.databases import StoreFactory
from tests.groups import write
from tests.logs import in_process

KIND = "EpochCompleted"  # of what `write` writes


class Ledger:
    """A log and its groups behind a gRPC server, in a thread of its own. The port stays over restarts."""

    def __init__(self, factory: StoreFactory) -> None:
        self._factory = factory
        self.store = factory()
        self._url = factory.url_of(self.store)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._address = Address()
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.port}"

    def start(self) -> None:
        self._groups = GroupStore(self._url)
        subscriptions = Subscriptions(self.store, Groups(self.store, self._groups))
        log = LedgerServicer(self.store, in_process(Committer(self.store)))

        def add(server: grpc.aio.Server) -> None:
            subscription_pb2_grpc.add_SubscriptionServiceServicer_to_server(subscriptions, server)
            ledger_pb2_grpc.add_LedgerServiceServicer_to_server(log, server)

        self._server = GrpcServer([Servicer("modelledger.ledger.v1.SubscriptionService", add)], self._address)
        self._run(self._server.start())
        self._address = Address(port=self._server.port)

    def stop(self) -> None:
        self._run(self._server.stop())
        self._groups.close()

    def close(self) -> None:
        self.stop()
        loops.end(self._loop, self._thread)

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


@pytest.fixture
def ledger(sqlite_stores: StoreFactory) -> Iterator[Ledger]:
    ledger = Ledger(sqlite_stores)
    yield ledger
    ledger.close()


@pytest.fixture
def client(ledger: Ledger) -> Iterator[Client]:
    with Client(ledger.address) as client:
        yield client


def _later(seconds: float, act: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def _indexes(claimed: pb.ClaimResponse) -> list[int]:
    return [delivery.event.index for delivery in claimed.deliveries]


def test_a_group_is_what_was_asked_for(ledger: Ledger, client: Client) -> None:
    made = client.create_group("mail", stream_prefix="s/", kinds=[KIND, "TrainingFailed", KIND], start_index=3)
    assert made.name == "groups/mail"
    assert (made.max_attempts, made.max_in_flight, made.next_index) == (5, 1_000, 3)
    assert list(made.kinds) == [KIND, "TrainingFailed"]
    write(ledger.store, ["s/1", "s/2", "s/3", "s/4", "t/1", "s/5"])
    assert _indexes(client.claim("groups/mail", "a", max_events=1)) == [3]
    assert client.group("mail") == pb.Group(
        name="groups/mail",
        stream_prefix="s/",
        kinds=[KIND, "TrainingFailed"],
        start_index=3,
        max_attempts=5,
        max_in_flight=1_000,
        next_index=4,
        behind=1,
        leased=1,
    )


def test_a_claim_waits_for_the_next_event(ledger: Ledger, client: Client) -> None:
    client.create_group("mail")
    started = time.monotonic()
    assert client.claim("mail", "a", wait_seconds=0.3) == pb.ClaimResponse()
    assert 0.3 <= time.monotonic() - started < 10
    timer = _later(0.5, lambda: write(ledger.store, ["s/1"]))
    started = time.monotonic()
    claimed = client.claim("mail", "a", wait_seconds=30)
    assert _indexes(claimed) == [0]
    assert claimed.deliveries[0].event.envelope == ledger.store.get(0).entry
    assert time.monotonic() - started < 15
    assert claimed.lease_end_time.endswith("Z")
    timer.join()


@pytest.mark.parametrize("what", ["a commit", "an ack"])
def test_who_waits_is_told_at_once(ledger: Ledger, client: Client, what: str) -> None:
    client.create_group("mail")
    took = []
    with Client(ledger.address) as other:
        for _ in range(6):
            lease, mine = "", []
            if what == "an ack":
                write(ledger.store, ["s/1", "s/1"])
                claimed = client.claim("mail", "a", max_events=1)
                lease, mine = claimed.lease, _indexes(claimed)
            waiting: list[pb.ClaimResponse] = []
            thread = threading.Thread(
                target=lambda waiting=waiting: waiting.append(other.claim("mail", "b", wait_seconds=9))
            )
            thread.start()
            time.sleep(0.15)
            started = time.monotonic()
            if what == "an ack":
                client.ack("mail", lease, mine)
            else:
                write(ledger.store, ["s/1"])
            thread.join()
            took.append(time.monotonic() - started)
            client.ack("mail", waiting[0].lease, _indexes(waiting[0]))
    assert median(took) < LOOK_AGAIN / 3


@pytest.mark.parametrize("how", ["ack", "park", "retry", "the lease ends"])
def test_who_waits_hears_of_what_others_settle(ledger: Ledger, client: Client, how: str) -> None:
    client.create_group("mail")
    write(ledger.store, ["s/1", "s/1"])
    lease = client.claim("mail", "a", max_events=1, lease_seconds=0.5 if how == "the lease ends" else 60).lease
    settle = {
        "ack": lambda: client.ack("mail", lease, [0]),
        "park": lambda: client.park("mail", lease, [0], "x"),
        "retry": lambda: client.retry("mail", lease, [0], "x", delay=0.2),
        "the lease ends": lambda: None,
    }
    timer = _later(0.3, settle[how])
    with Client(ledger.address) as other:
        claimed = other.claim("mail", "b", wait_seconds=30)
    assert _indexes(claimed) == [1 if how in ("ack", "park") else 0]
    timer.join()


def test_the_loop_acknowledges_what_its_body_came_to_the_end_of(ledger: Ledger, client: Client) -> None:
    client.create_group("mail", max_attempts=2)
    write(ledger.store, ["s/1", "s/2", "s/3", "s/4", "s/5"])
    seen: list[tuple[int, int, str]] = []
    for delivery in client.consume("mail", "a"):
        seen.append((delivery.event.index, delivery.attempt, delivery.last_reason))
        if delivery.event.index == 1:
            delivery.retry("the mail\nserver is away")
        if delivery.event.index == 2:
            delivery.park("no address")
        if delivery.event.index == 3:
            delivery.ack()
        if delivery.event.index == 4:
            break
    assert seen == [(number, 1, "") for number in range(5)]
    group = client.group("mail")
    assert (group.acked, group.parked, group.leased, group.waiting) == (2, 1, 0, 2)
    again = client.consume("mail", "b")
    delivery = next(again)
    assert (delivery.event.index, delivery.attempt, delivery.last_reason) == (1, 2, "the mail server is away")
    delivery.retry("still")
    delivery = next(again)
    assert (delivery.event.index, delivery.attempt, delivery.last_reason) == (4, 2, "the consumer stopped")
    again.close()
    assert [(one.index, one.consumer, one.reason, one.attempts) for one in client.parked("mail")] == [
        (1, "b", "still", 2),
        (2, "a", "no address", 1),
        (4, "b", "the consumer stopped", 2),
    ]


def test_a_consumer_that_starts_anew_does_not_wait_for_its_old_lease(ledger: Ledger, client: Client) -> None:
    client.create_group("mail", max_attempts=1)
    write(ledger.store, ["s/1"])
    claimed = client.claim("mail", "a")
    client.retry("mail", claimed.lease, [0], "stopped", uncounted=True)
    assert client.claim("mail", "a").deliveries[0].attempt == 1
    assert client.claim("mail", "a").deliveries == []
    client.create_group("post")
    assert client.claim("post", "a").deliveries[0].attempt == 1
    assert client.claim("post", "b", resume=True).deliveries == []
    assert client.claim("post", "a", resume=True).deliveries[0].attempt == 2


def test_an_exception_in_the_body_gives_the_events_back(ledger: Ledger, client: Client) -> None:
    client.create_group("mail")
    write(ledger.store, ["s/1", "s/1", "s/2"])

    def work() -> None:
        for _ in client.consume("mail", "a"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    group = client.group("mail")
    assert (group.acked, group.leased, group.waiting) == (0, 0, 3)


def test_the_loop_keeps_its_lease_while_it_works_and_skips_what_it_lost(ledger: Ledger, client: Client) -> None:
    client.create_group("mail")
    write(ledger.store, ["s/1", "s/2", "s/3"])
    consuming = client.consume("mail", "slow", lease_seconds=1)
    for expected in (0, 1, 2):
        assert next(consuming).event.index == expected
        time.sleep(0.6)
        assert client.claim("mail", "other").deliveries == [], "longer than one lease all together"
    time.sleep(1)
    assert _indexes(client.claim("mail", "other")) == [2]
    write(ledger.store, ["s/4"])
    assert next(consuming).event.index == 3, "an ack that comes too late does not end the loop"
    assert client.group("mail").acked == 2


def test_a_killed_consumers_events_go_to_another(ledger: Ledger, client: Client) -> None:
    client.create_group("mail")
    write(ledger.store, ["s/1", "s/2"])
    script = f"""
from modelledger.client import Client
import time
for delivery in Client({ledger.address!r}).consume("mail", "doomed", lease_seconds=2):
    print(delivery.event.index, flush=True)
    if delivery.event.index == 1: time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as doomed:
        assert doomed.stdout is not None
        assert [doomed.stdout.readline(), doomed.stdout.readline()] == ["0\n", "1\n"]
        doomed.send_signal(signal.SIGKILL)
    (delivery,) = client.claim("mail", "heir", wait_seconds=30).deliveries
    assert (delivery.event.index, delivery.attempt, delivery.last_reason) == (1, 2, "the lease of doomed ended")


def test_a_consumer_goes_on_when_the_ledger_comes_back(ledger: Ledger, client: Client) -> None:
    client.create_group("mail")
    write(ledger.store, ["s/1", "s/2"])
    consuming = client.consume("mail", "a", max_events=1)
    assert next(consuming).event.index == 0
    ledger.stop()
    timer = _later(1, ledger.start)
    assert next(consuming).event.index == 1
    timer.join()
    assert client.group("mail").acked == 1


def test_a_ledger_that_stays_away_ends_the_loop(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_client, "RETRY_FOR", 0.0)
    with pytest.raises(NotFound, match="no group 'nobody'"):
        next(client.consume("nobody", "a"))
    with Client("127.0.0.1:1") as nowhere, pytest.raises(ModelLedgerError, match="modelledger up"):
        next(nowhere.consume("mail", "a"))


def test_watch_and_pages_through_the_client(ledger: Ledger, client: Client) -> None:
    write(ledger.store, ["s/1", "t/1", "s/1"])
    page = next(client.watch(start_index=1, stream_prefix="s/"))
    assert ([event.index for event in page.events], page.next_index, page.caught_up) == ([2], 3, True)
    names = [f"group-{number}" for number in range(5)]
    for name in names:
        client.create_group(name)
    stub = client._subscriptions
    first = call(stub.ListGroups, pb.ListGroupsRequest(page_size=3))
    assert [group.name for group in first.groups] == [f"groups/{name}" for name in names[:3]]
    rest = call(stub.ListGroups, pb.ListGroupsRequest(page_size=3, page_token=first.next_page_token))
    assert ([group.name for group in rest.groups], rest.next_page_token) == ([f"groups/{n}" for n in names[3:]], "")
    lease = client.claim("group-0", "a").lease
    client.park("group-0", lease, [0, 1, 2], "x")
    first_parked = call(stub.ListParked, pb.ListParkedRequest(parent="groups/group-0", page_size=2))
    assert [event.index for event in first_parked.events] == [0, 1]
    second = pb.ListParkedRequest(parent="groups/group-0", page_size=2, page_token=first_parked.next_page_token)
    assert [event.index for event in call(stub.ListParked, second).events] == [2]
    assert list(client.replay_parked("group-0", [1]).replayed) == [1]
    assert client.close_group("group-0", "over").closed_reason == "over"
    with pytest.raises(Refused, match="was closed: over"):
        client.claim("group-0", "a")


def test_too_many_consumers_that_wait_are_refused(
    ledger: Ledger, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_waiting, "MAX_WAITING", 1)
    client.create_group("mail")
    waiting = threading.Thread(target=lambda: client.claim("mail", "a", wait_seconds=2))
    waiting.start()
    time.sleep(0.7)
    with pytest.raises(Overloaded, match="consumers wait"):
        client.claim("mail", "b")
    waiting.join()
    assert client.claim("mail", "b").deliveries == []


GROUP, LEASE = "groups/mail", "0" * 32


@pytest.mark.parametrize(
    ("method", "request_", "kind", "said"),
    [
        ("CreateGroup", pb.CreateGroupRequest(), InvalidName, "group.name"),
        ("CreateGroup", pb.CreateGroupRequest(group=pb.Group(name="groups/a/b")), InvalidName, "group.name"),
        ("CreateGroup", pb.CreateGroupRequest(group=pb.Group(name=GROUP, kinds=["Nope"])), UnknownKind, "kinds[0]"),
        ("CreateGroup", pb.CreateGroupRequest(group=pb.Group(name=GROUP, kinds=[KIND] * 99)), InvalidInput, "kinds"),
        ("CreateGroup", pb.CreateGroupRequest(group=pb.Group(name=GROUP, start_index=-1)), InvalidInput, "start_index"),
        (
            "CreateGroup",
            pb.CreateGroupRequest(group=pb.Group(name=GROUP, stream_prefix="\n")),
            InvalidInput,
            "stream_prefix",
        ),
        ("CreateGroup", pb.CreateGroupRequest(group=pb.Group(name=GROUP, max_attempts=101)), InvalidInput, "max_att"),
        ("CreateGroup", pb.CreateGroupRequest(group=pb.Group(name=GROUP, max_in_flight=-1)), InvalidInput, "max_in"),
        ("GetGroup", pb.GetGroupRequest(name="groups/nobody"), NotFound, "'nobody'"),
        ("ListGroups", pb.ListGroupsRequest(page_size=-1), InvalidInput, "page_size"),
        ("ListGroups", pb.ListGroupsRequest(page_token="\0"), InvalidInput, "page_token"),
        ("CloseGroup", pb.CloseGroupRequest(name=GROUP), InvalidInput, "reason"),
        ("Claim", pb.ClaimRequest(group=GROUP), InvalidInput, "consumer"),
        ("Claim", pb.ClaimRequest(group=GROUP, consumer="a\0"), InvalidInput, "consumer"),
        ("Claim", pb.ClaimRequest(group=GROUP, consumer="a" * 129), InvalidInput, "consumer"),
        ("Claim", pb.ClaimRequest(group="groups/nobody", consumer="a"), NotFound, "'nobody'"),
        ("Claim", pb.ClaimRequest(group=GROUP, consumer="a", max_events=1_001), InvalidInput, "max_events"),
        ("Claim", pb.ClaimRequest(group=GROUP, consumer="a", lease_seconds=86_401), InvalidInput, "lease_seconds"),
        ("Claim", pb.ClaimRequest(group=GROUP, consumer="a", lease_seconds=float("nan")), InvalidInput, "lease_sec"),
        ("Claim", pb.ClaimRequest(group=GROUP, consumer="a", wait_seconds=61), InvalidInput, "wait_seconds"),
        ("Claim", pb.ClaimRequest(group=GROUP, consumer="a", wait_seconds=float("inf")), InvalidInput, "wait_seconds"),
        ("ExtendLease", pb.ExtendLeaseRequest(group=GROUP, lease="x"), InvalidInput, "lease"),
        ("ExtendLease", pb.ExtendLeaseRequest(group=GROUP, lease=LEASE, lease_seconds=-1), InvalidInput, "lease_sec"),
        ("Ack", pb.AckRequest(group=GROUP, lease="", indexes=[1]), InvalidInput, "lease"),
        ("Ack", pb.AckRequest(group=GROUP, lease=LEASE), InvalidInput, "indexes"),
        ("Ack", pb.AckRequest(group=GROUP, lease=LEASE, indexes=range(1_001)), InvalidInput, "indexes"),
        ("Ack", pb.AckRequest(group="groups/nobody", lease=LEASE, indexes=[1]), NotFound, "'nobody'"),
        ("Retry", pb.RetryRequest(group=GROUP, lease=LEASE, indexes=[1]), InvalidInput, "reason"),
        (
            "Retry",
            pb.RetryRequest(group=GROUP, lease=LEASE, indexes=[1], reason="x", delay_seconds=1e9),
            InvalidInput,
            "delay_seconds",
        ),
        ("Park", pb.ParkRequest(group=GROUP, lease=LEASE, indexes=[1], reason="x" * 1_001), InvalidInput, "reason"),
        ("ListParked", pb.ListParkedRequest(parent="mail"), InvalidName, "parent"),
        ("ListParked", pb.ListParkedRequest(parent="groups/nobody"), NotFound, "'nobody'"),
        ("ListParked", pb.ListParkedRequest(parent=GROUP, page_token="-1"), InvalidInput, "page_token"),
        ("ReplayParked", pb.ReplayParkedRequest(group=GROUP, indexes=range(1_001)), InvalidInput, "indexes"),
    ],
)
def test_a_wrong_request_is_refused_with_its_field(
    ledger: Ledger, client: Client, method: str, request_: Any, kind: type[ModelLedgerError], said: str
) -> None:
    client.create_group("mail")
    with pytest.raises(kind) as caught:
        call(getattr(client._subscriptions, method), request_)
    assert type(caught.value) is kind
    assert said in caught.value.message
