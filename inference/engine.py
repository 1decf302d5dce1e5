"""The engine: a child process that loads ONE GGUF and answers requests, JSON lines on stdin and stdout.

    -> {"type":"load","path","sha256","context","threads","slots"}             first line, once
    <- {"type":"ready","context","vocabulary","architecture","chat_template","sha256","memory_bytes"}
    <- {"type":"refused","reason","message"}, exit code 3                      a reason of ledger/errors.py
    -> {"type":"generate","id","messages":[{role,content}] | "prompt","max_tokens"?,"temperature","top_p",
        "top_k"?,"seed"?,"stop":[...]}                                          fields: inference/generation.py
    <- {"type":"token","id","text"}                                            zero or more
    <- {"type":"done","id","finish_reason":"stop"|"length"|"cancelled","prompt_tokens","completion_tokens","seconds"}
    <- {"type":"error","id","reason","message","metadata"}                     instead of done
    -> {"type":"cancel","id"}      -> {"type":"unload"}: cancels what runs, frees the model, exit code 0

The only writer of requests is inference/engine_client.py, from checked values; a malformed line is a bug and ends
the process. One thread makes all llama.cpp calls, the main one reads stdin. The process ends when its parent does.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from ledger.errors import MissingCapability, ModelLedgerError
from ledger.kit.child import Report, claim_stdout, die_with_parent

EXIT_REFUSED = 3
# llama.cpp splits text with std::regex for many vocabularies, which recurses once per character: with the usual
# 8 MiB, one long word ends the process. Only touched pages cost memory; 1 KiB for each byte of the longest prompt.
STACK_BYTES = 1 << 30


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    # Ctrl-C in a terminal reaches the whole process group; the service decides when an engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reply = claim_stdout()
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=_run, args=(inbox, reply)).start()
    for line in sys.stdin.buffer:
        inbox.put(line)
    # End of input: the service is gone, nobody can read an answer. The other thread may be inside a decode.
    os._exit(0)


def _run(inbox: queue.SimpleQueue[bytes], reply: Report) -> None:
    """The thread that makes all llama.cpp calls. The process ends with it, whatever the reason."""
    code = 1
    try:
        _serve(inbox, reply)
        code = 0
    except ModelLedgerError as error:
        reply({"type": "refused", "reason": error.reason, "message": error.message})
        code = EXIT_REFUSED
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve(inbox: queue.SimpleQueue[bytes], reply: Report) -> None:
    load = json.loads(inbox.get())
    model = _load(load)
    reply(
        {
            "type": "ready",
            "context": model.context,
            "vocabulary": model.vocabulary,
            "architecture": model.architecture,
            "chat_template": model.has_chat_template,
            "sha256": model.sha256,
            "memory_bytes": _resident_bytes(),
        }
    )
    from inference.batching import Batcher

    batcher = Batcher(model, load["slots"], reply)
    while _take(inbox, batcher):
        batcher.step()
    batcher.cancel_all()
    model.close()


def _load(load: dict[str, Any]) -> Any:
    try:
        from inference.llama import Model
    except ImportError as error:
        raise MissingCapability(f"llama.cpp is not usable here: {error}; install modelledger[inference]") from None
    return Model(
        Path(load["path"]),
        load["sha256"],
        context=load["context"],
        threads=load["threads"],
        slots=load["slots"],
    )


def _take(inbox: queue.SimpleQueue[bytes], batcher: Any) -> bool:
    """Take what has arrived, waiting if there is nothing else to do. False: unload was asked for."""
    while not batcher.busy or not inbox.empty():
        message = json.loads(inbox.get())
        if message["type"] == "unload":
            return False
        if message["type"] == "generate":
            batcher.add(message)
        elif message["type"] == "cancel":
            batcher.cancel(message["id"])
        else:
            raise ValueError(f"unknown message type {message['type']!r}")
    return True


def _resident_bytes() -> int:
    """Memory this process occupies now (proc_pid_statm(5), second field, in pages)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
