"""The registry over gRPC: what it answers, what its commands record, and what it refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
from modelledger.ledger.v1 import registry_pb2 as pb

from ledger.errors import Damaged, Unreachable
from ledger.registry_view import REGISTRY_VIEW, fold_registry
from ledger.views import ViewRunner
from tests.log_story import Story
from tests.registry_calls import MODEL, V10, V11, WHO, reader, refusal


def test_versions_are_listed_newest_first_by_number_and_found_by_alias(story: Story, ask: Any) -> None:
    base, data, chain = story.first_version()
    for minor in range(1, 11):
        chain = story.next_version((1, minor), base, data, chain, f"v1.{minor - 1}")

    async def questions(stub: Any) -> None:
        numbers, token, pages = [], "", 0
        while True:
            request = pb.ListVersionsRequest(parent=MODEL, page_size=4, page_token=token)
            answer = await stub.ListVersions(request)
            numbers += [version.version for version in answer.versions]
            token, pages = answer.next_page_token, pages + 1
            if not token:
                break
        assert numbers == [f"v1.{minor}" for minor in range(10, -1, -1)]
        assert pages == 3
        assert (await stub.GetVersion(pb.GetVersionRequest(name=f"{MODEL}/versions/latest"))).version.version == "v1.10"
        nothing_active = stub.GetVersion(pb.GetVersionRequest(name=f"{MODEL}/versions/active"))
        assert await refusal(nothing_active) == ("NOT_FOUND", "NOT_FOUND")
        found = (await stub.GetVersion(pb.GetVersionRequest(name=V11))).version
        assert found.training.trained[0].validation_loss == 0.625
        assert found.request.options["seed"] == "7"
        assert found.record.parent_version == "v1.0"
        assert [len(a.chain) for a in found.record.adapters] == [2]
        models = (await stub.ListModels(pb.ListModelsRequest(parent="orgs/-"))).models
        assert [(m.name, m.latest_version, m.active_version, m.versions) for m in models] == [(MODEL, "v1.10", "", 11)]
        assert not (await stub.ListModels(pb.ListModelsRequest(parent="orgs/acm"))).models

    ask(questions)


def test_activation_is_recorded_once_with_who_and_why(story: Story, ask: Any) -> None:
    story.first_version()

    async def questions(stub: Any) -> None:
        before = story.store.head.size
        asked = pb.ActivateVersionRequest(name=V10, reason="it is better", request_id="one")
        first = (await stub.ActivateVersion(asked, metadata=WHO)).activation
        assert (first.event_index, first.record.caller.id, first.record.reason) == (before, "local:bob", "it is better")
        assert (await stub.ActivateVersion(asked, metadata=WHO)).activation == first
        again = pb.ActivateVersionRequest(name=V10, reason="once more", request_id="two")
        assert (await stub.ActivateVersion(again, metadata=WHO)).activation == first
        assert story.store.head.size == before + 1
        reused = pb.ActivateVersionRequest(name=V10, reason="something else", request_id="one")
        assert await refusal(stub.ActivateVersion(reused, metadata=WHO)) == ("ALREADY_EXISTS", "EVENT_ID_REUSED")
        version = (await stub.GetVersion(pb.GetVersionRequest(name=f"{MODEL}/versions/active"))).version
        assert (version.version, version.active) == ("v1.0", True)

    ask(questions)


@pytest.mark.parametrize(
    ("name", "reason", "expected"),
    [
        (f"{MODEL}/versions/v9.9", "x", ("NOT_FOUND", "NOT_FOUND")),
        ("orgs/acme/models/other/versions/v1.0", "x", ("NOT_FOUND", "NOT_FOUND")),
        (f"{MODEL}/versions/v01.0", "x", ("INVALID_ARGUMENT", "INVALID_NAME")),
        (f"{MODEL}/versions/v1.0\n", "x", ("INVALID_ARGUMENT", "INVALID_NAME")),
        (f"{MODEL}/versions/latest", "x", ("INVALID_ARGUMENT", "INVALID_NAME")),
        ("acme/assistant", "x", ("INVALID_ARGUMENT", "INVALID_NAME")),
        ("", "x", ("INVALID_ARGUMENT", "INVALID_NAME")),
        (V10, " ", ("INVALID_ARGUMENT", "INVALID_INPUT")),
        (V10, "x" * 1001, ("INVALID_ARGUMENT", "INVALID_INPUT")),
    ],
)
def test_what_cannot_be_activated_changes_nothing(
    story: Story, ask: Any, name: str, reason: str, expected: tuple[str, str]
) -> None:
    story.first_version()
    before = story.store.head.size

    async def questions(stub: Any) -> None:
        assert await refusal(stub.ActivateVersion(pb.ActivateVersionRequest(name=name, reason=reason))) == expected

    ask(questions)
    assert story.store.head.size == before


def test_many_activations_at_once_all_end_and_one_version_is_active(story: Story, ask: Any) -> None:
    base, data, chain = story.first_version()
    story.next_version((1, 1), base, data, chain, "v1.0")

    async def questions(stub: Any) -> None:
        asked = [pb.ActivateVersionRequest(name=n, reason="race", request_id=n) for n in (V10, V11) * 8]
        answers = await asyncio.gather(*(stub.ActivateVersion(r) for r in asked), return_exceptions=True)
        failed = [a.code().name for a in answers if isinstance(a, grpc.aio.AioRpcError)]
        assert set(failed) <= {"ABORTED"}
        history = (await stub.ListActivations(pb.ListActivationsRequest(parent=MODEL))).activations
        versions = (await stub.ListVersions(pb.ListVersionsRequest(parent=MODEL))).versions
        assert [v.version for v in versions if v.active] == [history[0].record.version]
        # One event per request id at most, and each names the version that it replaced.
        assert len(history) == 2
        assert history[0].record.previous_version == history[1].record.version

    ask(questions)


def test_rollback_leads_further_back_each_time_and_passes_over_revoked_versions(story: Story, ask: Any) -> None:
    base, data, chain = story.first_version()
    chains = {"v1.0": chain}
    for minor in (1, 2, 3):
        chain = story.next_version((1, minor), base, data, chain, f"v1.{minor - 1}")
        chains[f"v1.{minor}"] = chain
    # Not descended from v1.2, so that revoking v1.2 leaves it usable.
    for version in ("v1.0", "v1.1", "v1.2"):
        story.activate("acme", "assistant", version, chains[version][-1:])

    async def questions(stub: Any) -> None:
        async def rollback(request_id: str) -> Any:
            request = pb.RollbackVersionRequest(parent=MODEL, reason="bad answers", request_id=request_id)
            return (await stub.RollbackVersion(request)).activation

        first = await rollback("a")
        assert (first.record.version, first.record.previous_version, first.record.rollback) == ("v1.1", "v1.2", True)
        assert await rollback("a") == first
        assert (await rollback("b")).record.version == "v1.0"
        assert await refusal(rollback("c")) == ("FAILED_PRECONDITION", "REFUSED")
        for name in (V11, f"{MODEL}/versions/v1.2"):
            await stub.ActivateVersion(pb.ActivateVersionRequest(name=name, reason="again"))
        revoked = await stub.RevokeVersion(pb.RevokeVersionRequest(name=V11, reason="leaks names"))
        assert revoked.version.revoked
        assert (await rollback("d")).record.version == "v1.0"

    ask(questions)


def test_a_revoked_version_taints_what_is_made_from_it_and_is_not_served(story: Story, ask: Any) -> None:
    base, data, chain = story.first_version()
    longer = story.next_version((1, 1), base, data, chain, "v1.0")
    old = story.quantize("q-1", "acme", "assistant", "v1.0", base, chain)
    story.quantize("q-2", "acme", "assistant", "v1.1", base, longer)
    story.activate("acme", "assistant", "v1.1", longer[-1:])

    async def questions(stub: Any) -> None:
        served = await stub.ListServable(pb.ListServableRequest(name="acme/assistant"))
        assert [f.version for f in served.files] == ["v1.1"]
        answer = await stub.RevokeVersion(pb.RevokeVersionRequest(name=V10, reason="wrong data", request_id="r"))
        assert answer.version.revoked
        size = story.store.head.size
        await stub.RevokeVersion(pb.RevokeVersionRequest(name=V10, reason="wrong data", request_id="r"))
        await stub.RevokeVersion(pb.RevokeVersionRequest(name=V10, reason="wrong data"))
        assert story.store.head.size == size
        child = (await stub.GetVersion(pb.GetVersionRequest(name=V11))).version
        assert child.revoked
        assert child.files[0].revoked
        served = await stub.ListServable(pb.ListServableRequest(name="acme/assistant"))
        assert not served.files
        assert "v1.1 is active but adapters/run-1/tiny was revoked at index" in served.reason
        again = stub.ActivateVersion(pb.ActivateVersionRequest(name=V10, reason="x"))
        assert await refusal(again) == ("FAILED_PRECONDITION", "REFUSED")
        lineage = await stub.GetLineage(pb.GetLineageRequest(name=base.sha256, descendants=True))
        revoked = {n.name for n in lineage.nodes if n.revoked}
        assert "adapters/run-1-1/tiny" in revoked
        assert old.name in revoked
        assert "base-models/tiny" not in revoked

    ask(questions)


def test_an_event_that_cannot_be_folded_stops_every_read_with_its_index(story: Story) -> None:
    """And the position stays in front of it, so that a repaired program goes on where this one stopped."""
    story.base("tiny")
    stop_at = story.store.head.size - 1

    def fragile(event: Any, index: int, rows: Any) -> None:
        if index == stop_at:
            raise KeyError("no such field")
        fold_registry(event, index, rows)

    view = ViewRunner(story.store, REGISTRY_VIEW, fragile)
    view.start()
    with pytest.raises(Damaged, match=f"event {stop_at} "):
        view.wait_for(story.store.head.size, 10)
    with pytest.raises(Damaged, match=f"event {stop_at} "):
        asyncio.run(reader(story, view).read(lambda rows: rows.next_position))
    view.stop()
    repaired = ViewRunner(story.store, REGISTRY_VIEW, fold_registry)
    repaired.start()
    repaired.wait_for(story.store.head.size, 10)
    repaired.stop()
    assert ViewRunner(story.store, REGISTRY_VIEW, fold_registry).position == story.store.head.size


def test_a_view_that_does_not_run_answers_nothing_old(story: Story) -> None:
    view = ViewRunner(story.store, REGISTRY_VIEW, fold_registry)
    with pytest.raises(Unreachable):
        asyncio.run(reader(story, view).read(lambda rows: rows.next_position))


def test_a_view_can_be_rebuilt_while_it_is_read(story: Story) -> None:
    """A reader gets the whole answer or is told to retry; never the half of a rebuilt view."""
    story.first_version()
    view = ViewRunner(story.store, REGISTRY_VIEW, fold_registry)
    view.start()

    reading = reader(story, view)

    async def read_all_along() -> None:
        rebuilding = asyncio.get_running_loop().run_in_executor(None, lambda: [view.rebuild() for _ in range(5)])
        while not rebuilding.done():
            try:
                assert await reading.read(lambda rows: rows.get("model/acme/assistant")) is not None
            except Unreachable:
                await asyncio.sleep(0.001)
        await rebuilding
        assert await reading.read(lambda rows: rows.get("model/acme/assistant")) is not None

    asyncio.run(read_all_along())
    view.stop()
