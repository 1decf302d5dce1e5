"""The registry over gRPC: what it answers, what its commands record, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import yaml
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from modelledger.ledger.v1 import registry_pb2 as pb
from modelledger.ledger.v1 import registry_pb2_grpc

from ledger.errors import Damaged, Unreachable
from ledger.kit.interceptors import CallInterceptor
from ledger.registry import Registry
from ledger.registry_view import REGISTRY_VIEW, fold_registry
from ledger.view_reader import ViewReader
from ledger.views import ViewRunner
from tests.log_story import Story, digest

MODEL = "orgs/acme/models/assistant"
V10, V11 = f"{MODEL}/versions/v1.0", f"{MODEL}/versions/v1.1"
WHO = (("modelledger-user", "bob"),)


def reader(story: Story, view: ViewRunner) -> ViewReader:
    return ViewReader(story.store, REGISTRY_VIEW, partial(asyncio.to_thread, view.wait_for))


@asynccontextmanager
async def serving(story: Story) -> AsyncIterator[Any]:
    """A stub for a registry over the story's log."""
    view = ViewRunner(story.store, REGISTRY_VIEW, fold_registry)
    view.start()
    server = grpc.aio.server(interceptors=[CallInterceptor()])
    registry = Registry(story.store, reader(story, view), story.actor("registry"))
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield registry_pb2_grpc.RegistryServiceStub(channel)
    finally:
        await server.stop(None)
        await story.sequencer.close()
        view.stop()


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


@pytest.fixture
def ask(story: Story) -> Callable[[Callable[[Any], Awaitable[Any]]], Any]:
    """Run a coroutine function that is given the stub."""

    def run(questions: Callable[[Any], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with serving(story) as stub:
                return await questions(stub)

        return asyncio.run(main())

    return run


async def refusal(call: Awaitable[Any]) -> tuple[str, str]:
    """(code, reason) of the error a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(caught.value)
    assert status.details[0].Unpack(info)
    return caught.value.code().name, info.reason


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


def test_servable_says_what_is_missing(story: Story, ask: Any) -> None:
    base, _, adapters = story.first_version()

    async def questions(stub: Any) -> None:
        async def servable(name: str) -> Any:
            return await stub.ListServable(pb.ListServableRequest(name=name))

        assert "there is no model acme/other" in (await servable("acme/other")).reason
        assert "set-active acme/assistant v1.0" in (await servable("acme/assistant")).reason
        await stub.ActivateVersion(pb.ActivateVersionRequest(name=V10, reason="go"))
        assert (
            await servable("acme/assistant")
        ).reason == "version v1.0 is active but has no GGUF yet; run: modelledger quantize acme/assistant v1.0"
        assert "run: modelledger quantize base/tiny" in (await servable("base/tiny")).reason
        assert "there is no base model" in (await servable("base/huge")).reason
        assert await refusal(servable("acme")) == ("INVALID_ARGUMENT", "INVALID_NAME")

    ask(questions)
    del base, adapters


def test_only_a_gguf_made_from_the_version_is_served_under_its_name(story: Story, ask: Any) -> None:
    base, data, adapters = story.first_version()
    story.activate("acme", "assistant", "v1.0", adapters)
    others = story.train("run-x", [base], data)
    story.quantize("q-wrong", "acme", "assistant", "v1.0", base, others)
    story.quantize("q-bare", "acme", "assistant", "v1.0", base, [])
    right = story.quantize("q-right", "acme", "assistant", "v1.0", base, adapters)
    other = story.base("small")
    mixed = story.quantize("q-right-with-more", "acme", "assistant", "v1.0", base, [*adapters, other])
    plain = story.quantize("q-base", "base", "tiny", "", base, [])

    async def questions(stub: Any) -> None:
        served = await stub.ListServable(pb.ListServableRequest(name="acme/assistant"))
        assert [f.file.file.sha256 for f in served.files] == [mixed.sha256, right.sha256]
        assert served.files[0].base_sha256 == base.sha256
        story.withdraw_base(other)
        served = await stub.ListServable(pb.ListServableRequest(name="acme/assistant"))
        assert [f.file.file.sha256 for f in served.files] == [right.sha256]
        served = await stub.ListServable(pb.ListServableRequest(name="base/tiny"))
        assert [(f.file.file.sha256, f.version) for f in served.files] == [(plain.sha256, "")]
        story.withdraw_base(base)
        served = await stub.ListServable(pb.ListServableRequest(name="base/tiny"))
        assert not served.files
        assert "revoked" in served.reason
        bases = (await stub.ListBaseModels(pb.ListBaseModelsRequest())).base_models
        assert [(b.name, b.withdrawn) for b in bases] == [("base-models/small", True), ("base-models/tiny", True)]

    ask(questions)


def test_what_was_active_at_a_time(story: Story, ask: Any) -> None:
    base, data, chain = story.first_version()
    story.next_version((1, 1), base, data, chain, "v1.0")

    async def questions(stub: Any) -> None:
        times = []
        for name in (V10, V11):
            times.append(
                (await stub.ActivateVersion(pb.ActivateVersionRequest(name=name, reason="go"))).activation.time
            )
            await asyncio.sleep(0.005)

        async def at(time: str) -> list[str]:
            answer = await stub.ListActivations(pb.ListActivationsRequest(parent=MODEL, at_time=time))
            return [a.record.version for a in answer.activations]

        assert await at("2020-01-01T00:00:00Z") == []
        assert await at(times[0]) == ["v1.0"]
        assert await at(times[0].replace("Z", "000+00:00")) == ["v1.0"]
        assert await at(times[1]) == ["v1.1"]
        assert await at("2999-01-01T00:00:00+02:00") == ["v1.1"]
        for wrong in ("yesterday", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00"):
            assert await refusal(at(wrong)) == ("INVALID_ARGUMENT", "INVALID_INPUT")

    ask(questions)


def test_datasets_newest_first_one_per_name_and_strict_tokens(story: Story, ask: Any) -> None:
    story.dataset("acme", "a")
    story.dataset("acme", "b")
    newer = story.dataset("acme", "a", "second")
    story.dataset("acme-labs", "c")

    async def questions(stub: Any) -> None:
        async def listing(**fields: Any) -> Any:
            return await stub.ListDatasets(pb.ListDatasetsRequest(parent="orgs/acme", **fields))

        found = await listing()
        assert [d.name for d in found.datasets] == ["orgs/acme/datasets/a", "orgs/acme/datasets/b"]
        assert found.datasets[0].sha256 == newer.sha256
        token = (await listing(page_size=1)).next_page_token
        assert [d.record.name for d in (await listing(page_token=token)).datasets] == ["b"]
        forged = base64.urlsafe_b64encode(b"dataset/acme/7").decode().rstrip("=")
        wrong = ["x", token + "A", token + "=", "é", forged]
        for text in wrong:
            assert await refusal(listing(page_token=text)) == ("INVALID_ARGUMENT", "INVALID_INPUT")
        other = stub.ListDatasets(pb.ListDatasetsRequest(parent="orgs/acme-labs", page_token=token))
        assert await refusal(other) == ("INVALID_ARGUMENT", "INVALID_INPUT")
        assert await refusal(listing(page_size=-1)) == ("INVALID_ARGUMENT", "INVALID_INPUT")

    ask(questions)


def test_lineage_of_a_version_names_what_went_in(story: Story, ask: Any) -> None:
    base, data, chain = story.first_version()
    longer = story.next_version((1, 1), base, data, chain, "v1.0")

    async def questions(stub: Any) -> None:
        answer = await stub.GetLineage(pb.GetLineageRequest(name=V11))
        assert answer.nodes[0].sha256 == longer[-1].sha256
        assert {n.sha256 for n in answer.nodes} == {a.sha256 for a in (base, data, *longer)}
        assert (chain[0].sha256, longer[-1].sha256) in {(e.material, e.subject) for e in answer.edges}
        unknown = stub.GetLineage(pb.GetLineageRequest(name=digest("nothing")))
        assert await refusal(unknown) == ("NOT_FOUND", "NOT_FOUND")
        no_digest = stub.GetLineage(pb.GetLineageRequest(name="abc"))
        assert await refusal(no_digest) == ("INVALID_ARGUMENT", "INVALID_NAME")

    ask(questions)


def test_files_are_rendered_from_the_log_to_the_same_bytes(story: Story, ask: Any) -> None:
    base, data = story.base("tiny"), story.dataset("acme", "help")
    story.request("run-0", "acme", "assistant", [base], data)
    story.fail("run-0", "out of *memory*\n# not a heading")
    story.request("run-1", "acme", "assistant", [base], data)
    adapters = story.train("run-1", [base], data)
    story.version("acme", "assistant", (1, 0), "run-1", [base], data, [adapters])
    chain = story.next_version((1, 1), base, data, adapters, "v1.0")
    story.fail_quantization("q-0", "acme", "assistant", "v1.1", base, "disk full")
    story.fail_quantization("q-old", "acme", "assistant", "v1.0", base, "an old failure")
    gguf = story.quantize("q-1", "acme", "assistant", "v1.1", base, chain, agreement_prompts=20, agreement_equal=19)
    story.activate("acme", "assistant", "v1.1", chain[-1:])
    story.evaluate("acme", "assistant", "v1.1 Q4_K_M", [gguf], {"perplexity": 12.5})
    story.certify("c-1", "acme", "assistant", "v1.1", chain[-1:])
    story.certify("c-2", "acme", "assistant", "v1.1", chain[-1:])
    story.revoke_certificate("c-2", chain[-1:])

    async def rendered(stub: Any) -> dict[tuple[str, str], bytes]:
        files = ("MODEL_LOG.md", "model_registry.json", "model_info.json", "README.md")
        return {
            (name, file): (await stub.RenderFile(pb.RenderFileRequest(name=name, file=file))).content
            for name in (MODEL, V10, V11)
            for file in files
        }

    async def questions(stub: Any) -> dict[tuple[str, str], bytes]:
        wrong = stub.RenderFile(pb.RenderFileRequest(name=MODEL, file="../README.md"))
        assert await refusal(wrong) == ("INVALID_ARGUMENT", "INVALID_INPUT")
        missing = stub.RenderFile(pb.RenderFileRequest(name=f"{MODEL}/versions/v3.0", file="README.md"))
        assert await refusal(missing) == ("NOT_FOUND", "NOT_FOUND")
        first = await rendered(stub)
        assert await rendered(stub) == first
        return first

    files = ask(questions)
    log = files[V11, "MODEL_LOG.md"].decode()
    entries = [line.split(" ", 2)[2] for line in log.splitlines() if line.startswith("## ")]
    assert entries == [
        "Base model registered",
        "Dataset registered",
        "Training requested",
        "Training failed",
        "Training requested",
        "Training completed",
        "Version created",
        "Training requested",
        "Training completed",
        "Version created",
        "Quantization requested",
        "Quantization failed",
        "Quantization requested",
        "Quantization failed",
        "Quantization completed",
        "Version activated",
        "Evaluation completed",
        "Certificate issued",
        "Certificate issued",
        "Certificate revoked",
    ]
    assert "- reason: out of \\*memory\\* \\# not a heading" in log
    assert "greedy answers agree on 19 of 20 prompts" in log
    assert f"- subject: adapters/run-1/tiny sha256:{adapters[0].sha256[:12]}" in log
    first = files[V10, "MODEL_LOG.md"].decode()
    assert "an old failure" in first
    assert "disk full" not in first
    assert "run-1-1" not in first

    _, front, card = files[MODEL, "README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "model_name": "acme/assistant v1.1",
        "base_model": ["Tiny"],
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "datasets": ["acme/help"],
        "tags": ["modelledger"],
    }
    assert "- validation loss: 0.625" in card
    assert "- perplexity: 12.5" in card
    assert "certificates/c-1" in card
    assert "certificates/c-2" not in card
    assert "greedy" not in files[V10, "README.md"].decode()

    info = json.loads(files[V10, "model_info.json"])
    assert info["bases"][0]["parameters"] == 15_000_000
    assert info["dataset"]["sha256"] == data.sha256
    assert "evaluations" in info
    registry = json.loads(files[MODEL, "model_registry.json"])
    assert [v["version"] for v in registry["versions"]] == ["v1.1", "v1.0"]
    assert registry["active_version"] == "v1.1"
    assert registry["activations"][0]["record"]["reason"] == "tried it"


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
