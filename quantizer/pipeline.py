"""One quantisation, from adapters to checked GGUF files.

    merge -> convert (F16) -> parity -> quantise (each type) -> check (each file answers) -> results/

Everything is made below `workdir/work`; only when every check has passed is the finished folder renamed to
`workdir/results`. So a job that dies at any moment leaves nothing under a final name.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ledger.errors import ArtifactMismatch, InvalidInput, Refused
from ledger.kit.catalog import inspect_folder
from quantizer import (
    adapter,
    convert,
    converter,
    gguf_header,
    hardware,
    measure,
    merge,
    model_folder,
    modelfile,
    parity,
    quality,
    quantise,
)
from quantizer.spec import F16, LORA, Spec

Send = Callable[[dict[str, Any]], None]
LIBRARIES = ("llama-cpp-python", "safetensors", "tokenizers", "torch", "transformers")


def run(spec: Spec, send: Send) -> None:
    """Do the job, reporting as it goes (messages: run.py). Raises ModelLedgerError when it fails."""
    started = time.monotonic()
    work, results = spec.workdir / "work", spec.workdir / "results"
    made = work / "results"
    try:
        for leftover in (work, results):
            shutil.rmtree(leftover, ignore_errors=True)
        made.mkdir(parents=True)
        outcome = _Job(spec, work, made, results, send).outcome()
        made.rename(results)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Refused(f"could not work in {_room(spec.workdir)}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for message in outcome.pop("messages"):
        send(message)
    seconds = round(time.monotonic() - started, 3)
    send({"type": "finished", "hardware": hardware.describe(), "seconds": seconds, **outcome})


class _Job:
    """The steps share the tokenizer, the adapters and the converter; each step is one method."""

    def __init__(self, spec: Spec, work: Path, made: Path, results: Path, send: Send) -> None:
        self.spec, self.work, self.made, self.results, self.send = spec, work, made, results, send
        self.stem = file_stem(spec.name)
        model_folder.check(spec.base)
        self._check_base()
        self.adapters = [adapter.read(folder) for folder in spec.adapters]
        self.converter = converter.ensure_converter()

    def outcome(self) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        facts: dict[str, Any] = {}
        if LORA in self.spec.types:
            messages += [self._adapter(number) for number in range(len(self.adapters))]
        if set(self.spec.types) - {LORA}:
            made, facts = self._model()
            messages += made
        self._check_base()
        return {"messages": messages, "versions": _versions(), **facts}

    def _check_base(self) -> None:
        """The folder holds what the log names. Cheap the second time, unless a file was touched."""
        found = inspect_folder(self.spec.base).sha256
        if found != self.spec.base_sha256:
            raise ArtifactMismatch(
                f"{self.spec.base} changed: it hashes to {found}, the request names {self.spec.base_sha256}; restore "
                "it, or register it as it is now and quantise again"
            )

    def _adapter(self, number: int) -> dict[str, Any]:
        started, source = time.monotonic(), self.adapters[number]
        self._stage("convert", f"adapter {number + 1} of {len(self.adapters)}")
        path = self.made / f"{self.stem}-{LORA}-{number + 1}.gguf"
        convert.convert_adapter(self.converter, source, self.spec.base, path)
        return self._output(LORA, path, gguf_header.read(path).histogram(), started) | {"adapter": number}

    def _model(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        model = self.spec.base
        if self.adapters:
            self._stage("merge", f"{len(self.adapters)} adapters")
            model = merge.merge(model, self.adapters, self.work / "merged", self._progress("merge"))
        base_size = sum(shard.stat().st_size for shard in model_folder.shards(model))

        started = time.monotonic()
        self._stage("convert", F16)
        original = self.made / f"{self.stem}-{F16}.gguf"
        named = convert.convert_model(self.converter, model, original, self.spec.name)
        converted = self._output(F16, original, gguf_header.read(original).histogram(), started)
        original_size = original.stat().st_size

        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        self._parity(tokenizer, original)

        outputs = [converted] if F16 in self.spec.types else []
        for name in (name for name in self.spec.types if name in quantise.FILE_TYPES):
            outputs.append(self._quantise(original, name))

        measured, facts = self._check(model, tokenizer, outputs)
        measured += self._quality(tokenizer, original, outputs)
        for output in outputs:
            reduction = 1 - output["size"] / original_size
            output |= {"original_size": original_size, "base_size": base_size, "reduction": reduction}
        files = self._files(tokenizer, outputs)
        if converted not in outputs:
            original.unlink()
        if named:
            facts |= {"pre_tokenizer": named.name, "pre_tokenizer_source": named.source}
        return [*outputs, *measured, files], facts

    def _parity(self, tokenizer: Any, gguf: Path) -> None:
        self._stage("parity", "tokenizer against GGUF")
        result = parity.compare(tokenizer, gguf, self.spec.texts)
        self.send(
            {
                "type": "parity",
                "probes": result.probes,
                "mismatches": result.mismatches,
                "non_nfc_mismatches": result.non_nfc_mismatches,
                "template_equal": result.template_equal,
                "special_tokens_equal": result.special_tokens_equal,
            }
        )
        if result.broken:
            raise Refused(f"the GGUF would not read text as the model does: {result.broken}")

    def _quantise(self, original: Path, name: str) -> dict[str, Any]:
        started = time.monotonic()
        self._stage("quantise", name)
        path = self.made / f"{self.stem}-{name}.gguf"
        done = quantise.quantise(original, path, name, self.spec.threads, self._progress("quantise"))
        return self._output(name, path, done.tensor_types, started) | {"fallbacks": done.fallbacks}

    def _check(
        self, model: Path, tokenizer: Any, outputs: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Each file answers; how often as the model in float32 does, and what the merge changed."""
        ids, stop = measure.prompts(tokenizer), {tokenizer.eos_token_id}
        reference, facts = None, {}
        self._stage("check", "reference answers")
        if measure.fits_in_memory(model):
            loaded = measure.load(model)
            reference = [measure.greedy(loaded, prompt, stop) for prompt in ids]
            effect = measure.merge_effect(self.spec.base, loaded, self.adapters, ids) if self.adapters else None
            if effect:
                facts["merge"] = {
                    "max_abs_logit_difference": effect.max_abs_logit_difference,
                    "max_abs_difference_from_base": effect.max_abs_difference_from_base,
                }
        messages = []
        for output in outputs:
            self._stage("check", output["quantisation"])
            path = self.made / Path(output["path"]).name
            answers = measure.greedy_gguf(path, ids, stop, self.spec.threads)
            if reference is not None:
                equal = sum(ours == theirs for ours, theirs in zip(answers, reference, strict=True))
                about = {"type": "agreement", "quantisation": output["quantisation"]}
                messages.append({**about, "prompts": len(ids), "equal": equal})
        return messages, facts

    def _quality(self, tokenizer: Any, original: Path, outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each quantised file against F16 on the job's held-out texts; nothing without such texts."""
        held_out = quality.windows([tokenizer(text).input_ids for text in self.spec.texts])
        messages = []
        for output in outputs if held_out else []:
            if output["quantisation"] != F16:
                self._stage("check", f"{output['quantisation']} on held-out text")
                path = self.made / Path(output["path"]).name
                found = quality.compare(original, path, held_out, self.spec.threads)
                about = {"type": "quality", "quantisation": output["quantisation"]}
                messages.append(about | dataclasses.asdict(found))
        return messages

    def _files(self, tokenizer: Any, outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A Modelfile for each output, and the base's licence."""
        chatml = tokenizer.chat_template is not None and modelfile.is_chatml(_renderer(tokenizer))
        stops = [tokenizer.eos_token] if tokenizer.eos_token else []
        for output in outputs:
            name = f"Modelfile.{output['quantisation']}"
            gguf = Path(output["path"]).name
            text = modelfile.render(gguf, self.spec.name, chatml_template=chatml, stops=stops)
            (self.made / name).write_text(text, encoding="utf-8")
            output["modelfile"] = str(self.results / name)
        message: dict[str, Any] = {"type": "files", "modelfile": outputs[0]["modelfile"]}
        licence = modelfile.licence_file(path.name for path in self.spec.base.iterdir() if path.is_file())
        if licence:
            shutil.copyfile(self.spec.base / licence, self.made / licence)
            message["licence"] = str(self.results / licence)
        return message | {"licence_missing": licence is None}

    def _output(self, name: str, path: Path, types: dict[str, int], started: float) -> dict[str, Any]:
        return {
            "type": "output",
            "quantisation": name,
            "path": str(self.results / path.name),
            "size": path.stat().st_size,
            "tensor_types": types,
            "seconds": round(time.monotonic() - started, 3),
        }

    def _stage(self, stage: str, detail: str) -> None:
        self.send({"type": "stage", "stage": stage, "detail": detail})

    def _progress(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.send({"type": "progress", "stage": stage, "done": done, "total": total})


def file_stem(name: str) -> str:
    """A model's name as the beginning of a file name. Raises InvalidInput when nothing is left of it."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if not stem:
        raise InvalidInput(f"name: {name!r} has no letter or digit for a file name")
    return stem


def _room(folder: Path) -> str:
    """The folder and how much may still be written there: a full disk is the usual reason."""
    return f"{folder} ({shutil.disk_usage(folder).free:,} bytes free)" if folder.is_dir() else str(folder)


def _renderer(tokenizer: Any) -> Callable[[modelfile.Conversation], str | None]:
    from jinja2 import TemplateError

    def render(conversation: modelfile.Conversation) -> str | None:
        messages = [{"role": role, "content": content} for role, content in conversation]
        try:
            text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError:  # a template's own way to refuse a role it does not know
            return None
        return text

    return render


def _versions() -> dict[str, str]:
    installed = {name: metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **installed}
