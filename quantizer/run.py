"""The quantizer's child process: `python -m quantizer.run SPEC.json`, one job, then exit 0 or 1.

Standard output carries messages, one JSON object a line, and nothing else: libraries that print, in Python
or in C, reach standard error. The messages:

    stage      {stage: merge | convert | parity | quantise | check, detail}
    progress   {stage, done, total}
    output     {quantisation, path, size, original_size, base_size, reduction, tensor_types, fallbacks,
               modelfile, seconds}; sizes in bytes, reduction = 1 - size / original_size (the F16 GGUF),
               base_size = the merged safetensors; of type LORA: {adapter: place in the chain} and no reduction
    parity     {probes, mismatches, non_nfc_mismatches, template_equal, special_tokens_equal}; sent before a
               job that fails on it
    agreement  {quantisation, prompts, equal}: greedy answers equal to the merged model's
    quality    {quantisation, tokens, perplexity, original_perplexity, mean_kl, top1_agreement}: against the
               F16 GGUF on the job's `texts`; only when it has some
    files      {modelfile, licence (absent if none), licence_missing}
    finished   {hardware, versions, seconds, pre_tokenizer, pre_tokenizer_source,
               merge: {max_abs_logit_difference, max_abs_difference_from_base}}; unmeasured fields are absent
    failed     {reason, error: reason code}; nothing was made

output, agreement, quality and files are sent when everything stands under `workdir/results`. The process
is killed by the kernel when its parent dies.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from ledger.errors import InvalidInput, ModelLedgerError
from ledger.kit.child import claim_stdout, die_with_parent
from quantizer import spec as job_spec


def main(arguments: list[str]) -> int:
    """Run the job that the one argument names; the exit status."""
    send = claim_stdout()
    die_with_parent()
    try:
        if len(arguments) != 1:
            raise InvalidInput("usage: python -m quantizer.run SPEC.json")
        spec = job_spec.load(Path(arguments[0]))
        _prepare_libraries(spec.threads)
        from quantizer import pipeline  # after the environment is set: it imports torch and transformers

        pipeline.run(spec, send)
    except BrokenPipeError:
        return 1  # nobody listens any more
    except ModelLedgerError as error:
        send({"type": "failed", "reason": error.message, "error": error.reason})
        return 1
    except Exception as error:
        # The outermost frame of this process: whatever went wrong is this job's reason.
        traceback.print_exc()
        send({"type": "failed", "reason": f"{type(error).__name__}: {error}"[:2000], "error": "INTERNAL"})
        return 1
    return 0


def _prepare_libraries(threads: int) -> None:
    # OpenMP reads its setting when torch is imported; hubs are never asked at run time.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
