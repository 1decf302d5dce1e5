"""The training child for real: a tiny base, real epochs, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ledger import manifest
from ledger.kit import artifacts

pytestmark = pytest.mark.slow  # a process that trains imports torch, which takes longer than the training
OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "learning_rate": 5e-3,
    "lora_dropout": 0.1,  # draws random numbers at every step: a resumed run must go on with the same ones
    "max_length": 64,
    "seed": 3,
}
ROWS = 21
TOO_LONG, NO_JSON = 22, 23  # line numbers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [{"prompt": f"Who is on pier {n}?", "completion": f"Captain {n} is."} for n in range(ROWS)]
    rows.append({"prompt": "Why? " * 100, "completion": "Because."})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{no json\n")
    return file


def write_spec(workdir: Path, data: Path, bases: list[dict[str, Any]], **options: Any) -> Path:
    workdir.parent.mkdir(parents=True, exist_ok=True)
    spec = workdir.with_suffix(".spec.json")
    document = {
        "run_id": workdir.name,
        "workdir": str(workdir),
        "bases": [{"adapters": [], **base} for base in bases],
        "dataset": str(data),
        "options": OPTIONS | options,
    }
    spec.write_text(json.dumps(document))
    return spec


def start(spec: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "trainer.run", str(spec)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def train(spec: Path) -> tuple[int, list[dict[str, Any]], str]:
    """(exit code, messages, stderr). Every line on stdout must be a message."""
    child = start(spec)
    out, err = child.communicate(timeout=200)
    return child.returncode, [json.loads(line) for line in out.splitlines()], err.decode()


def of_type(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == kind]


def digest(folder: Path) -> str:
    return manifest.digest(artifacts.scan_directory(folder))


Trained = tuple[int, list[dict[str, Any]], str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, data: Path) -> Trained:
    """One uninterrupted run over a good base and one that cannot be loaded."""
    folder = tmp_path_factory.mktemp("trained")
    broken = folder / "broken"
    broken.mkdir()
    bases = [{"key": "broken", "path": str(broken)}, {"key": "tiny", "path": str(tiny_base)}]
    return train(write_spec(folder / "run", data, bases))


def test_it_trains_every_row_in_every_epoch_and_learns(trained: Trained) -> None:
    code, messages, err = trained
    assert code == 0, err
    (dataset,) = of_type(messages, "dataset")
    assert dataset["train_examples"] + dataset["validation_examples"] + 1 == ROWS + 1
    epochs = of_type(messages, "epoch")
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert {epoch["examples_seen"] for epoch in epochs} == {dataset["train_examples"]}
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] * 0.9
    assert epochs[-1]["validation_loss"] < epochs[0]["validation_loss"]
    steps = of_type(messages, "step")
    assert steps[-1]["step"] == steps[-1]["steps"] == 9  # 19 rows: 5 batches of 4, 3 steps of 2 batches, 3 epochs


def test_the_completed_message_says_what_was_done(trained: Trained, tiny_base: Path, data: Path) -> None:
    (done,) = of_type(trained[1], "base_completed")
    last = of_type(trained[1], "epoch")[-1]
    assert (done["train_loss"], done["validation_loss"]) == (last["train_loss"], last["validation_loss"])
    assert done["base_sha256"] == digest(tiny_base)
    assert done["dataset_sha256"] == artifacts.hash_file(data).sha256
    assert done["trainable_parameters"] > 0
    assert {"torch", "transformers", "peft", "trl", "device", "threads", "dtype"} <= done["environment"].keys()
    assert done["environment"]["dtype"] == "float32"


def test_lines_that_could_not_be_used_are_named(trained: Trained) -> None:
    (done,) = of_type(trained[1], "base_completed")
    assert [entry["line"] for entry in done["skipped"]] == [TOO_LONG, NO_JSON]
    assert "tokens long, the limit is 64" in done["skipped"][0]["reason"]
    assert "not JSON" in done["skipped"][1]["reason"]
    assert done["skipped_lines"] == 2


def test_an_unloadable_base_fails_alone(trained: Trained) -> None:
    (failed,) = of_type(trained[1], "base_failed")
    assert failed["base"] == "broken"
    assert "has no config.json" in failed["reason"]
    assert trained[1][-1] == {"type": "finished", "completed": ["tiny"], "failed": ["broken"]}


def test_the_adapter_is_canonical(trained: Trained) -> None:
    folder = Path(of_type(trained[1], "base_completed")[0]["adapter"])
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o644"}
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 16, 0.1)


def test_killed_and_started_again_it_ends_in_the_same_bytes(
    trained: Trained, tmp_path: Path, tiny_base: Path, data: Path
) -> None:
    """Also the proof of determinism: another process, another folder, another path of the base."""
    link = tmp_path / "other-place"
    link.mkdir()
    for path in tiny_base.iterdir():
        os.link(path, link / path.name)
    spec = write_spec(tmp_path / "run", data, [{"key": "tiny", "path": str(link)}])
    child = start(spec)
    assert child.stdout
    before = []
    for line in child.stdout:
        before.append(json.loads(line))
        if before[-1]["type"] == "epoch":
            child.send_signal(signal.SIGKILL)
            break
    child.communicate(timeout=60)
    # What a kill in the middle of writing leaves: a checkpoint without its marker.
    half = tmp_path / "run" / "tiny" / "checkpoints" / "checkpoint-999"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")

    code, messages, err = train(spec)
    assert code == 0, err
    (started,) = of_type(messages, "base_started")
    assert started["resumed_from_epoch"] >= 1
    assert started["earlier_epochs"][0] == of_type(before, "epoch")[0]
    reported = [*started["earlier_epochs"], *of_type(messages, "epoch")]
    assert [epoch["epoch"] for epoch in reported] == [1, 2, 3]
    uninterrupted = of_type(trained[1], "epoch")
    for name in ("train_loss", "validation_loss", "learning_rate"):
        assert [epoch[name] for epoch in reported] == [epoch[name] for epoch in uninterrupted]
    mine, theirs = (Path(of_type(m, "base_completed")[0]["adapter"]) for m in (messages, trained[1]))
    assert digest(mine) == digest(theirs)

    # Once more: it is finished, so it is reported and not trained again.
    code, again, _ = train(spec)
    assert code == 0
    assert of_type(again, "base_completed") == of_type(messages, "base_completed")
    assert not of_type(again, "step")


def test_a_chain_merges_the_earlier_adapter_first(
    trained: Trained, tmp_path: Path, tiny_base: Path, data: Path
) -> None:
    first = of_type(trained[1], "base_completed")[0]["adapter"]
    base = {"key": "tiny", "path": str(tiny_base), "adapters": [first]}
    code, messages, err = train(write_spec(tmp_path / "run", data, [base], epochs=1, validation_fraction=0))
    assert code == 0, err
    (epoch,) = of_type(messages, "epoch")
    assert "validation_loss" not in epoch
    assert "validation_loss" not in of_type(messages, "base_completed")[0]
    fresh = of_type(trained[1], "epoch")
    assert epoch["train_loss"] < (fresh[0]["train_loss"] + fresh[-1]["train_loss"]) / 2
    assert epoch["examples_seen"] == ROWS


def test_refusals_leave_nothing_trained(trained: Trained, tmp_path: Path, tiny_base: Path, data: Path) -> None:
    first = of_type(trained[1], "base_completed")[0]["adapter"]
    base = [{"key": "tiny", "path": str(tiny_base)}]
    bases = [
        {"key": "stranger", "path": str(tiny_base), "adapters": [first]},
        {"key": "other", "path": str(tiny_base), "adapters": [str(tmp_path)]},
        *base,
    ]
    code, messages, _ = train(write_spec(tmp_path / "run", data, bases, target_modules=["no_such_layer"]))
    assert code == 1
    reasons = [message["reason"] for message in of_type(messages, "base_failed")]
    assert "was trained on 'tiny', not on 'stranger'" in reasons[0]
    assert "is no adapter" in reasons[1]
    assert "no_such_layer" in reasons[2]
    assert messages[-1] == {"type": "finished", "completed": [], "failed": ["stranger", "other", "tiny"]}

    code, messages, _ = train(write_spec(tmp_path / "options", data, base, speed=9))
    assert (code, [m["type"] for m in messages]) == (1, ["finished"])
    assert "speed: is not an option" in messages[0]["reason"]

    code, messages, _ = train(write_spec(tmp_path / "run", data, base))  # in the folder of the run above
    assert code == 1
    assert "another run's" in messages[-1]["reason"]


def test_cuda_without_one_is_refused_before_loading(tmp_path: Path, tiny_base: Path, data: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    spec = write_spec(tmp_path / "run", data, [{"key": "tiny", "path": str(tiny_base)}], device="cuda")
    code, messages, _ = train(spec)
    assert code == 1
    assert [message["type"] for message in messages] == ["base_failed", "finished"]
    assert "no usable CUDA device" in messages[0]["reason"]


def test_qlora_trains_on_a_four_bit_base(tmp_path: Path, tiny_base: Path, data: Path) -> None:
    spec = write_spec(tmp_path / "run", data, [{"key": "tiny", "path": str(tiny_base)}], quantisation="nf4")
    code, messages, err = train(spec)
    assert code == 0, err
    epochs = of_type(messages, "epoch")
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert "bitsandbytes" in of_type(messages, "base_completed")[0]["environment"]


def test_it_dies_with_its_parent(tmp_path: Path, tiny_base: Path, data: Path) -> None:
    spec = write_spec(tmp_path / "run", data, [{"key": "tiny", "path": str(tiny_base)}], epochs=1000)
    # Its stdout is a file: through a pipe it would end by itself once nobody reads.
    program = (
        "import os, subprocess, sys, time\n"
        "out = open(sys.argv[1] + '.out', 'wb')\n"
        "child = subprocess.Popen([sys.executable, '-m', 'trainer.run', sys.argv[1]], stdout=out)\n"
        "while not os.path.getsize(out.name): time.sleep(0.05)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(spec)], stdout=subprocess.PIPE)
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait(timeout=10)
    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_only_the_answer_carries_loss(tmp_path: Path, tiny_base: Path) -> None:
    """The labels, and the loss SFTTrainer computes from them, against a cross entropy written out here."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer import finetune
    from trainer.checkpoints import BaseFolder
    from trainer.dataset import Example
    from trainer.encode import IGNORED, encode
    from trainer.options import Options

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    examples = [
        Example((("user", "Who?"), ("assistant", "The captain.")), 1),
        Example((("system", "Be brief."), ("user", "Where is the ferry now?"), ("assistant", "Here.")), 2),
    ]
    rows, _ = encode(examples, tokenizer, max_length=64, completion_only=True)
    learned = [tokenizer.decode([label for label in row.labels if label != IGNORED]) for row in rows]
    assert learned == ["The captain.<|im_end|>\n", "Here.<|im_end|>\n"]
    whole, _ = encode(examples, tokenizer, max_length=64, completion_only=False)
    assert all(row.labels == row.input_ids for row in whole)
    assert [row.input_ids for row in whole] == [row.input_ids for row in rows]

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    options = Options(batch_size=2, validation_fraction=0.0)
    trainer = finetune._trainer(model, tokenizer, rows, [], options, BaseFolder(tmp_path, "tiny"))
    batch = next(iter(trainer.get_train_dataloader()))
    labels, inputs = batch["labels"].clone(), batch["input_ids"].clone()
    mask = batch["attention_mask"].clone()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
        logits = trainer.model(input_ids=inputs, attention_mask=mask).logits
    assert sorted(trainer.visited) == [1, 2]
    scores = torch.log_softmax(logits[:, :-1], -1).gather(-1, inputs[:, 1:, None])[..., 0]
    taken = labels[:, 1:] != IGNORED
    assert int(taken.sum()) == sum(label != IGNORED for row in rows for label in row.labels)
    assert float(loss) == pytest.approx(float(-scores[taken].mean()), rel=1e-5)
