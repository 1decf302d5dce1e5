"""What consumer groups promise on every database, one promise at a time. All of them at once: test_group_laws.py.

How long a lease lasts: test_group_leases.py.
"""

from __future__ import annotations

import threading

import pytest

from ledger import groups as groups_module
from ledger.errors import AlreadyExists, NotFound, NotReady, Overloaded, Refused
from ledger.group_store import Changing
from tests.groups import World, group, indexes, write


def test_events_are_delivered_once_while_their_lease_lasts(world: World) -> None:
    world.groups.create(group())
    assert world.groups.claim("mail", "a", 10, 60).deliveries == ()
    write(world.store, ["s/1", "s/2", "s/3"])
    first = world.groups.claim("mail", "a", 2, 60)
    assert indexes(first) == [0, 1]
    assert [(delivery.attempt, delivery.last_reason) for delivery in first.deliveries] == [(1, ""), (1, "")]
    assert first.deliveries[0].event == world.store.get(0)
    assert first.end == (1_000_000 + 60) * 1_000
    assert indexes(world.groups.claim("mail", "b", 10, 60)) == [2]
    assert world.groups.claim("mail", "b", 10, 60).deliveries == ()
    assert world.groups.ack("mail", first.lease, [1, 0]).done == (0, 1)
    state = world.groups.get("mail")
    assert (state.group.acked, state.counts.leased, state.counts.waiting, state.behind) == (2, 1, 0, 0)


def test_only_what_the_group_wants_is_delivered(world: World) -> None:
    write(world.store, ["a/1", "a/2"])
    world.groups.create(group(stream_prefix="a/", kinds=("TrainingFailed",), start_index=1, position=1))
    write(world.store, ["a/1", "b/1", "a/12"], "TrainingFailed")
    write(world.store, ["a/3"])
    assert indexes(world.groups.claim("mail", "a", 10, 60)) == [2, 4]


def test_an_attempt_that_a_stopping_consumer_gives_back_does_not_count(world: World) -> None:
    world.groups.create(group(max_attempts=2))
    write(world.store, ["s/1", "s/2"])
    for _ in range(5):
        claimed = world.groups.claim("mail", "a", 10, 60)
        assert [(d.event.position, d.attempt) for d in claimed.deliveries] == [(0, 1), (1, 1)]
        assert world.groups.retry("mail", claimed.lease, [0, 1], 0, "stopped", counted=False).waiting == (0, 1)
    assert world.groups.get("mail").counts.waiting == 2


def test_a_group_is_behind_only_when_there_is_something_for_it(world: World) -> None:
    world.groups.create(group(stream_prefix="a/"))
    write(world.store, ["b/1"] * 5)
    assert world.groups.get("mail").behind == 0
    write(world.store, ["b/1", "a/1", "b/1"])
    assert world.groups.get("mail").behind == 2
    world.groups.claim("mail", "a", 1, 60)
    assert world.groups.get("mail").behind == 0


def test_a_stream_has_one_consumer_at_a_time(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1", "s/1", "s/2", "s/1"])
    first = world.groups.claim("mail", "a", 1, 60)
    assert indexes(first) == [0]
    assert indexes(world.groups.claim("mail", "b", 10, 60)) == [2]
    assert world.groups.get("mail").counts.waiting == 2
    world.groups.ack("mail", first.lease, [0])
    assert indexes(world.groups.claim("mail", "b", 10, 60)) == [1, 3]


def test_a_retry_comes_after_its_delay_and_gives_back_what_must_not_overtake_it(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1", "s/2", "s/1", "s/1"])
    lease = world.groups.claim("mail", "a", 10, 60).lease
    settled = world.groups.retry("mail", lease, [0, 1], 30, "the mail server is away")
    assert (settled.waiting, settled.released, settled.parked) == ((0, 1), (2, 3), ())
    assert world.groups.ack("mail", lease, [2]).lost == (2,)
    world.now += 29
    assert world.groups.claim("mail", "b", 10, 60).deliveries == ()
    world.now += 1
    again = world.groups.claim("mail", "b", 10, 60)
    assert [(d.event.position, d.attempt, d.last_reason) for d in again.deliveries] == [
        (0, 2, "the mail server is away")
    ], "it comes alone"
    world.groups.ack("mail", again.lease, [0])
    world.groups.ack("mail", world.groups.claim("mail", "b", 10, 60).lease, [1])
    rest = world.groups.claim("mail", "b", 10, 60)
    assert [(d.event.position, d.attempt) for d in rest.deliveries] == [(2, 1), (3, 1)], "released: not an attempt"


def test_one_event_retried_does_not_give_back_an_earlier_one_or_another_stream(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1", "s/1", "s/2"])
    lease = world.groups.claim("mail", "a", 10, 60).lease
    assert world.groups.retry("mail", lease, [1], 30, "x").released == ()
    assert world.groups.ack("mail", lease, [0, 2]).done == (0, 2)


def test_after_the_last_attempt_an_event_is_parked(world: World) -> None:
    world.groups.create(group(max_attempts=2))
    write(world.store, ["s/1", "s/2"])
    lease = world.groups.claim("mail", "a", 10, 60).lease
    assert world.groups.retry("mail", lease, [0], 0, "once").waiting == (0,)
    world.groups.ack("mail", lease, [1])
    lease = world.groups.claim("mail", "a", 10, 60).lease
    assert world.groups.retry("mail", lease, [0], 0, "twice").parked == (0,)
    (parked,) = world.groups.parked("mail", 0, 10)
    assert (parked.position, parked.attempts, parked.consumer, parked.reason) == (0, 2, "a", "twice")
    assert world.groups.claim("mail", "a", 10, 60).deliveries == ()


def test_an_event_that_kills_its_consumers_is_parked_alone(world: World) -> None:
    world.groups.create(group(max_attempts=2))
    write(world.store, [f"s/{number}" for number in range(5)])
    done = []
    for _ in range(20):
        claimed = world.groups.claim("mail", "a", 10, 60)
        for position in indexes(claimed):
            if position == 2:
                world.now += 61  # dead
                break
            done += world.groups.ack("mail", claimed.lease, [position]).done
    assert sorted(done) == [0, 1, 3, 4]
    (parked,) = world.groups.parked("mail", 0, 10)
    assert (parked.position, parked.reason) == (2, "delivered 2 times and never settled")


def test_a_parked_event_holds_nothing_back_and_can_be_replayed(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1", "s/1", "s/2"])
    lease = world.groups.claim("mail", "a", 1, 60).lease
    assert world.groups.park("mail", lease, [0, 9], "the address is wrong").parked == (0,)
    assert world.groups.park("mail", lease, [0], "again").lost == (0,)
    lease = world.groups.claim("mail", "a", 10, 60).lease
    assert world.groups.replay("mail", [2]) == ((), 0), "not parked"
    assert world.groups.replay("mail", []) == ((0,), 0)
    assert world.groups.claim("mail", "b", 10, 60).deliveries == (), "its stream is being worked on"
    world.groups.ack("mail", lease, [1, 2])
    replayed = world.groups.claim("mail", "b", 10, 60)
    assert [(d.event.position, d.attempt) for d in replayed.deliveries] == [(0, 1)]


def test_what_is_in_flight_is_bounded(world: World) -> None:
    world.groups.create(group(max_in_flight=3))
    write(world.store, ["s/1"] * 5 + ["s/2"])
    first = world.groups.claim("mail", "a", 1, 60)
    assert world.groups.claim("mail", "b", 10, 60).deliveries == ()
    state = world.groups.get("mail")
    assert (state.counts.leased, state.counts.waiting, state.group.position) == (1, 2, 3)
    world.groups.ack("mail", first.lease, [0])
    assert indexes(world.groups.claim("mail", "b", 10, 60)) == [1, 2, 3]
    assert world.groups.claim("mail", "c", 10, 60).deliveries == ()


def test_replay_takes_no_more_than_the_group_may_hold(world: World) -> None:
    world.groups.create(group(max_in_flight=3))
    write(world.store, [f"s/{number}" for number in range(5)])
    for expected in ([0, 1, 2], [3, 4]):
        claimed = world.groups.claim("mail", "a", 10, 60)
        assert indexes(claimed) == expected
        world.groups.park("mail", claimed.lease, expected, "x")
    assert world.groups.replay("mail", []) == ((0, 1, 2), 2)
    with pytest.raises(Overloaded, match="3 events of the group 'mail' are in flight"):
        world.groups.replay("mail", [])


def test_a_group_that_only_parks_stops(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "MAX_PARKED", 2)
    world.groups.create(group())
    write(world.store, ["s/1", "s/2", "s/3"])
    world.groups.park("mail", world.groups.claim("mail", "a", 2, 60).lease, [0, 1], "x")
    with pytest.raises(NotReady, match="subscriptions parked mail"):
        world.groups.claim("mail", "a", 10, 60)
    world.groups.replay("mail", [0])
    assert indexes(world.groups.claim("mail", "a", 10, 60)) == [0, 2]


def test_a_group_that_was_never_settled_stops_and_can_be_replayed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is parked because its last lease ended stays parked, although the claim that finds it so is refused."""
    monkeypatch.setattr(groups_module, "MAX_PARKED", 2)
    world.groups.create(group(max_attempts=1, max_in_flight=2))
    write(world.store, ["s/1", "s/2", "s/3", "s/4"])
    world.groups.park("mail", world.groups.claim("mail", "a", 1, 60).lease, [0], "x")
    assert indexes(world.groups.claim("mail", "a", 2, 60)) == [1, 2]
    world.now += 61
    for _ in range(2):
        with pytest.raises(NotReady, match="subscriptions parked mail"):
            world.groups.claim("mail", "b", 10, 60)
        counts = world.groups.get("mail").counts
        assert (counts.waiting, counts.parked) == (0, 3)
    assert world.groups.replay("mail", []) == ((0, 1), 1)
    assert indexes(world.groups.claim("mail", "b", 10, 60)) == [0, 1]


def test_reasons_fit_the_message_of_a_claim_too(world: World) -> None:
    world.groups.create(group(max_in_flight=1_000))
    write(world.store, ["s/1"] * 1_000, size=1_500)
    while delivered := indexes(claimed := world.groups.claim("mail", "a", 1_000, 60)):
        world.groups.park("mail", claimed.lease, delivered, "\N{GRINNING FACE}" * 1_000)
    assert len(world.groups.replay("mail", [])[0]) == 1_000
    claimed = world.groups.claim("mail", "a", 1_000, 60)
    assert 100 < len(claimed.deliveries) < 1_000
    sizes = [len(one.event.entry) + len(one.last_reason.encode()) for one in claimed.deliveries]
    assert sum(sizes) < 4 << 20


def test_one_answer_fits_one_message(world: World) -> None:
    world.groups.create(group())
    write(world.store, [f"s/{number}" for number in range(100)], size=60_000)
    seen: list[int] = []
    while claimed := indexes(world.groups.claim("mail", "a", 1_000, 60)):
        assert len(claimed) * 60_000 < 3 << 20
        seen += claimed
    assert seen == list(range(100))
    world.now += 61
    again = indexes(world.groups.claim("mail", "a", 1_000, 60))
    assert again == [0]


def test_large_events_that_were_released_fit_one_message_again(world: World) -> None:
    world.groups.create(group())
    write(world.store, ["s/1"] * 40, size=60_000)
    lease = world.groups.claim("mail", "a", 1_000, 60).lease
    assert len(world.groups.retry("mail", lease, [0], 0, "x").released) == 39
    world.groups.ack("mail", world.groups.claim("mail", "a", 10, 60).lease, [0])
    write(world.store, [f"t/{number}" for number in range(40)], size=60_000)
    seen = []
    while claimed := indexes(world.groups.claim("mail", "a", 1_000, 60)):
        assert len(claimed) * 60_000 < 3 << 20
        seen += claimed
    assert seen == list(range(1, 80))


def test_large_events_that_are_replayed_fit_one_message_again(world: World) -> None:
    world.groups.create(group())
    write(world.store, [f"s/{number}" for number in range(70)], size=60_000)
    while (claimed := world.groups.claim("mail", "a", 1_000, 60)).deliveries:
        world.groups.park("mail", claimed.lease, indexes(claimed), "x")
    assert len(world.groups.replay("mail", [])[0]) == 70
    seen: list[int] = []
    while more := indexes(world.groups.claim("mail", "a", 1_000, 60)):
        assert len(more) * 60_000 < 3 << 20
        seen += more
    assert seen == list(range(70))


def test_a_claim_that_dies_before_its_commit_took_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.groups.create(group())
    write(world.store, ["s/1", "s/1"])
    with monkeypatch.context() as patch:

        def die(change: Changing, **values: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(Changing, "set", die)
        with pytest.raises(KeyboardInterrupt):
            world.groups.claim("mail", "a", 10, 60)
    assert world.groups.get("mail").counts.leased == 0
    assert indexes(world.groups.claim("mail", "b", 10, 60)) == [0, 1]


def test_consumers_in_many_threads_get_every_event_once(world: World) -> None:
    world.groups.create(group())
    write(world.store, [f"s/{number % 7}" for number in range(60)])
    taken: list[int] = []

    def consume(name: str) -> None:
        while claimed := world.groups.claim("mail", name, 3, 60):
            if not claimed.deliveries:
                return
            taken.extend(world.groups.ack("mail", claimed.lease, indexes(claimed)).done)

    threads = [threading.Thread(target=consume, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    consume("last")  # a thread may have ended while all streams were in other hands
    assert sorted(taken) == list(range(60))


def test_a_sparse_group_moves_on_in_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.event_messages.MAX_SCAN", 10)
    monkeypatch.setattr("ledger.store.RARE", 0)
    world.groups.create(group(stream_prefix="rare/"))
    write(world.store, [f"s/{number}" for number in range(1_005)])
    assert world.groups.claim("mail", "a", 10, 60).deliveries == ()
    assert world.groups.get("mail").behind == 0
    write(world.store, [f"s/{number}" for number in range(35)])
    write(world.store, ["rare/1"])
    assert indexes(world.groups.claim("mail", "a", 10, 60)) == [1_040]


def test_groups_are_made_once_and_closed_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = world.groups.create(group(kinds=("A", "B")))
    write(world.store, ["s/1"])
    assert world.groups.create(group(kinds=("A", "B"))).group == made.group
    with pytest.raises(AlreadyExists, match="another group named 'mail'"):
        world.groups.create(group(kinds=("A",)))
    with pytest.raises(NotFound, match="no group 'post'"):
        world.groups.claim("post", "a", 1, 60)
    monkeypatch.setattr(groups_module, "MAX_GROUPS", 2)
    world.groups.create(group("post"))
    with pytest.raises(Overloaded, match="2 open groups"):
        world.groups.create(group("third"))
    assert world.groups.close("post", "moved").group.closed_reason == "moved"
    assert world.groups.close("post", "why?").group.closed_reason == "moved"
    with pytest.raises(Refused, match="the group 'post' was closed: moved"):
        world.groups.claim("post", "a", 1, 60)
    with pytest.raises(Refused, match="was closed"):
        world.groups.create(group("post"))
    world.groups.create(group("third"))
    assert [state.group.name for state in world.groups.page("", 10)] == ["mail", "post", "third"]
    assert [state.group.name for state in world.groups.page("mail", 1)] == ["post"]
