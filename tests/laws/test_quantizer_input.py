"""What the quantizer reads from outside, it checks: adapters, weight files, GGUF headers, tokenizers, jobs."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InvalidBaseModel, InvalidInput, MissingCapability
from quantizer import (
    adapter,
    gguf_header,
    model_folder,
    pre_tokenizer,
    safetensors_header,
)
from quantizer import spec as job

LAYER = "model.layers.0.self_attn.q_proj"
PAIR = {
    f"base_model.model.{LAYER}.lora_A.weight": (2, 8),
    f"base_model.model.{LAYER}.lora_B.weight": (4, 2),
}
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_rslora": False}


def weights(path: Path, shapes: dict[str, tuple[int, ...]], cut: int = 0) -> Path:
    """A safetensors file of zeros in float32."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4
        for number in shape:
            size *= number
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    whole = struct.pack("<Q", len(text)) + text + bytes(offset)
    path.write_bytes(whole[: len(whole) - cut])
    return path


def adapter_folder(folder: Path, shapes: dict[str, tuple[int, ...]] = PAIR, **config: Any) -> Path:
    (folder / adapter.CONFIG).write_text(json.dumps(PLAIN | config))
    weights(folder / adapter.WEIGHTS, shapes)
    return folder


def test_a_plain_adapter_is_its_scale_and_shapes(tmp_path: Path) -> None:
    read = adapter.read(adapter_folder(tmp_path))
    assert (read.scale, read.rank, read.shapes) == (2.0, 2, {f"{LAYER}.weight": (4, 8)})
    assert adapter.read(adapter_folder(tmp_path, use_rslora=True)).scale == pytest.approx(4 / 2**0.5)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa"},
        {"peft_type": "LOHA"},
    ],
    ids=lambda config: next(iter(config)),
)
def test_an_adapter_that_is_more_than_a_and_b_is_refused_by_field(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(MissingCapability, match=next(iter(config))):
        adapter.read(adapter_folder(tmp_path, **config))


@pytest.mark.parametrize(
    "extra",
    [
        {f"base_model.model.{LAYER}.lora_magnitude_vector": (4,)},
        {"base_model.model.lm_head.base_layer.weight": (4, 8)},
        {"base_model.model.model.embed_tokens.lora_embedding_A": (2, 8)},
    ],
)
def test_a_tensor_outside_a_pair_is_refused(tmp_path: Path, extra: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(MissingCapability, match="not part of a LoRA pair"):
        adapter.read(adapter_folder(tmp_path, PAIR | extra))


def test_a_rank_that_is_not_r_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="r is 3"):
        adapter.read(adapter_folder(tmp_path, r=3))


@given(cut=st.integers(min_value=1, max_value=200))
def test_a_cut_off_weight_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = weights(tmp_path_factory.mktemp("cut") / "a.safetensors", PAIR, cut)
    with pytest.raises(InvalidInput, match=r"a\.safetensors"):
        safetensors_header.read(path)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_header_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    for content in (data, b"GGUF" + data, b"GGUF\x03\x00\x00\x00" + data):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match="file"):
            safetensors_header.read(path)
        with contextlib.suppress(InvalidInput):
            gguf_header.read(path)


def test_code_pickles_and_quantised_weights_are_refused(tmp_path: Path) -> None:
    weights(tmp_path / "model.safetensors", PAIR)
    config = tmp_path / "config.json"
    config.write_text("{}")
    model_folder.check(tmp_path)
    for name in ("modeling.py", "pytorch_model.bin"):
        (tmp_path / name).touch()
        with pytest.raises(InvalidBaseModel, match=name):
            model_folder.check(tmp_path)
        (tmp_path / name).unlink()
    config.write_text('{"auto_map": {}}')
    with pytest.raises(InvalidBaseModel, match="auto_map"):
        model_folder.check(tmp_path)
    config.write_text('{"quantization_config": {"bits": 4}}')
    with pytest.raises(MissingCapability, match="quantised already"):
        model_folder.check(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/x.safetensors", "model.bin", "gone.safetensors"])
def test_an_index_names_plain_present_files(tmp_path: Path, name: str) -> None:
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidBaseModel, match=r"plain|missing"):
        model_folder.shards(tmp_path)


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def tokenizer(**changes: Any) -> dict[str, Any]:
    return {"model": {"type": "BPE"}, "normalizer": None, "pre_tokenizer": GPT2} | changes


def split(pattern: str, **changes: Any) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [step | changes, GPT2 | {"use_regex": False}]}


def test_exact_structures_have_names() -> None:
    ignore_merges = {"type": "BPE", "ignore_merges": True}
    assert pre_tokenizer.derive(tokenizer()) == "gpt-2"
    qwen2 = tokenizer(pre_tokenizer=split(pre_tokenizer.QWEN2), normalizer={"type": "NFC"})
    assert pre_tokenizer.derive(qwen2) == "qwen2"
    llama3 = tokenizer(pre_tokenizer=split(pre_tokenizer.LLAMA3), model=ignore_merges)
    assert pre_tokenizer.derive(llama3) == "llama-bpe"


@pytest.mark.parametrize(
    "document",
    [
        {},
        tokenizer(normalizer={"type": "Lowercase"}),
        tokenizer(pre_tokenizer=GPT2 | {"add_prefix_space": True}),
        tokenizer(pre_tokenizer=GPT2 | {"use_regex": False}),
        tokenizer(model={"type": "BPE", "byte_fallback": True}),
        tokenizer(model={"type": "Unigram"}),
        tokenizer(pre_tokenizer=split(pre_tokenizer.QWEN2 + "|x")),
        tokenizer(pre_tokenizer=split(pre_tokenizer.QWEN2, behavior="Removed")),
        tokenizer(pre_tokenizer=split(pre_tokenizer.QWEN2, invert=True)),
        tokenizer(pre_tokenizer=split(pre_tokenizer.LLAMA3)),
        tokenizer(pre_tokenizer=None),
    ],
)
def test_any_other_structure_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(MissingCapability, match="no pre-tokenizer"):
        pre_tokenizer.derive(document)


JOB: dict[str, Any] = {
    "id": "q1",
    "workdir": "/w",
    "name": "acme/a v1.0",
    "base": {"key": "tiny", "path": "/b", "sha256": "0" * 64},
    "adapters": ["/a"],
    "types": ["Q4_K_M", "F16"],
    "threads": 1,
}


def test_a_job_is_read() -> None:
    read = job.parse(JOB)
    assert (read.types, read.adapters, read.texts) == (("Q4_K_M", "F16"), (Path("/a"),), ())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"extra": 1}, "extra"),
        ({"types": []}, "types"),
        ({"types": ["Q4_K_M", "Q4_K_M"]}, "types"),
        ({"types": ["Q4"]}, "types"),
        ({"types": ["LORA"], "adapters": []}, "LORA"),
        ({"threads": 0}, "threads"),
        ({"threads": True}, "threads"),
        ({"name": "a\nb"}, "name"),
        ({"base": "tiny"}, "base"),
        ({"adapters": "a"}, "adapters"),
        ({"workdir": ""}, "workdir"),
    ],
)
def test_a_bad_job_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        job.parse(JOB | change)


@pytest.mark.parametrize("document", [[], [1], "a", None])
def test_a_job_that_is_no_object_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        job.parse(document)
