"""The training child: `python -m trainer.run SPEC.json`, one JSON object a line on stdout, the rest on stderr.

SPEC is described in spec.py. The messages, by type:

    base_started    base [resumed_from_epoch, earlier_epochs]   epochs before a kill are not reported again
    dataset         base, train_examples, validation_examples, skipped: the first [{line, reason}], skipped_lines
    step            base, step, steps, loss, epoch              at most four a second
    epoch           base, epoch, epochs, train_loss [validation_loss], learning_rate, seconds, examples_seen
    base_completed  base, adapter (a folder), its figures and environment
    base_failed     base, reason
    finished        completed: [base, ...], failed: [base, ...] [reason]

Exit code 0 when at least one base was trained, 1 when none was, 2 for a wrong command line. Starting it again
with the same SPEC after a kill goes on from the last epoch; finished bases are reported and not retrained.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from pathlib import Path

from ledger.errors import MissingCapability, ModelLedgerError
from ledger.kit.child import Report, claim_stdout, die_with_parent
from trainer import checkpoints, dataset
from trainer.spec import BaseSpec, Spec, read_spec

MAX_REASON = 1000


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m trainer.run SPEC.json", file=sys.stderr)
        return 2
    die_with_parent()
    report = claim_stdout()
    try:
        spec = read_spec(Path(arguments[0]))
        checkpoints.bind(spec.workdir, spec.document)
    except (ModelLedgerError, OSError) as error:
        report({"type": "finished", "completed": [], "failed": [], "reason": str(error)})
        return 1
    completed, failed = run(spec, report)
    report({"type": "finished", "completed": completed, "failed": failed})
    return 0 if completed else 1


def run(spec: Spec, report: Report) -> tuple[list[str], list[str]]:
    """Train every base, one after the other; answers (keys trained, keys that failed)."""
    completed: list[str] = []
    failed: list[str] = []
    data = None
    for base in spec.bases:
        try:
            if data is None:
                prepare_process(spec)
                data = dataset.check(spec.dataset)
            _finetune(base, data, spec, report)
        except Exception as error:  # one base's failure, whatever it is, is its own: the others go on
            traceback.print_exc(file=sys.stderr)
            report({"type": "base_failed", "base": base.key, "reason": reason(error)})
            failed.append(base.key)
        else:
            completed.append(base.key)
    return completed, failed


def _finetune(base: BaseSpec, data: dataset.Report, spec: Spec, report: Report) -> None:
    # Imported late: torch must find the thread settings, and a refusal must not wait for it.
    from trainer import finetune
    from trainer.encode import Skipped

    training, held_out = dataset.split(data.examples, spec.options.validation_fraction, spec.options.seed)
    refused = [Skipped(p.line, f"{p.field}: {p.reason}" if p.field else p.reason) for p in data.problems]
    finetune.finetune(
        base,
        finetune.Data(training, held_out, refused, data.refused_lines, data.sha256),
        spec.options,
        checkpoints.BaseFolder(spec.workdir, base.key),
        report,
    )


def prepare_process(spec: Spec) -> None:
    """Environment for libraries not imported yet. Raises MissingCapability before anything is loaded."""
    chosen = spec.options
    threads = str(chosen.threads)
    os.environ.update(
        OMP_NUM_THREADS=threads,
        MKL_NUM_THREADS=threads,
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HOME=str(spec.workdir / "cache"),
    )
    # One device: SFTTrainer refuses the data parallelism it would otherwise fall into.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible if chosen.device == "cuda" else ""
    for library in ("torch", "transformers", "peft", "trl", "datasets"):
        _need(library)
    if chosen.quantisation == "nf4":
        _need("bitsandbytes")
    import torch

    torch.set_num_threads(chosen.threads)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise MissingCapability('this machine has no usable CUDA device; set device to "cpu" or use the laptop profile')


def _need(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise MissingCapability(f"the library {library} is not installed; pip install 'modelledger[trainer]'")


def reason(error: Exception) -> str:
    """One sentence for people; the traceback is on stderr."""
    text = " ".join(str(error).split())[:MAX_REASON]
    if isinstance(error, ModelLedgerError):
        return text
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory; lower batch_size or max_length ({text or 'no further detail'})"
    if isinstance(error, ImportError):
        return f"a library is missing or broken: {text}"
    return f"{type(error).__name__}: {text}" if text else f"failed with {type(error).__name__}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
