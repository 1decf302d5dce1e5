"""Base models on disk: names, matching, and what makes a folder unusable. No torch: weights are made by hand."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import manifest
from ledger.errors import AmbiguousName, InvalidBaseModel, InvalidName, NoBaseSelected, NotFound
from ledger.kit import artifacts, weights
from ledger.kit.catalog import discover, inspect_folder, match, normalise, select

KEYS = ("mistral-7b-instruct", "llama-2-7b", "kb-llama-3-1-8b-swedish")


def safetensors(tensors: dict[str, list[int]]) -> bytes:
    """A file of float32 zeros with these shapes, straight from the format's description."""
    header, position = {}, 0
    for name, shape in tensors.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    return frame({"__metadata__": {"format": "pt"}, **header}, bytes(position))


def frame(header: Any, data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def make(folder: Path, **config: Any) -> Path:
    """A usable base model folder of 14 parameters."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "model.safetensors").write_bytes(safetensors({"a": [2, 5], "b": [4]}))
    return folder


# --- names


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Mistral-7B-Instruct", "mistral-7b-instruct"),
        ("KB-Llama-3.1-8B-Swedish", "kb-llama-3-1-8b-swedish"),
        ("llama-2-7b-chat", "llama-2-7b-chat"),
        ("Qwen-2.5-7B", "qwen-2-5-7b"),
        ("gemma_2_9b", "gemma-2-9b"),
        (" --Spaced  Name-- ", "spaced-name"),
    ],
)
def test_normalise(name: str, key: str) -> None:
    assert normalise(name) == key


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a\\b", "..", "a..b", "/etc", "---", "ÅÄÖ", "a\x00b", "x" * 201])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        normalise(name)


@given(st.text(max_size=60))
def test_normalise_is_idempotent(name: str) -> None:
    try:
        key = normalise(name)
    except InvalidName:
        return
    assert normalise(key) == key
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize("order", list(itertools.permutations(KEYS)))
@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("Mistral-7B-Instruct", "mistral-7b-instruct"),
        ("mistral", "mistral-7b-instruct"),
        ("KB-Llama-3.1-8B-Swedish", "kb-llama-3-1-8b-swedish"),
        ("kbllama", "kb-llama-3-1-8b-swedish"),
        ("llama-2", "llama-2-7b"),
    ],
)
def test_match_in_every_listing_order(order: tuple[str, ...], query: str, key: str) -> None:
    assert match(query, order) == key


@pytest.mark.parametrize("order", list(itertools.permutations(KEYS)))
def test_ambiguous_names_list_the_candidates(order: tuple[str, ...]) -> None:
    with pytest.raises(AmbiguousName, match="kb-llama-3-1-8b-swedish, llama-2-7b;"):
        match("llama", order)


@pytest.mark.parametrize("order", list(itertools.permutations(["llama-2", "llama2", "llama-2-7b", "l-lama-2"])))
def test_exact_beats_separator_free_beats_substring(order: tuple[str, ...]) -> None:
    assert match("llama-2", order) == "llama-2"
    assert match("llama2", order) == "llama2"
    assert match("llama-27b", order) == "llama-2-7b"
    with pytest.raises(AmbiguousName, match="l-lama-2, llama-2, llama2;"):
        match("ll-ama-2", order)


def test_unknown_and_empty_names_are_errors() -> None:
    with pytest.raises(NotFound, match="kb-llama-3-1-8b-swedish, llama-2-7b, mistral-7b-instruct"):
        match("gemma", KEYS)
    with pytest.raises(NotFound, match="no usable base models"):
        match("gemma", [])
    with pytest.raises(InvalidName):
        match("  ", KEYS)


@pytest.mark.parametrize("query", ["tiny", "Tiny", "t-iny", "tin"])
def test_an_unusable_key_that_is_meant_is_an_error_with_its_reason(query: str) -> None:
    with pytest.raises(InvalidBaseModel, match="base model tiny cannot be used: it holds code"):
        match(query, ["other"], {"tiny": "it holds code"})


def test_an_unusable_key_never_makes_way_for_another() -> None:
    unusable = {"tiny": "it holds code"}
    for query in ("tiny", "t-iny"):
        with pytest.raises(InvalidBaseModel):
            match(query, ["tiny-instruct"], unusable)
    with pytest.raises(AmbiguousName, match="tiny, tiny-instruct;"):
        match("tin", ["tiny-instruct"], unusable)
    assert match("tiny-i", ["tiny-instruct"], unusable) == "tiny-instruct"
    with pytest.raises(NotFound, match=r"the base models are tiny-instruct$"):
        match("gemma", ["tiny-instruct"], unusable)


# --- folders


def test_a_folder_is_described_from_its_own_files(tmp_path: Path) -> None:
    folder = make(tmp_path / "Qwen-2.5-7B", _name_or_path="someone/Qwen2.5-7B-Base")
    (folder / "README.md").write_text('---\nlanguage: en\nlicense: "mit"\n---\n# Hello\nlicense: wrong\n')
    model = inspect_folder(folder)
    assert (model.key, model.display_name, model.architecture) == ("qwen-2-5-7b", "Qwen2.5-7B-Base", "LlamaForCausalLM")
    assert (model.parameters, model.licence, model.files) == (14, "mit", 5)
    assert model.sha256 == manifest.digest(artifacts.scan_directory(folder))
    assert model.size == sum(path.stat().st_size for path in folder.iterdir())
    assert model.chat_template_sha256 is not None


def test_display_name_and_licence_fall_back_in_order(tmp_path: Path) -> None:
    assert inspect_folder(make(tmp_path / "Plain")).display_name == "Plain"
    assert inspect_folder(make(tmp_path / "b", _name_or_path="x/Y", model_name="Z")).display_name == "Z"
    assert inspect_folder(tmp_path / "Plain").licence is None
    (tmp_path / "Plain" / "LICENSE.txt").write_text("terms")
    assert inspect_folder(tmp_path / "Plain").licence == "see LICENSE.txt"
    assert inspect_folder(make(tmp_path / "c", license="apache-2.0")).licence == "apache-2.0"


def test_shards_are_counted_by_the_index(tmp_path: Path) -> None:
    folder = make(tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    (folder / "model-1.safetensors").write_bytes(safetensors({"a": [3]}))
    (folder / "model-2.safetensors").write_bytes(safetensors({"b": [4]}))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert inspect_folder(folder).parameters == 7
    (folder / "model-2.safetensors").write_bytes(safetensors({"c": [4]}))
    with pytest.raises(InvalidBaseModel, match="lacks the tensor 'b'"):
        inspect_folder(folder)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(InvalidBaseModel, match=r"lacks model-2\.safetensors"):
        inspect_folder(folder)
    index["weight_map"]["b"] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidBaseModel, match="no safetensors file name"):
        inspect_folder(folder)


Damage = Callable[[Path], object]
DAMAGES: list[tuple[str, Damage, str]] = [
    ("no config", lambda f: (f / "config.json").unlink(), "has no config.json"),
    ("config not JSON", lambda f: (f / "config.json").write_text("{"), "config.json: not JSON at character 1"),
    ("config a list", lambda f: (f / "config.json").write_text("[]"), "is not a JSON object"),
    ("no architecture", lambda f: (f / "config.json").write_text("{}"), "architectures names no class"),
    ("auto_map", lambda f: (f / "config.json").write_text('{"auto_map": {}}'), "auto_map"),
    ("tokenizer auto_map", lambda f: (f / "tokenizer_config.json").write_text('{"auto_map": {}}'), "auto_map"),
    ("no tokenizer", lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "has no safetensors weights"),
    ("odd weights", lambda f: (f / "model.safetensors").rename(f / "x.safetensors"), "neither model.safetensors nor"),
    ("bad index", lambda f: (f / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
    ("code", lambda f: (f / "modeling_own.py").write_text(""), "holds code (modeling_own.py)"),
    ("hidden code", lambda f: [(f / "sub").mkdir(), (f / "sub" / "a.PY").write_text("")], "holds code (sub/a.PY)"),
    *[
        (f"pickle {suffix}", lambda f, s=suffix: (f / f"x{s}").write_bytes(b""), "holds pickled weights")
        for suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
    ],
    ("link", lambda f: (f / "extra").symlink_to("/etc/hostname"), "is a symbolic link"),
    ("linked folder", lambda f: (f / "extra").symlink_to("/etc"), "is a symbolic link"),
]


@pytest.mark.parametrize(("damage", "reason"), [pytest.param(d, r, id=name) for name, d, r in DAMAGES])
def test_an_unusable_folder_is_listed_with_the_reason(tmp_path: Path, damage: Damage, reason: str) -> None:
    damage(make(tmp_path / "broken"))
    make(tmp_path / "whole")
    catalogue = discover([tmp_path])
    assert list(catalogue.models) == ["whole"]
    assert [entry.folder.name for entry in catalogue.unusable] == ["broken"]
    assert reason in catalogue.unusable[0].reason


GOOD = safetensors({"a": [2], "b": [1]})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated or no safetensors file"),
        (b"\x00" * 7, "truncated or no safetensors file"),
        (b"PK\x03\x04" + b"\x00" * 60, "truncated or no safetensors file"),
        (GOOD[:-1], "is truncated: 11 bytes of data, its header describes 12"),
        (GOOD[:20], "truncated or no safetensors file"),
        (GOOD + b"\x00", "longer than its tensors"),
        (frame([], b""), "header is not a JSON object"),
        (frame({}, b""), "hold no parameters"),
        (frame({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4), "must have dtype, shape and data_offsets"),
        (frame({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4), "unknown type 'X'"),
        (frame({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4), "non-negative"),
        (frame({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4), "do not fit its type"),
        (frame({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8), "begins at byte 4"),
        (
            frame({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"\0" * 4),
            "begins at byte 0, expected 4",
        ),
    ],
)
def test_damaged_weights_are_told_from_whole_ones(tmp_path: Path, data: bytes, reason: str) -> None:
    folder = make(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(InvalidBaseModel) as refusal:
        inspect_folder(folder)
    assert reason in refusal.value.message


@given(st.integers(0, len(GOOD) - 1))
def test_every_truncation_is_found(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    file = tmp_path_factory.mktemp("cut") / "model.safetensors"
    file.write_bytes(GOOD[:length])
    with pytest.raises(InvalidBaseModel):
        weights.read_header(file)


# --- catalogue


def test_folders_that_normalise_alike_are_both_unusable(tmp_path: Path) -> None:
    make(tmp_path / "one" / "gemma_2")
    make(tmp_path / "two" / "Gemma-2")
    make(tmp_path / "two" / "other")
    catalogue = discover([tmp_path / "one", tmp_path / "two", tmp_path / "one"])
    assert list(catalogue.models) == ["other"]
    assert len(catalogue.unusable) == 2
    assert all("rename one" in entry.reason for entry in catalogue.unusable)


def test_discovery_sees_changes_without_a_restart(tmp_path: Path) -> None:
    assert "is not a directory" in discover([tmp_path / "absent"]).unusable[0].reason
    first = inspect_folder(make(tmp_path / "m"))
    assert discover([tmp_path]).models == {"m": first}
    (tmp_path / ".hidden").mkdir()
    file = tmp_path / "m" / "model.safetensors"
    before = file.stat()
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")  # same size, other content
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert discover([tmp_path]).models["m"].sha256 != first.sha256
    make(tmp_path / "n")
    assert list(discover([tmp_path]).models) == ["m", "n"]


def test_select(tmp_path: Path) -> None:
    for name in ("Mistral-7B-Instruct", "llama-2-7b", "KB-Llama-3.1-8B-Swedish"):
        make(tmp_path / name)
    catalogue = discover([tmp_path])
    chosen = [model.key for model in select(["llama-2", "mistral"], catalogue, "kbllama")]
    assert chosen == ["llama-2-7b", "mistral-7b-instruct"]
    assert [m.key for m in select([], catalogue, " kbllama, ,mistral")] == [
        "kb-llama-3-1-8b-swedish",
        "mistral-7b-instruct",
    ]
    for nothing in (None, "", " , "):
        with pytest.raises(NoBaseSelected, match="llama-2-7b"):
            select([], catalogue, nothing)
    with pytest.raises(InvalidName, match="both the base model mistral-7b-instruct"):
        select(["mistral", "Mistral-7B-Instruct"], catalogue)
    with pytest.raises(NotFound):
        select(["gemma"], catalogue)


def test_select_refuses_an_unusable_folder_instead_of_taking_another(tmp_path: Path) -> None:
    make(tmp_path / "tiny-instruct")
    (make(tmp_path / "Tiny") / "modeling_own.py").write_text("")
    (tmp_path / "ÅÄÖ").mkdir()
    catalogue = discover([tmp_path, tmp_path / "absent"])
    assert {entry.key for entry in catalogue.unusable} == {"", "tiny"}
    with pytest.raises(InvalidBaseModel, match=r"holds code \(modeling_own\.py\)"):
        select(["tiny"], catalogue)
    with pytest.raises(NotFound):  # a missing root is no base model
        select(["absent"], catalogue)


def test_select_says_which_folders_are_called_alike(tmp_path: Path) -> None:
    make(tmp_path / "one" / "gemma_2")
    make(tmp_path / "two" / "Gemma-2")
    with pytest.raises(InvalidBaseModel, match="rename one"):
        select(["gemma"], discover([tmp_path / "one", tmp_path / "two"]))


def test_other_bytes_of_the_same_size_and_time_are_noticed(tmp_path: Path) -> None:
    folder = make(tmp_path / "tiny")
    file = folder / "README.md"
    file.write_bytes(b"one")
    before, stat = inspect_folder(folder).sha256, file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert inspect_folder(folder).sha256 != before
