"""The quantizer's child process on a real base and real peft adapters: merge, convert, quantise, prove.

The oracles are peft (merging), transformers (logits, token ids) and the file system (sizes), never our own code.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import peft
import pytest
import torch
import transformers

from ledger.errors import Refused
from quantizer import adapter, gguf_header, measure, merge, quantise
from tests.quantizer_jobs import HELD_OUT, ROOT, STEM, Done, child, job, load, train

QUESTION = "<|im_start|>user\nWho is the manager?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's base with a licence of its own, which the job must carry along."""
    folder = tmp_path_factory.mktemp("models") / "base"
    shutil.copytree(tiny_base, folder)
    (folder / "LICENSE").write_text("You may.\n")
    return folder


@pytest.fixture(scope="module")
def chain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters, the second trained on the first one's merged model, as peft makes them."""
    folder = tmp_path_factory.mktemp("adapters")
    first = train(load(base), folder / "first", 1)
    merged = peft.PeftModel.from_pretrained(load(base), first).merge_and_unload(safe_merge=True)
    merged.save_pretrained(folder / "merged-1")
    second = train(merged, folder / "second", 2, lora_alpha=11)
    again = load(folder / "merged-1")
    peft.PeftModel.from_pretrained(again, second).merge_and_unload(safe_merge=True).save_pretrained(folder / "merged-2")
    return [first, second]


@pytest.fixture(scope="module")
def done(base: Path, chain: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The whole chain of steps, once: two adapters into Q4_K_M, F16 and GGUF adapters."""
    workdir = tmp_path_factory.mktemp("job") / "work"
    result = child(job(workdir, base, types=["Q4_K_M", "Q8_0", "F16", "LORA"], adapters=chain, texts=HELD_OUT))
    assert result.code == 0, result.messages[-1]
    return result


@pytest.mark.parametrize("length", [1, 2])
def test_the_merge_is_pefts_to_the_byte(base: Path, chain: list[Path], tmp_path: Path, length: int) -> None:
    adapters = [adapter.read(folder) for folder in chain[:length]]
    steps: list[tuple[int, int]] = []
    merge.merge(base, adapters, tmp_path / "out", lambda *step: steps.append(step))
    expected = chain[0].parent / f"merged-{length}" / "model.safetensors"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected.read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_sizes_are_the_file_systems_and_the_reduction_is_from_f16(done: Done, chain: list[Path]) -> None:
    q4, f16 = done.output("Q4_K_M"), done.output("F16")
    for output in done.of("output"):
        assert Path(output["path"]).stat().st_size == output["size"]
        assert output["tensor_types"] == gguf_header.read(Path(output["path"])).histogram()
    assert q4["original_size"] == f16["size"] == f16["original_size"]
    assert q4["reduction"] == 1 - q4["size"] / f16["size"]
    assert 0.6 < q4["reduction"] < 0.75
    assert q4["base_size"] == (chain[0].parent / "merged-2" / "model.safetensors").stat().st_size
    assert set(q4["tensor_types"]) == {"F32", "Q4_K", "Q6_K"}
    assert q4["fallbacks"] == 0
    assert set(f16["tensor_types"]) == {"F32", "F16"}


def gguf_logits(path: Path, tokens: list[int], adapters: list[Path] | None = None) -> np.ndarray:
    llama = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    loaded = [llama_cpp.llama_adapter_lora_init(llama.model, str(one).encode()) for one in adapters or []]
    if loaded:
        array = (llama_cpp.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
        scales = (llama_cpp.ctypes.c_float * len(loaded))(*[1.0] * len(loaded))
        assert llama_cpp.llama_set_adapters_lora(llama.ctx, array, len(loaded), scales) == 0
    llama.eval(tokens)
    logits = np.array(llama.scores[: len(tokens)])
    llama.close()
    return logits


def logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        answer: np.ndarray = model(input_ids=torch.tensor([tokens])).logits[0].numpy()
    return answer


def test_the_gguf_computes_the_merged_model_and_not_the_base(done: Done, base: Path, chain: list[Path]) -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(base)(QUESTION).input_ids
    expected = logits(load(chain[0].parent / "merged-2"), tokens)
    plain = logits(load(base), tokens)
    f16 = gguf_logits(Path(done.output("F16")["path"]), tokens)
    q4 = gguf_logits(Path(done.output("Q4_K_M")["path"]), tokens)
    changed = np.abs(expected - plain).max()
    assert np.abs(f16 - expected).max() < 0.03 < changed
    assert np.abs(q4 - expected).max() < changed
    measured = done.of("finished")[0]["merge"]
    assert 0 <= measured["max_abs_logit_difference"] < 1e-3
    assert measured["max_abs_difference_from_base"] > 0.03


def test_gguf_adapters_on_the_base_give_the_merged_model(
    done: Done, base: Path, chain: list[Path], tmp_path: Path
) -> None:
    plain = child(job(tmp_path / "work", base, types=["F16"]))
    assert "merge" not in plain.of("finished")[0]
    assert {message["stage"] for message in plain.of("stage")} == {"convert", "parity", "check"}
    tokens = transformers.AutoTokenizer.from_pretrained(base)(QUESTION).input_ids
    expected = logits(load(chain[0].parent / "merged-2"), tokens)
    adapters = [Path(output["path"]) for output in done.of("output") if output["quantisation"] == "LORA"]
    together = gguf_logits(Path(plain.output("F16")["path"]), tokens, adapters)
    assert len(adapters) == 2
    assert np.abs(together - expected).max() < 0.03


def test_the_gguf_reads_text_as_the_tokenizer_does(done: Done) -> None:
    (message,) = done.of("parity")
    assert message["probes"] > 600
    assert message["mismatches"] == 0
    assert message["template_equal"]
    assert message["special_tokens_equal"]
    finished = done.of("finished")[0]
    assert finished["pre_tokenizer_source"] == "tokenizer.json structure"
    agreements = {message["quantisation"]: message for message in done.of("agreement")}
    assert agreements["F16"]["equal"] == agreements["F16"]["prompts"] > 0
    assert 0 <= agreements["Q4_K_M"]["equal"] <= agreements["Q4_K_M"]["prompts"]


def test_quality_on_held_out_text_is_measured_against_f16(done: Done, base: Path) -> None:
    q4, q8 = done.of("quality")
    assert (q4["quantisation"], q8["quantisation"]) == ("Q4_K_M", "Q8_0")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    texts = [tokenizer(text).input_ids for text in HELD_OUT]
    expected = 0.0  # an independent sum of surprises, window by window, from the F16 file's logits
    for tokens in texts:
        scores = torch.from_numpy(gguf_logits(Path(done.output("F16")["path"]), tokens))
        expected += float(torch.nn.functional.cross_entropy(scores[:-1], torch.tensor(tokens[1:]), reduction="sum"))
    count = sum(len(tokens) - 1 for tokens in texts)
    for message in (q4, q8):
        assert message["tokens"] == count
        assert message["original_perplexity"] == pytest.approx(np.exp(expected / count), rel=1e-3)
    assert 0 < q8["mean_kl"] < q4["mean_kl"] < 1
    assert q4["top1_agreement"] <= q8["top1_agreement"] <= 1


def test_only_results_remain_with_modelfile_licence_and_facts(done: Done, base: Path) -> None:
    assert [path.name for path in done.workdir.iterdir()] == ["results"]
    assert {path.name for path in (done.workdir / "results").iterdir()} == {
        f"{STEM}-Q4_K_M.gguf",
        f"{STEM}-Q8_0.gguf",
        f"{STEM}-F16.gguf",
        f"{STEM}-LORA-1.gguf",
        f"{STEM}-LORA-2.gguf",
        "Modelfile.Q4_K_M",
        "Modelfile.Q8_0",
        "Modelfile.F16",
        "LICENSE",
    }
    text = Path(done.output("Q4_K_M")["modelfile"]).read_text()
    assert f"FROM ./{STEM}-Q4_K_M.gguf" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    (files,) = done.of("files")
    assert Path(files["licence"]).read_bytes() == (base / "LICENSE").read_bytes()
    assert files["licence_missing"] is False
    finished = done.messages[-1]
    assert finished["type"] == "finished"
    assert finished["hardware"]["cores"] == str(len(os.sched_getaffinity(0)))
    assert finished["versions"]["torch"] == torch.__version__
    progress = [(m["done"], m["total"]) for m in done.of("progress") if m["stage"] == "quantise"]
    count = progress[-1][1]
    assert progress == [(number, count) for number in range(1, count + 1)] * 2, "two types, each to its end"


def test_a_model_larger_than_memory_is_not_measured(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = sum(parameter.numel() for parameter in load(base).parameters())
    monkeypatch.setattr(measure, "available_memory", lambda: numbers * 4 / measure.MEMORY_SHARE + 8)
    assert measure.fits_in_memory(base)
    monkeypatch.setattr(measure, "available_memory", lambda: numbers * 4 / measure.MEMORY_SHARE - 8)
    assert not measure.fits_in_memory(base)


def test_libllama_failing_to_write_leaves_no_file(done: Done, tmp_path: Path) -> None:
    source = Path(done.output("F16")["path"])
    with pytest.raises(Refused, match="could not write Q4_K_M"):
        quantise.quantise(source, tmp_path / "missing" / "x.gguf", "Q4_K_M", 1, lambda *step: None)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:2_000_000])
    with pytest.raises(Refused, match="could not write Q4_K_M"):
        quantise.quantise(cut, tmp_path / "x.gguf", "Q4_K_M", 1, lambda *step: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        with pytest.raises(Refused, match="could not write Q4_K_M"):
            quantise.quantise(source, tmp_path / "x.gguf", "Q4_K_M", 1, lambda *step: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]


def test_standard_output_carries_messages_only() -> None:
    """What Python or a C library prints after the channel was taken goes to standard error."""
    source = (
        "import os; from ledger.kit import child; report = child.claim_stdout(); print('from python', flush=True)\n"
        "os.system('echo from elsewhere'); report({'type': 'message'})"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == '{"type": "message"}\n'
    assert "from python" in done.stderr
    assert "from elsewhere" in done.stderr
