"""Model folder -> F16 GGUF, and LoRA adapter -> GGUF adapter, by llama.cpp's own unmodified scripts.

The scripts run inside the calling child process (importing torch and transformers again would cost 5 s a
time) with the converter's own gguf-py first on the path: the packaged `gguf` of the same version number differs.
The one thing added: when llama.cpp's table does not know a tokenizer, its name comes from pre_tokenizer.py.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger.errors import MissingCapability, ModelLedgerError
from quantizer import model_folder, pre_tokenizer
from quantizer.adapter import Adapter

TABLE, STRUCTURE = "llama.cpp table", "tokenizer.json structure"


@dataclass(frozen=True)
class PreTokenizer:
    """llama.cpp's name for how text is split, and where it was learnt from: TABLE or STRUCTURE."""

    name: str
    source: str


def convert_model(converter: Path, model: Path, out: Path, name: str) -> PreTokenizer | None:
    """Write `model` as an F16 GGUF at `out`. `name` goes into the file, so equal input gives equal bytes.

    Returns None for a model whose tokenizer needs no pre-tokenizer (sentencepiece). Raises
    InvalidBaseModel on code in the folder, MissingCapability when llama.cpp cannot convert it.
    """
    model_folder.check(model)
    arguments = [str(model), "--outfile", str(out), "--outtype", "f16", "--model-name", name]
    _use(converter)
    with _named_by_structure() as learnt:
        _run(converter / "convert_hf_to_gguf.py", arguments)
    return learnt[-1] if learnt else None


def convert_adapter(converter: Path, adapter: Adapter, base: Path, out: Path) -> None:
    """Write an adapter as a GGUF adapter (F32) for its base, whose config.json alone is read."""
    if adapter.rslora:
        # The script writes alpha as it is and llama.cpp applies alpha / r: wrong by a factor sqrt(r).
        raise MissingCapability(
            f"{adapter.folder}: rsLoRA adapters convert silently wrong; merge it into its base, or train with "
            "use_rslora=false"
        )
    model_folder.check(base)
    _use(converter)
    arguments = [str(adapter.folder), "--base", str(base), "--outfile", str(out), "--outtype", "f32"]
    _run(converter / "convert_lora_to_gguf.py", arguments)


def _use(converter: Path) -> None:
    own = [str(converter), str(converter / "gguf-py")]
    loaded = getattr(sys.modules.get("gguf"), "__file__", None)
    if loaded and not Path(loaded).is_relative_to(converter):
        raise RuntimeError(f"gguf was imported from {loaded} before the converter's own")
    sys.path[:0] = [entry for entry in own if entry not in sys.path]


@contextmanager
def _named_by_structure() -> Iterator[list[PreTokenizer]]:
    """While open, an unknown tokenizer is named by structure; yields what was learnt."""
    from conversion.base import TextModel  # type: ignore[import-not-found]

    original, learnt = TextModel.get_vocab_base_pre, []

    def named(self: Any, tokenizer: Any) -> str:
        try:
            found = PreTokenizer(original(self, tokenizer), TABLE)
        except NotImplementedError:
            document = model_folder.read_json(Path(self.dir_model) / "tokenizer.json")
            found = PreTokenizer(pre_tokenizer.derive(document), STRUCTURE)
        learnt.append(found)
        return found.name

    TextModel.get_vocab_base_pre = named
    try:
        yield learnt
    finally:
        TextModel.get_vocab_base_pre = original


def _run(script: Path, arguments: list[str]) -> None:
    before = sys.argv
    sys.argv = [str(script), *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except (ModelLedgerError, OSError):
        raise
    except Exception as error:
        # The script has no error type of its own: whatever it trips over means it cannot convert this model.
        raise MissingCapability(f"llama.cpp's {script.name}: {type(error).__name__}: {error}") from error
    except SystemExit as error:
        if error.code:
            raise MissingCapability(
                f"llama.cpp's {script.name} gave up with exit code {error.code}; its messages are in the job's log"
            ) from None
    finally:
        sys.argv = before
