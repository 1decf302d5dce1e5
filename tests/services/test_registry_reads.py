"""What the registry reads out of the log: what may be served, what was active when, lineage, rendered files."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import yaml
from modelledger.ledger.v1 import registry_pb2 as pb

from tests.log_story import Story, digest
from tests.registry_calls import MODEL, V10, V11, refusal


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
