"""llama.cpp behind a few plain verbs: load one GGUF, tokenise, decode a batch, sample, forget a sequence.

Only `inference/engine.py` imports this, in its own process: one thread makes every call here (a context used by
two threads at once aborts the process), and `llama_cpp` costs memory no service process should pay.

The file is read into memory, not mapped: a mapped page is read later than it was hashed. `load` hashes the open
file, lets llama.cpp read that same open file, and then checks that the file was not written in between.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp as lib
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from ledger.errors import ArtifactMismatch, Damaged, InvalidConfig, InvalidInput, MissingCapability, NotFound
from ledger.kit.artifacts import hash_stream

BATCH = 512  # tokens in one decode call, over all sequences
MAX_TEXT = 1 << 20  # bytes of one prompt
LOG_WARNING, LOG_CONTINUED = 3, 5  # ggml_log_level


@dataclass(frozen=True)
class Entry:
    """One token of a batch: where it stands in which sequence, and whether an answer token follows it."""

    token: int
    position: int
    sequence: int
    wants_next: bool


class Model:
    """One loaded GGUF with one context of `slots` sequences, each of up to `context` tokens."""

    def __init__(self, path: Path, sha256: str, *, context: int, threads: int, slots: int) -> None:
        """Raises NotFound, ArtifactMismatch, Damaged (not a loadable GGUF) or InvalidConfig (no room)."""
        self._model = _load_verified(path, sha256)
        self.sha256 = sha256
        trained = int(lib.llama_model_n_ctx_train(self._model))
        self.context = min(context, trained) if trained else context
        self._context = _new_context(self._model, self.context, threads, slots)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self.vocabulary = int(lib.llama_vocab_n_tokens(self._vocab))
        self.architecture = self._metadata(b"general.architecture")
        self._formatter = self._chat_formatter()

    @property
    def has_chat_template(self) -> bool:
        return self._formatter is not None

    def format_chat(self, messages: Sequence[Any]) -> str:
        """The prompt of a conversation, by the GGUF's own template (Jinja2, sandboxed). Raises MissingCapability
        without one, and what a template raises: TemplateError, TypeError, ValueError (its raise_exception)."""
        if self._formatter is None:
            raise MissingCapability("this model has no chat template; send a plain prompt instead of messages")
        return str(self._formatter(messages=list(messages)).prompt)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens written in the text are recognised. `add_special`: BOS/EOS as the GGUF says.
        Raises InvalidInput for a text longer than MAX_TEXT bytes."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise InvalidInput("the prompt holds half a surrogate pair, which is no character") from None
        if len(data) > MAX_TEXT:
            raise InvalidInput(
                f"the prompt has {len(data)} bytes; at most {MAX_TEXT} are read; shorten it",
                metadata={"code": "context_length_exceeded"},
            )
        size = len(data) + 2
        tokens = (lib.llama_token * size)()
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, size, add_special, True)
        if count < 0:
            raise RuntimeError(f"llama_tokenize wants room for {-count} tokens, there is room for {size}")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; nothing for control tokens."""
        size = 64
        while True:
            buffer = (ctypes.c_char * size)()
            count = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def ends_answer(self, token: int) -> bool:
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def decode(self, entries: Sequence[Entry]) -> None:
        """One forward pass; afterwards `sample` may be asked for the entries that want a next token."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, entry in enumerate(entries):
            batch.token[index] = entry.token
            batch.pos[index] = entry.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = entry.sequence
            batch.logits[index] = entry.wants_next
        status = lib.llama_decode(self._context, batch)
        if status:
            # Every sequence has cells of its own, so no status is expected here; the process gives up.
            raise RuntimeError(f"llama_decode answered {status} for {len(entries)} tokens")

    def sample(self, sampler: Sampler, index: int) -> int:
        """The next token after entry `index` of the last decode."""
        return int(lib.llama_sampler_sample(sampler.chain, self._context, index))

    def forget(self, sequence: int) -> None:
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    def _chat_formatter(self) -> Jinja2ChatFormatter | None:
        template = lib.llama_model_chat_template(self._model, None)
        if template is None:
            return None
        bos, eos = lib.llama_vocab_bos(self._vocab), lib.llama_vocab_eos(self._vocab)
        return Jinja2ChatFormatter(
            template=template.decode(), bos_token=self._token_text(bos), eos_token=self._token_text(eos)
        )

    def _token_text(self, token: int) -> str:
        return lib.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""

    def _metadata(self, key: bytes) -> str:
        buffer = ctypes.create_string_buffer(256)
        count = lib.llama_model_meta_val_str(self._model, key, buffer, len(buffer))
        return buffer.value.decode() if count >= 0 else ""


class Sampler:
    """How one request draws its tokens. Temperature 0 is greedy; else temperature, top-k, top-p, seeded draw."""

    def __init__(self, temperature: float, top_p: float, top_k: int | None, seed: int) -> None:
        self.chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for stage in self._stages(temperature, top_p, top_k, seed):
            lib.llama_sampler_chain_add(self.chain, stage)

    @staticmethod
    def _stages(temperature: float, top_p: float, top_k: int | None, seed: int) -> list[Any]:
        if temperature == 0:
            return [lib.llama_sampler_init_greedy()]
        stages = [lib.llama_sampler_init_temp(temperature)]
        if top_k is not None:
            stages.append(lib.llama_sampler_init_top_k(top_k))
        if top_p < 1:
            stages.append(lib.llama_sampler_init_top_p(top_p, 1))
        # 0xFFFFFFFF is LLAMA_DEFAULT_SEED, "draw one at random": no caller's seed may become it.
        return [*stages, lib.llama_sampler_init_dist(seed % 0xFFFFFFFF)]

    def close(self) -> None:
        lib.llama_sampler_free(self.chain)


def _load_verified(path: Path, sha256: str) -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fdopen.restype = ctypes.c_void_p
    libc.fclose.argtypes = [ctypes.c_void_p]
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from None
    with file:
        before = os.fstat(file.fileno())
        actual = hash_stream(file).sha256
        if actual != sha256:
            raise ArtifactMismatch(f"{path}: its bytes hash to {actual}, asked for was {sha256}; not loaded")
        file.seek(0)  # the stream below shares this offset
        stream = libc.fdopen(os.dup(file.fileno()), b"rb")
        parameters = lib.llama_model_default_params()
        parameters.load_mode = lib.LLAMA_LOAD_MODE_NONE
        model = lib.llama_model_load_from_file_ptr(stream, parameters)
        libc.fclose(stream)
        if not model:
            raise Damaged(f"{path}: llama.cpp cannot load it: {_LOG}")
        if _writes(os.fstat(file.fileno())) != _writes(before):
            raise ArtifactMismatch(f"{path}: was written to while it was loaded; not used")
    return model


def _writes(status: os.stat_result) -> tuple[int, int, int]:
    """Changes with every write to a file: its size and both times (the second cannot be set by a user)."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _new_context(model: Any, context: int, threads: int, slots: int) -> Any:
    parameters = lib.llama_context_default_params()
    # Not unified: every sequence has `context` cells of its own, so a running request never loses its room.
    parameters.kv_unified = False
    parameters.n_ctx = context * slots
    parameters.n_seq_max = slots
    parameters.n_batch = parameters.n_ubatch = BATCH
    parameters.n_threads = parameters.n_threads_batch = threads
    created = lib.llama_init_from_model(model, parameters)
    if not created:
        raise InvalidConfig(
            f"engine.context: no room for {slots} slots of {context} tokens: {_LOG}; lower context or slots"
        )
    return created


class _Log:
    """llama.cpp's warnings and errors: to stderr, and the last ones kept as the reason of a failure."""

    def __init__(self) -> None:
        self._level = 0
        self._lines: deque[str] = deque(maxlen=20)
        self._callback = lib.llama_log_callback(self._receive)  # must outlive every llama.cpp call
        lib.llama_log_set(self._callback, None)

    def __str__(self) -> str:
        return " ".join("".join(self._lines).split())[-500:] or "no reason given"

    def _receive(self, level: int, text: bytes, _: Any) -> None:
        if level != LOG_CONTINUED:
            self._level = level
        if self._level >= LOG_WARNING:
            line = text.decode(errors="replace")
            sys.stderr.write(line)
            self._lines.append(line)


_LOG = _Log()
lib.llama_backend_init()
