"""Fine-tune one base model with LoRA: TRL's SFTTrainer over rows that are already tokenised.

Runs in the training child only (run.py): it imports torch. What it adds to SFTTrainer: every training line
is checked to have been visited in every epoch, epochs are reported as they are sealed on disk, and a run
that was killed goes on from the last sealed epoch to the very bytes it would have reached.
"""

from __future__ import annotations

import math
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ledger.errors import ArtifactMismatch, InvalidDataset, ModelLedgerError, Refused
from ledger.kit.catalog import inspect_folder
from trainer import adapter, encode
from trainer.checkpoints import BaseFolder
from trainer.dataset import Example
from trainer.options import Options
from trainer.spec import BaseSpec

Report = Callable[[dict[str, Any]], None]
SECONDS_BETWEEN_STEPS = 0.25  # at most four step messages a second
SKIPPED_NAMED, MAX_REASON = 100, 200  # of the lines that are skipped, in a message; characters


@dataclass(frozen=True)
class Data:
    """The examples of a dataset, already split; the first lines that its check refused, and how many it did."""

    training: Sequence[Example]
    held_out: Sequence[Example]
    refused: Sequence[encode.Skipped]
    refused_lines: int
    sha256: str


def finetune(base: BaseSpec, data: Data, options: Options, folder: BaseFolder, report: Report) -> None:
    """Train, put the adapter in `folder` and report it completed; raises instead when it cannot."""
    done = folder.completed()
    latest = folder.latest()
    epochs = done["epoch_messages"] if done else latest[1] if latest else []
    started: dict[str, Any] = {"type": "base_started", "base": base.key}
    if epochs:
        started |= {"resumed_from_epoch": len(epochs), "earlier_epochs": list(epochs)}
    report(started)
    if done is None:
        done = _train(base, data, options, folder, report, latest[0] if latest else None, epochs)
    report({name: value for name, value in done.items() if name != "epoch_messages"})


def _train(
    base: BaseSpec,
    data: Data,
    options: Options,
    folder: BaseFolder,
    report: Report,
    checkpoint: Path | None,
    epochs: list[dict[str, Any]],
) -> dict[str, Any]:
    """The completed message, stored together with all epoch messages."""
    inspected = inspect_folder(base.path)
    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    model = _load(base, options, folder)
    if inspect_folder(base.path).sha256 != inspected.sha256:
        raise ArtifactMismatch(f"{base.path} changed while it was loaded; start the run again when it is at rest")
    limit = min(options.max_length, getattr(model.config, "max_position_embeddings", options.max_length))
    how = {"max_length": limit, "completion_only": options.completion_only}
    training, too_long = encode.encode(data.training, tokenizer, **how)
    held_out, held_out_too_long = encode.encode(data.held_out, tokenizer, **how)
    skipped = sorted([*data.refused, *too_long, *held_out_too_long], key=lambda entry: entry.line)
    skipped_lines = data.refused_lines + len(too_long) + len(held_out_too_long)
    if not training:
        raise InvalidDataset(f"no example is left to train on: all {skipped_lines} lines were skipped")
    counts = {
        "train_examples": len(training),
        "validation_examples": len(held_out),
        "skipped": [{"line": entry.line, "reason": entry.reason[:MAX_REASON]} for entry in skipped[:SKIPPED_NAMED]],
        "skipped_lines": skipped_lines,
    }
    report({"type": "dataset", "base": base.key, **counts})

    trainer = _trainer(model, tokenizer, training, held_out, options, folder)
    trainer.add_callback(_Progress(base.key, trainer, folder, report, epochs))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _save_adapter(trainer.model, folder, base.key)
    last = epochs[-1]
    message = {
        "type": "base_completed",
        "base": base.key,
        "base_sha256": inspected.sha256,
        "dataset_sha256": data.sha256,
        "adapter": str(folder.adapter),
        "epochs": len(epochs),
        **{name: last[name] for name in ("train_loss", "validation_loss") if name in last},
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "seconds": round(sum(epoch["seconds"] for epoch in epochs), 3),
        **counts,
        "environment": _environment(trainer.model, options),
        "epoch_messages": epochs,
    }
    folder.complete(message)
    return message


def _load(base: BaseSpec, options: Options, folder: BaseFolder) -> Any:
    """The frozen model to train on: the base with the chain of earlier adapters merged in, in order."""
    source = base.path
    if base.adapters and options.quantisation != "none":
        # Merging into 4-bit weights rounds the adapter away: merge in full precision, then quantise.
        shutil.rmtree(folder.merged, ignore_errors=True)
        _merged(base, torch.float32).save_pretrained(folder.merged)
        source = folder.merged
    elif base.adapters:
        return _merged(base, _dtype(options))
    extra: dict[str, Any] = {}
    if options.quantisation == "nf4":
        # QLoRA's recipe, https://arxiv.org/abs/2305.14314 section 3.
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_dtype(options),
        )
        extra["device_map"] = {"": options.device}
    return _from_pretrained(source, _dtype(options), **extra)


def _merged(base: BaseSpec, dtype: torch.dtype) -> Any:
    model = _from_pretrained(base.path, dtype)
    for path in base.adapters:
        adapter.read_config(path, base.key)
        model = PeftModel.from_pretrained(model, str(path)).merge_and_unload(safe_merge=True)
    return model


def _from_pretrained(path: Path, dtype: torch.dtype, **extra: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, **extra
    )


def _dtype(options: Options) -> torch.dtype:
    """bfloat16 only where the hardware has it: most CPUs emulate it 10 to 100 times slower."""
    if options.device == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


class _Collator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """TRL's padding, plus the line each row came from."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["line"] = torch.tensor([example["line"] for example in examples])
        return batch


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that knows which lines it has trained on in this epoch."""

    visited: list[int]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        lines = inputs.pop("line")
        if model.training:
            self.visited += lines.tolist()
        return super().compute_loss(model, inputs, *args, **kwargs)


def _trainer(
    model: Any,
    tokenizer: Any,
    training: Sequence[encode.Row],
    held_out: Sequence[encode.Row],
    options: Options,
    folder: BaseFolder,
) -> _Trainer:
    half = _dtype(options) is torch.bfloat16
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    arguments = SFTConfig(
        output_dir=str(folder.checkpoints),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        lr_scheduler_type=options.scheduler,
        seed=options.seed,  # SFTTrainer sets it before the adapter's first weights are drawn
        data_seed=options.seed,
        max_length=None,  # our rows are within bounds; TRL would cut silently
        completion_only_loss=options.completion_only,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_drop_last=False,
        dataloader_pin_memory=options.device == "cuda",
        use_cpu=options.device == "cpu",
        bf16=half,
        activation_checkpointing=False,
        eval_strategy="epoch" if held_out else "no",
        save_strategy="epoch",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
        report_to="none",
        disable_tqdm=True,
    )
    lora = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=_modules(options),
        bias="none",
        task_type="CAUSAL_LM",
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([asdict(row) for row in training]),
        eval_dataset=Dataset.from_list([asdict(row) for row in held_out]) if held_out else None,
        data_collator=_Collator(pad_token_id=pad),
        processing_class=tokenizer,
        peft_config=lora,
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL makes the adapter of a quantised base bfloat16; small updates would be rounded away.
            parameter.data = parameter.data.float()
    trainer.visited = []
    return trainer


def _modules(options: Options) -> str | list[str]:
    return options.target_modules if isinstance(options.target_modules, str) else list(options.target_modules)


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Reports steps as they happen and epochs once their checkpoint is sealed."""

    def __init__(
        self, key: str, trainer: _Trainer, folder: BaseFolder, report: Report, epochs: list[dict[str, Any]]
    ) -> None:
        self._key, self._trainer, self._folder, self._report = key, trainer, folder, report
        self._epochs = epochs
        self._lines = sorted(trainer.train_dataset["line"])
        self._losses: list[float] = []
        self._rate = 0.0
        self._validation_loss: float | None = None  # None: not measured
        self._began = self._reported = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.monotonic()
        self._losses, self._validation_loss = [], None
        self._trainer.visited = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return  # the evaluation's or the final summary
        loss = logs["loss"]
        if not math.isfinite(loss):
            raise Refused(f"the loss became {loss} at step {state.global_step}; lower the learning rate")
        self._losses.append(loss)
        self._rate = logs["learning_rate"]
        now = time.monotonic()
        if now - self._reported >= SECONDS_BETWEEN_STEPS or state.global_step == state.max_steps:
            self._reported = now
            self._report(
                {
                    "type": "step",
                    "base": self._key,
                    "step": state.global_step,
                    "steps": state.max_steps,
                    "loss": loss,
                    "epoch": state.epoch,
                }
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **_: Any) -> None:
        self._validation_loss = metrics["eval_loss"]
        if not math.isfinite(self._validation_loss):
            raise Refused(f"the validation loss became {self._validation_loss}; lower the learning rate")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """At the end of an epoch, after its losses were measured and its checkpoint written."""
        if sorted(self._trainer.visited) != self._lines:
            raise ModelLedgerError(
                f"epoch {len(self._epochs) + 1} visited {len(self._trainer.visited)} rows, "
                f"not each of the {len(self._lines)} once"
            )
        epoch: dict[str, Any] = {
            "type": "epoch",
            "base": self._key,
            "epoch": len(self._epochs) + 1,
            "epochs": int(args.num_train_epochs),
            "train_loss": sum(self._losses) / len(self._losses),  # mean over the optimiser steps
            "learning_rate": self._rate,
            "seconds": round(time.monotonic() - self._began, 3),
            "examples_seen": len(self._trainer.visited),
        }
        if self._validation_loss is not None:
            epoch["validation_loss"] = self._validation_loss
        self._epochs.append(epoch)
        self._folder.seal(state.global_step, self._epochs)
        self._report(epoch)


def _save_adapter(model: Any, folder: BaseFolder, key: str) -> None:
    partial = folder.adapter.with_name("adapter.partial")
    for path in (partial, folder.adapter):  # what a killed attempt left, without its marker
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(partial)
    adapter.canonicalise(partial, key)
    partial.rename(folder.adapter)


def _environment(model: Any, options: Options) -> dict[str, str]:
    """What did the work, as read here and now."""
    libraries = ["torch", "transformers", "peft", "trl"]
    if options.quantisation != "none":
        libraries.append("bitsandbytes")
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {library: version(library) for library in libraries} | {
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "dtype": str(_dtype(options)).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
    }
