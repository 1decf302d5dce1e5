"""Continuous batching: many requests in one context, one decode per step, a fair share for each.

Every step takes one token of each answering request, then fills the batch with prompt tokens, shared evenly
between the requests that are still reading their prompt; so a long prompt delays nobody by more than one step.
A request holds a slot (a llama.cpp sequence) from admission to its last token; the others wait in order.
"""

from __future__ import annotations

import secrets
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference.answer_text import AnswerText
from inference.llama import BATCH, Entry, Model, Sampler
from ledger.errors import InvalidInput, ModelLedgerError, Overloaded

MAX_WAITING = 256
Reply = Callable[[dict[str, Any]], None]


@dataclass
class Running:
    """One request on its way. `pending` are the tokens the model has not seen yet: the prompt, later one token."""

    id: str
    pending: deque[int]
    prompt_tokens: int
    room: int
    sampler: Sampler
    text: AnswerText
    slot: int = -1
    position: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)


class Batcher:
    """The requests of one engine. `reply` is called with protocol messages (see inference/engine.py)."""

    def __init__(self, model: Model, slots: int, reply: Reply) -> None:
        self._model = model
        self._free = list(range(slots))
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._reply = reply

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def add(self, request: dict[str, Any]) -> None:
        """Queue a generate request, or answer it with an error."""
        try:
            self._waiting.append(self._prepare(request))
        except ModelLedgerError as error:
            self._reply(
                {
                    "type": "error",
                    "id": request["id"],
                    "reason": error.reason,
                    "message": error.message,
                    "metadata": error.metadata,
                }
            )

    def cancel(self, request_id: str) -> None:
        """End a request wherever it stands; unknown ids have ended already."""
        for request in (*self._running, *self._waiting):
            if request.id == request_id:
                self._end(request, "cancelled")

    def cancel_all(self) -> None:
        for request in (*self._running, *self._waiting):
            self._end(request, "cancelled")

    def step(self) -> None:
        """Admit, decode once, hand out what came of it."""
        while self._waiting and self._free:
            request = self._waiting.popleft()
            request.slot = self._free.pop()
            self._running.append(request)
        entries: list[Entry] = []
        answering: list[tuple[Running, int]] = []
        for request, count in _shares(self._running, BATCH):
            for _ in range(count):
                token = request.pending.popleft()
                entries.append(Entry(token, request.position, request.slot, not request.pending))
                request.position += 1
            if not request.pending:
                answering.append((request, len(entries) - 1))
        if not entries:
            return
        self._model.decode(entries)
        for request, index in answering:
            self._take(request, self._model.sample(request.sampler, index))

    def _prepare(self, request: dict[str, Any]) -> Running:
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} requests are already waiting for this model; try again later")
        tokens = self._tokens(request)
        room = self._model.context - len(tokens)
        if room < 1:
            raise InvalidInput(
                f"the prompt has {len(tokens)} tokens; this model reads at most {self._model.context} tokens, "
                "prompt and answer together; shorten the prompt",
                metadata={"code": "context_length_exceeded"},
            )
        if not tokens:
            raise InvalidInput("the prompt is empty")
        limit, seed = request.get("max_tokens"), request.get("seed")
        return Running(
            id=request["id"],
            pending=deque(tokens),
            prompt_tokens=len(tokens),
            room=room if limit is None else min(room, limit),
            sampler=Sampler(
                request["temperature"],
                request["top_p"],
                request.get("top_k"),
                secrets.randbits(32) if seed is None else seed,
            ),
            text=AnswerText(request["stop"]),
        )

    def _tokens(self, request: dict[str, Any]) -> list[int]:
        if "prompt" in request:
            return self._model.tokenize(request["prompt"], add_special=True)
        try:
            text = self._model.format_chat(request["messages"])
        except ModelLedgerError:
            raise
        except Exception:
            # A template is a program that came with the weights: it may raise anything, and its words are not ours.
            traceback.print_exc()
            raise InvalidInput(
                "the model's chat template refuses these messages; check their roles and their order"
            ) from None
        # The template writes BOS itself where the model wants one, as transformers' apply_chat_template does.
        return self._model.tokenize(text, add_special=False)

    def _take(self, request: Running, token: int) -> None:
        if self._model.ends_answer(token):
            self._end(request, "stop")
            return
        request.completion_tokens += 1
        self._send(request, request.text.push(self._model.piece(token)))
        if request.text.stopped:
            self._end(request, "stop")
        elif request.completion_tokens >= request.room:
            self._end(request, "length")
        else:
            request.pending.append(token)

    def _end(self, request: Running, finish_reason: str) -> None:
        if request.slot >= 0:
            self._running.remove(request)
            self._model.forget(request.slot)
            self._free.append(request.slot)
        elif request in self._waiting:
            self._waiting.remove(request)
        request.sampler.close()
        if finish_reason != "cancelled":
            self._send(request, request.text.finish())
        self._reply(
            {
                "type": "done",
                "id": request.id,
                "finish_reason": finish_reason,
                "prompt_tokens": request.prompt_tokens,
                "completion_tokens": request.completion_tokens,
                "seconds": round(time.monotonic() - request.started, 6),
            }
        )

    def _send(self, request: Running, text: str) -> None:
        if text:
            self._reply({"type": "token", "id": request.id, "text": text})


def _shares(running: Sequence[Running], budget: int) -> list[tuple[Running, int]]:
    """How many pending tokens of each request go into the next batch; shortest first, so all are served evenly."""
    shares = []
    left = len(running)
    for request in sorted(running, key=lambda request: len(request.pending)):
        count = min(len(request.pending), budget // left)
        shares.append((request, count))
        budget -= count
        left -= 1
    return shares
