"""The quantisation job: what a worker does with a requested quantisation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelledger.ledger.v1 import events_pb2
from modelledger.quantizer.v1 import quantizer_pb2

from ledger.errors import ModelLedgerError, WrongStreamVersion
from ledger.kit.live import Changes
from ledger.kit.work import MAX_ATTEMPTS, PASSING, Ended, Task
from quantizer.aggregate import Quantization
from quantizer.application import BASE_PREFIX, Quantizing
from quantizer.spec import MAX_NAME

log = logging.getLogger("modelledger.quantizer")

Message = dict[str, Any]


class QuantizationJob:
    """Implements ledger.kit.work.Job. `live` holds the newest stage of each quantisation; it is shown, not recorded."""

    group = "quantizer-quantizations"
    requested = "QuantizationRequested"
    cancelled: Sequence[str] = ()

    def __init__(self, quantizing: Quantizing, changes: Changes) -> None:
        self._quantizing = quantizing
        self._changes = changes
        self._messages: dict[str, list[Message]] = {}
        self._attempts: dict[str, int] = {}  # of what is in hand: the newest one when it was this worker's
        self.live: dict[str, quantizer_pb2.LiveStage] = {}

    def claim(self, stream: str, worker: str) -> Task | None:
        quantization = self._quantizing.load(Quantization, stream)
        if quantization.over:
            return None
        self._attempts[stream] = quantization.attempts
        if quantization.attempts >= MAX_ATTEMPTS:
            self._fail(quantization, f"the worker was stopped {quantization.attempts} times during this quantisation")
            return None
        folder = self._folder(quantization)
        spec = self._spec(quantization, folder)
        quantization.started(worker)
        self._quantizing.record(quantization)
        self._attempts[stream] = quantization.attempts
        self._messages[stream] = []
        self._changes.publish(stream)
        return Task("quantizer.run", spec, folder)

    def message(self, stream: str, message: Message) -> None:
        if message["type"] in ("stage", "progress"):
            self.live[stream] = quantizer_pb2.LiveStage(
                stage=message["stage"], done=message.get("done", 0), total=message.get("total", 0)
            )
            self._changes.publish(stream)
        else:
            self._messages[stream].append(message)

    def ended(self, stream: str, ended: Ended) -> None:
        messages = self._messages.pop(stream, [])
        self.live.pop(stream, None)
        quantization = self._own(stream)
        if quantization.over:
            return
        finished = _first(messages, "finished")
        if ended.well and finished and _first(messages, "output"):
            self._complete(quantization, messages)
        else:
            reported = (_first(messages, "failed") or {}).get("reason")
            self._fail(quantization, ended.problem or reported or ended.reason)

    def refused(self, stream: str, reason: str) -> None:
        quantization = self._own(stream)
        if not quantization.over:
            self._fail(quantization, reason)

    def forget(self, stream: str) -> None:
        self._attempts.pop(stream, None)
        self._messages.pop(stream, None)
        self.live.pop(stream, None)
        self._changes.publish(stream)

    def _own(self, stream: str) -> Quantization:
        """The quantisation as it is now. Raises WrongStreamVersion when another worker has begun it since this one
        did."""
        found = self._quantizing.load(Quantization, stream)
        if not found.over and found.attempts != self._attempts.get(stream, found.attempts):
            raise WrongStreamVersion(f"{found.worker} has begun {stream} since; what was done here does not count")
        return found

    def _complete(self, quantization: Quantization, messages: Sequence[Message]) -> None:
        """The files into the store, then the one event that vouches for them."""
        try:
            quantization.completed(self._outcome(quantization.request, messages))
            self._quantizing.record(quantization)
        except PASSING:
            raise
        except (ModelLedgerError, OSError) as error:
            # For example a base withdrawn meanwhile, or a full disk: what was made is not vouched for.
            log.warning("%s: the result could not be kept: %s", quantization.id, error)
            again = self._own(quantization.id)
            self._fail(again, f"the result could not be kept: {error}")
            return
        self._clean_up(quantization)

    def _fail(self, quantization: Quantization, reason: str) -> None:
        if not quantization.over:
            quantization.failed(reason)
            self._quantizing.record(quantization)
        self._clean_up(quantization)

    def _clean_up(self, quantization: Quantization) -> None:
        shutil.rmtree(self._folder(quantization), ignore_errors=True)  # everything that counts is in the store
        self._changes.publish(quantization.id)

    def _outcome(
        self, request: events_pb2.QuantizationRequested, messages: Sequence[Message]
    ) -> events_pb2.QuantizationCompleted:
        """The event's data: what the child measured, and nothing else."""
        finished, files, parity = (_first(messages, kind) or {} for kind in ("finished", "files", "parity"))
        merge = finished.get("merge", {})
        outcome = events_pb2.QuantizationCompleted(
            quantization=request.quantization,
            org=request.org,
            model=request.model,
            version=request.version,
            base=request.base,
            files=[self._file(request, message, messages) for message in messages if message["type"] == "output"],
            licence_missing=files.get("licence_missing", False),
            pre_tokenizer=finished.get("pre_tokenizer", ""),
            pre_tokenizer_source=finished.get("pre_tokenizer_source", ""),
            parity_probes=parity.get("probes"),
            parity_mismatches=parity.get("mismatches"),
            parity_non_nfc_mismatches=parity.get("non_nfc_mismatches"),
            merge_max_logit_difference=merge.get("max_abs_logit_difference"),
            merge_max_difference_from_base=merge.get("max_abs_difference_from_base"),
            hardware={key: str(value) for key, value in finished["hardware"].items()},
            versions=finished["versions"],
            seconds=finished["seconds"],
        )
        if "licence" in files:
            outcome.licence.CopyFrom(self._keep(f"licences/{request.quantization}", files["licence"]))
        return outcome

    def _file(
        self, request: events_pb2.QuantizationRequested, output: Message, messages: Sequence[Message]
    ) -> events_pb2.QuantizedFile:
        agreement = next(
            (m for m in messages if m["type"] == "agreement" and m["quantisation"] == output["quantisation"]), {}
        )
        file = events_pb2.QuantizedFile(
            type=output["quantisation"],
            file=self._keep(f"gguf/{request.quantization}", output["path"]),
            original_size=output.get("original_size", 0),
            reduction=output.get("reduction", 0.0),
            tensor_types=output["tensor_types"],
            seconds=output["seconds"],
            agreement_prompts=agreement.get("prompts"),
            agreement_equal=agreement.get("equal"),
        )
        if "modelfile" in output:
            file.modelfile.CopyFrom(self._keep(f"modelfiles/{request.quantization}", output["modelfile"]))
        return file

    def _keep(self, prefix: str, path: str) -> events_pb2.ArtifactRef:
        stored = self._quantizing.artifacts.put_file(Path(path))
        return events_pb2.ArtifactRef(name=f"{prefix}/{Path(path).name}", sha256=stored.sha256, size=stored.size)

    def _spec(self, quantization: Quantization, folder: Path) -> dict[str, Any]:
        """The child's input, every byte of it checked against its digest. Raises when something changed since."""
        request, material = quantization.request, quantization.base_material()
        base = self._quantizing.folder_of(material.name.removeprefix(BASE_PREFIX), material.sha256)
        return {
            "id": request.quantization,
            "workdir": str((folder / "quantization").resolve()),
            "name": _display_name(request),
            "base": {"key": base.key, "path": str(base.path.resolve()), "sha256": base.sha256},
            "adapters": [self._checkout(folder / "adapters" / a.sha256, a.sha256) for a in quantization.adapters()],
            "types": list(request.types),
            "threads": self._quantizing.config.threads,
        }

    def _checkout(self, target: Path, sha256: str) -> str:
        shutil.rmtree(target, ignore_errors=True)  # an earlier attempt's; its bytes may have been changed since
        return str(self._quantizing.artifacts.checkout(sha256, target).resolve())

    def _folder(self, quantization: Quantization) -> Path:
        return self._quantizing.config.work_folder / quantization.id.rpartition("/")[2]


def _first(messages: Sequence[Message], kind: str) -> Message | None:
    return next((message for message in messages if message["type"] == kind), None)


def _display_name(request: events_pb2.QuantizationRequested) -> str:
    """What the GGUF calls itself; of a very long name the end, which tells versions apart."""
    name = f"{request.org}/{request.model} {request.version}" if request.version else request.model
    return name[-MAX_NAME:]
