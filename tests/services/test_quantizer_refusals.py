"""What the quantizer's child process refuses, and that a job that fails leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import peft
import pytest
import transformers

from ledger.errors import ArtifactMismatch, InvalidInput, MissingCapability
from quantizer import adapter, merge
from tests.quantizer_jobs import ROOT, STEM, child, command, digest, job, load, refused, train


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Path:
    return tiny_base


def test_rslora_is_merged_with_its_own_scale_and_refused_as_gguf_adapter(base: Path, tmp_path: Path) -> None:
    folder = train(load(base), tmp_path / "rs", 3, use_rslora=True)
    merged = peft.PeftModel.from_pretrained(load(base), folder).merge_and_unload(safe_merge=True)
    merged.save_pretrained(tmp_path / "expected")
    merge.merge(base, [adapter.read(folder)], tmp_path / "out", lambda *step: None)
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "expected" / "model.safetensors").read_bytes()
    assert "rsLoRA" in refused(child(job(tmp_path / "work", base, types=["LORA"], adapters=[folder])))


def test_adapters_that_do_not_fit_are_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    dora = train(load(base), tmp_path / "dora", 4, use_dora=True)
    with pytest.raises(MissingCapability, match="use_dora"):
        adapter.read(dora)
    config = transformers.AutoConfig.from_pretrained(base)
    config.intermediate_size = 512
    other = transformers.AutoModelForCausalLM.from_config(config)
    stranger = adapter.read(train(other, tmp_path / "stranger", 5))
    with pytest.raises(InvalidInput, match="another base"):
        merge.merge(base, [stranger], tmp_path / "out", lambda *step: None)
    tied = adapter.read(train(load(base), tmp_path / "tied", 6, target_modules=["lm_head"]))
    with pytest.raises(MissingCapability, match=r"lm_head\.weight"):
        merge.merge(base, [tied], tmp_path / "out", lambda *step: None)
    assert not (tmp_path / "out").exists()


def random_model(base: Path, folder: Path, hidden: int, intermediate: int) -> Path:
    """The base's shape with other row lengths, and its tokenizer."""
    config = transformers.AutoConfig.from_pretrained(base)
    config.hidden_size, config.intermediate_size = hidden, intermediate
    config.head_dim = hidden // config.num_attention_heads
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in base.glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    for path in base.glob("*.jinja"):
        shutil.copyfile(path, folder / path.name)
    return folder


def test_rows_that_are_no_multiple_of_256_show_as_fallbacks(base: Path, tmp_path: Path) -> None:
    model = random_model(base, tmp_path / "model", 320, 640)
    for leftover in ("work/half.gguf", "results/old.gguf"):  # of an attempt that was killed
        (tmp_path / "work" / leftover).parent.mkdir(parents=True)
        (tmp_path / "work" / leftover).write_bytes(b"GGUF")
    done = child(job(tmp_path / "work", model, types=["Q4_K_M"]))
    output = done.output("Q4_K_M")
    assert output["fallbacks"] > 0
    assert set(output["tensor_types"]) & {"Q5_0", "Q8_0"}
    assert done.of("files")[0]["licence_missing"] is True
    assert "licence" not in done.of("files")[0]
    left = [path.name for path in (tmp_path / "work").rglob("*.gguf")]
    assert left == [f"{STEM}-Q4_K_M.gguf"]


def test_a_model_of_which_nothing_can_be_quantised_is_refused(base: Path, tmp_path: Path) -> None:
    model = random_model(base, tmp_path / "model", 200, 600)
    reason = refused(child(job(tmp_path / "work", model, types=["Q4_K_M"])))
    assert "no matrix" in reason
    assert "256" in reason


def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(base: Path, tmp_path: Path) -> None:
    """Same structure, so it gets a name; but its end token eats the space before it, which llama.cpp does not."""
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["lstrip"] = token["content"] == "<|im_end|>"
    (folder / "tokenizer.json").write_text(json.dumps(document))
    done = child(job(tmp_path / "work", folder, types=["Q8_0"]))
    assert "other token ids" in refused(done)
    assert done.of("parity")[0]["mismatches"] > 0


@pytest.mark.parametrize("limit", [1_000_000, 3_000_000], ids=["while merging", "while converting"])
def test_a_full_disk_fails_with_its_reason_and_leaves_nothing(base: Path, tmp_path: Path, limit: int) -> None:
    """A file size limit stands in for a full disk: the write that crosses it fails in the same way."""
    adapters = [train(load(base), tmp_path / "adapter", 7)] if limit == 1_000_000 else []
    done = child(job(tmp_path / "work", base, types=["Q4_K_M"], adapters=adapters), file_size=limit)
    reason = refused(done)
    assert "bytes free" in reason
    assert str(tmp_path / "work") in reason


def test_bad_input_is_refused_before_anything_heavy_is_imported(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    spec = job(tmp_path / "work", base, types=["Q3_K"])
    of_types = child(spec)
    assert "types" in refused(of_types)
    spec.write_text("{")
    of_json = child(spec)
    assert spec.name in refused(of_json)
    for done in (of_types, of_json):
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "quantizer.spec" in imported
        assert not imported & {"torch", "transformers", "peft", "llama_cpp"}


def test_an_unwritable_work_folder_fails_with_its_reason(base: Path, tmp_path: Path) -> None:
    spec = job(tmp_path / "work", base, types=["F16"])
    (tmp_path / "work").write_text("a file, not a folder")
    done = child(spec)
    assert done.code == 1
    assert str(tmp_path / "work") in done.messages[-1]["reason"]


def test_the_child_dies_with_its_parent(base: Path, tmp_path: Path) -> None:
    spec = job(tmp_path / "work", base, types=["Q4_K_M"])
    source = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({command(spec)!r}, stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(1.0)
    state = Path(f"/proc/{pid}/stat")
    assert state.exists(), "the child should still be importing"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while alive(state) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(state)


def alive(state: Path) -> bool:
    """A killed process may stay a zombie until whoever inherited it looks."""
    try:
        return state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_wrong_converter_archive_stops_the_job(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "other.tar.gz"
    archive.write_bytes(b"not it")
    spec = job(tmp_path / "work", base, types=["F16"])
    monkeypatch.setenv("MODELLEDGER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELLEDGER_LLAMA_CPP_ARCHIVE", str(archive))
    done = child(spec)
    assert done.messages[-1]["error"] == ArtifactMismatch.reason


def test_a_base_of_other_bytes_than_asked_for_is_refused(base: Path, tmp_path: Path) -> None:
    spec = job(tmp_path / "work", base, types=["F16"])
    spec.write_text(spec.read_text().replace(digest(base), "0" * 64))
    assert f"hashes to {digest(base)}" in refused(child(spec))
