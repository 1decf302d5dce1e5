"""What store and sequencer promise on every database: order, durability of order, proofs, reads, views."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from ledger import envelope, statement
from ledger.checkpoint import open_checkpoint
from ledger.committer import Appended, Committer
from ledger.errors import EventIdReused, ModelLedgerError, NotFound, Overloaded, UnknownMaterial, WrongStreamVersion
from ledger.merkle import consistency_proof, inclusion_proof, leaf_hash, root, verify_consistency, verify_inclusion
from ledger.sequencer import Sequencer
from ledger.store import Store
from tests.audit import verify_whole_log
from tests.databases import StoreFactory
from tests.logs import ACTORS, Log, artifact, event_of, signed


async def _all_at_once(sequencer: Sequencer, requests: Sequence[Sequence[bytes]]) -> list[Appended | BaseException]:
    answers = await asyncio.gather(*map(sequencer.append, requests), return_exceptions=True)
    await sequencer.close()
    return answers


def _checkpoint_sizes(store: Store) -> list[int]:
    with store._reader.connect() as connection:
        return list(connection.execute(text("SELECT size FROM checkpoints ORDER BY size")).scalars())


# Order


def test_a_whole_history_is_accepted_and_verifies(log: Log, store_factory: StoreFactory) -> None:
    history = log.history()
    answers = [log.append(entry) for entry in history]
    first = answers[0].indexes[0]
    assert [index for answer in answers for index in answer.indexes] == list(range(first, first + len(history)))
    assert verify_whole_log(log.store) == log.store.head.size == first + len(history)
    assert store_factory.reopen(log.store).head.checkpoint == log.store.head.checkpoint


def test_positions_have_no_gaps_after_refusals(log: Log) -> None:
    start = log.store.head.size
    for number in range(5):
        assert log.append(log.dataset(f"a{number}")).indexes == (start + number,)
        unknown = log.sign("registry", "BaseModelWithdrawn", "base-models/x", [artifact("base-models/x")], {})
        with pytest.raises(Exception, match="no earlier event introduced"):
            log.append(unknown)
        log._versions["base-models/x"] = 0
    assert [row.position for row in log.store.select(limit=None)] == list(range(start + 5))


def test_concurrent_appends_share_transactions_and_a_bad_one_fails_alone(log: Log) -> None:
    before = len(_checkpoint_sizes(log.store))
    start = log.store.head.size
    requests = [[entry] for entry in log.datasets(31)]
    bad = log.sign("trainer", "DatasetRegistered", "datasets/acme/bad", [artifact("gguf/bad")], {"org": "acme"})
    requests.insert(16, [bad])
    answers = asyncio.run(_all_at_once(log.sequencer, requests))
    assert [isinstance(answer, Exception) for answer in answers] == [request == [bad] for request in requests]
    indexes = [answer.indexes[0] for answer in answers if isinstance(answer, Appended)]
    assert sorted(indexes) == list(range(start, start + 31))
    assert len(_checkpoint_sizes(log.store)) - before < 31 / 4, "31 appends should share a few commits"
    for answer, (entry,) in zip(answers, requests, strict=True):
        if isinstance(answer, Appended):
            checkpoint = open_checkpoint(answer.checkpoint, [log.store.signer.verifier], "test.log")
            assert checkpoint.size == answer.size
            verify_inclusion(leaf_hash(entry), answer.indexes[0], answer.size, answer.proofs[0], checkpoint.root)
    verify_whole_log(log.store)


@pytest.mark.parametrize(
    "poison",
    [
        b'"\\ud800"',  # half a surrogate pair: not storable as text
        b'"datasets/a\\u0000b"',  # PostgreSQL text has no NUL
        b'"datasets/' + b"x" * 301 + b'"',
    ],
    ids=["surrogate", "nul", "long"],
)
def test_a_name_no_database_could_store_fails_alone(log: Log, poison: bytes) -> None:
    good, event = log.dataset("good"), log.event("trainer", "DatasetRegistered", "datasets/a/b", [artifact("X")], _FAQ)
    payload = statement.encode(event).replace(b'"X"', poison)
    bad = envelope.sign(payload, [ACTORS["trainer"]])
    answers = asyncio.run(_all_at_once(log.sequencer, [[bad], [good]]))
    assert type(answers[0]).__name__ == "MalformedEvent"
    assert isinstance(answers[1], Appended)


def test_a_number_that_overflows_a_double_fails_alone(log: Log) -> None:
    log.append(log.base())
    data = {"target": "t", "metrics": {"m": 77}}
    event = log.event("trainer", "EvaluationCompleted", "models/a/b", [artifact("base-models/tiny")], data)
    payload = statement.encode(event).replace(b"77", b"1" + b"0" * 400)
    bad = envelope.sign(payload, [ACTORS["trainer"]])
    answers = asyncio.run(_all_at_once(log.sequencer, [[bad], [log.dataset()]]))
    assert type(answers[0]).__name__ == "MalformedEvent"
    assert isinstance(answers[1], Appended)


def test_a_request_is_all_or_nothing(log: Log) -> None:
    size = log.store.head.size
    wrong = log.sign("registry", "BaseModelWithdrawn", "base-models/x", [artifact("base-models/x")], {})
    with pytest.raises(Exception, match=r"envelopes\[1\]"):
        log.append(log.dataset(), wrong)
    assert log.store.head.size == size


def test_a_refused_request_leaves_no_trace_in_its_batch(log: Log) -> None:
    """Its good first event does not count for the next request, which takes the same stream."""
    wrong = log.sign("registry", "BaseModelWithdrawn", "base-models/x", [artifact("base-models/x")], {})
    first = log.dataset()
    log._versions.clear()
    answers = asyncio.run(_all_at_once(log.sequencer, [[first, wrong], [log.dataset()]]))
    assert isinstance(answers[0], ModelLedgerError)
    assert isinstance(answers[1], Appended)
    verify_whole_log(log.store)


def test_an_event_may_build_on_an_earlier_one_of_its_request_or_batch(log: Log) -> None:
    answer = log.append(log.base(), log.dataset(), *log.training())
    assert len(answer.indexes) == 8
    verify_whole_log(log.store)


def test_too_many_waiting_events_are_refused_and_not_forgotten(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.sequencer.MAX_QUEUED", 10)
    answers = asyncio.run(_all_at_once(log.sequencer, [[entry] for entry in log.datasets(12)]))
    assert [isinstance(answer, Overloaded) for answer in answers] == [False] * 10 + [True] * 2
    verify_whole_log(log.store)


def test_a_caller_that_goes_away_does_not_undo_its_event(log: Log) -> None:
    entry = log.dataset()

    async def leave() -> None:
        task = asyncio.create_task(log.sequencer.append([entry]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await log.sequencer.close()

    asyncio.run(leave())
    assert log.store.get_by_id(event_of(entry).id).entry == entry


# The same event again


def test_the_same_id_and_payload_again_gives_the_first_answer(log: Log, store_factory: StoreFactory) -> None:
    event = log.event("trainer", "DatasetRegistered", "datasets/acme/faq", [artifact("datasets/acme/faq")], _FAQ)
    first, again = signed(event), signed(event)
    assert first != again, "ECDSA signatures are randomised"
    index = log.append(first).indexes
    size = log.store.head.size
    assert log.append(again).indexes == index
    log.append(log.dataset("other"))
    reopened = Committer(store_factory.reopen(log.store))
    answer = reopened.append([again])
    assert answer.indexes == index
    checkpoint = open_checkpoint(answer.checkpoint, [log.store.signer.verifier], "test.log")
    verify_inclusion(leaf_hash(first), index[0], answer.size, answer.proofs[0], checkpoint.root)
    assert reopened.store.head.size == size + 1
    assert reopened.store.get(index[0]).entry == first


_FAQ = {"org": "acme", "name": "faq", "examples": 100, "band": "minimum"}


def test_the_same_id_with_another_payload_is_an_error(log: Log) -> None:
    event = log.event("trainer", "DatasetRegistered", "datasets/acme/faq", [artifact("datasets/acme/faq")], _FAQ)
    (index,) = log.append(signed(event)).indexes
    with pytest.raises(EventIdReused, match=f"index {index}"):
        log.append(signed(replace(event, data={**_FAQ, "examples": 101})))


def test_the_same_event_twice_in_one_batch_stands_once(log: Log) -> None:
    entry = log.dataset()
    answers = asyncio.run(_all_at_once(log.sequencer, [[entry], [entry], [entry, entry]]))
    assert {index for answer in answers for index in answer.indexes} == {log.store.head.size - 1}
    verify_whole_log(log.store)


def test_the_expected_version_decides_a_race(log: Log) -> None:
    log.append(log.base(), log.dataset(), log.training()[0])
    request = artifact("requests/run1")
    claims = [
        log.sign(
            "trainer",
            "TrainingStarted",
            "training-runs/run1",
            [request],
            {"run": "run1", "worker": f"w{n}", "attempt": 1},
            version=2,
        )
        for n in range(8)
    ]
    answers = asyncio.run(_all_at_once(log.sequencer, [[claim] for claim in claims]))
    assert sum(isinstance(answer, Appended) for answer in answers) == 1
    assert sum(isinstance(answer, WrongStreamVersion) for answer in answers) == 7
    verify_whole_log(log.store)


def test_every_violation_is_reported_at_once(log: Log) -> None:
    bad = log.sign(
        "trainer",
        "TrainingCompleted",
        "models/x",
        [artifact("gguf/x")],
        {"run": "r", "datasetSha256": "0" * 64, "bogus": 1},
        [artifact("base-models/nobody")],
        version=5,
    )
    with pytest.raises(Exception, match="bogus") as caught:
        log.append(bad)
    fields = {violation.field for violation in caught.value.violations}
    assert {field.removeprefix("envelopes[0].") for field in fields} == {
        "predicate.data",
        "predicate.event.stream",
        "predicate.event.version",
        "predicate.data.trained",
        "predicate.materials[0]",
        "subject[0]",
        "predicate.data.datasetSha256",
    }


_WITHDRAWAL = ("base-models/tiny", [artifact("base-models/tiny")], {"key": "tiny", "reason": "licence"})


def test_a_digest_under_two_names_is_revoked_once(log: Log) -> None:
    twin = artifact("base-models/tiny")._replace(name="base-models/twin")
    data = {"key": "twin", "architecture": "llama", "size": "9"}
    log.append(log.base(), log.sign("trainer", "BaseModelRegistered", "base-models/twin", [twin], data))
    stream, subjects, reason = _WITHDRAWAL
    log.append(log.sign("registry", "BaseModelWithdrawn", stream, [*subjects, twin], reason))
    assert verify_whole_log(log.store) == log.store.head.size


# Proofs


def test_every_event_and_every_earlier_tree_is_provable(log: Log) -> None:
    """Inclusion of every event in the newest tree, consistency of every size with it; smaller pairs sampled."""
    for start in range(0, 1_000, 125):
        log.append(*log.datasets(125, start=start))
    head = log.store.head
    tiles = log.store.tiles(head)
    leaves = [leaf_hash(entry) for entry in log.store.entries(0, head.size)]
    whole = root(leaves)
    assert open_checkpoint(head.checkpoint, [log.store.signer.verifier], "test.log").root == whole
    for index, leaf in enumerate(leaves):
        verify_inclusion(leaf, index, head.size, inclusion_proof(tiles, index, head.size), whole)
    for old in range(1, head.size + 1):
        verify_consistency(old, head.size, root(leaves[:old]), whole, consistency_proof(tiles, old, head.size))
    for size in (1, 2, 3, 255, 256, 257, 511, 512, 513, 767, 768, 769, 1_000):
        smaller = root(leaves[:size])
        for index in {0, size // 2, size - 1}:
            verify_inclusion(leaves[index], index, size, inclusion_proof(tiles, index, size), smaller)
            old = index + 1
            verify_consistency(old, size, root(leaves[:old]), smaller, consistency_proof(tiles, old, size))


# Reads


def test_select_filters(log: Log) -> None:
    log.append(*log.history())
    everything = log.store.select(limit=None)

    def positions(**filters: object) -> list[int]:
        return [row.position for row in log.store.select(**filters)]

    of_run = [row.position for row in everything if row.stream == "training-runs/run1"]
    assert positions(stream="training-runs/run1") == of_run
    assert positions(stream="training-runs/run1", after_version=1, up_to_version=3) == of_run[1:3]
    assert positions(stream="training-runs/run1", descending=True, limit=2) == of_run[:1:-1]
    assert positions(stream="training-runs/run") == []
    assert positions(stream_prefix="training-runs/run") == of_run
    assert positions(stream_prefix="actors/") == list(range(1, 7))
    assert positions(kinds=["LogCreated", "VersionActivated"]) == [0, 14]
    assert positions(start=3, stop=6) == [3, 4, 5]
    assert positions(start=3, limit=2) == [3, 4]
    assert positions(start=len(everything)) == []
    assert log.store.entries(2, 4) == [row.entry for row in everything[2:4]]


def test_events_at_many_positions_are_read_at_once(log: Log) -> None:
    log.append(*log.datasets(600))
    size = log.store.head.size
    wanted = [7, 3, 3, *range(size - 1, -1, -1)]  # more than one statement asks for
    assert log.store.get_all(wanted) == log.store.select(limit=None)
    assert log.store.get_all([9, 0, 9]) == [log.store.get(0), log.store.get(9)]
    assert log.store.get_all([]) == []
    with pytest.raises(NotFound, match=f"no event {size};"):
        log.store.get_all([0, size + 1, size])


def test_a_stream_prefix_is_taken_literally(log: Log) -> None:
    for name in ("a_b", "aXb", "A_b", "a_b.c"):
        log.append(log.dataset(name))
    found = [row.stream for row in log.store.select(stream_prefix="datasets/acme/a_b")]
    assert found == ["datasets/acme/a_b", "datasets/acme/a_b.c"]


def test_what_is_not_there_is_not_found(log: Log) -> None:
    assert log.store.get(0).kind == "LogCreated"
    for position in (-1, log.store.head.size):
        with pytest.raises(NotFound, match=str(position)):
            log.store.get(position)
    with pytest.raises(NotFound):
        log.store.get_by_id("no such id")


def test_listeners_and_waiters_hear_of_a_commit(log: Log) -> None:
    heads = []
    log.store.listeners.add(heads.append)
    size = log.store.head.size
    assert not log.store.wait(size, timeout=0.01)
    log.append(log.dataset())
    assert log.store.wait(size, timeout=0.01)
    assert [head.size for head in heads] == [size + 1]


def test_unknown_material_is_the_reason_not_the_lost_race(log: Log) -> None:
    both = log.sign("trainer", "TrainingRequested", "training-runs/r", [artifact("requests/r")], {}, version=9)
    with pytest.raises(Exception, match="is at version 0") as caught:
        log.append(both)
    assert not isinstance(caught.value, WrongStreamVersion)
    wrong = log.sign("registry", "BaseModelWithdrawn", *_WITHDRAWAL, version=9)
    with pytest.raises(UnknownMaterial):
        log.append(wrong)
