"""What a witness answers (C2SP tlog-witness): decides, remembers, and only then signs.

    200  cosigned; one signature line
    400  not a request, not a checkpoint, or an old size beyond the checkpoint's
    403  not signed by a key of that log, or a line of such a key does not fit
    404  a log that this witness does not know
    409  the old size is not the one remembered; the body is that size (text/x.tlog.size)
    422  the proof does not lead from the remembered tree to this one

Comparing with what is remembered and remembering the new tree are one transaction, so of two requests that continue
the same tree one wins. A crash behind it loses an answer, not the memory: asked again, the witness says 409, then
cosigns the same tree once more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from ledger.add_checkpoint import SIZE_TYPE, AddCheckpoint, encode_size, parse_request
from ledger.checkpoint import Checkpoint, WrongEmptyRoot
from ledger.cosignature import add_lines
from ledger.errors import InvalidConfig
from ledger.merkle import verify_consistency
from ledger.note import ED25519, BadSignature, Cosigner, NoteError, UnknownSigner, UnsignedNote, Verifier, open_note
from ledger.witness.state import State, Witnessed

log = logging.getLogger("modelledger.witness")

PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    content_type: str = PLAIN


class _Refused(Exception):
    """Ends a request with this answer, and its transaction with nothing changed."""

    def __init__(self, status: int, body: str | bytes, content_type: str = PLAIN) -> None:
        data = f"{body}\n".encode() if isinstance(body, str) else body
        super().__init__(data)
        self.answer = Answer(status, data, content_type)


class Witness:
    """Cosigns for the logs with these keys; a log's name is its origin. `at` is called at named points, so that tests
    can fail there."""

    def __init__(
        self,
        cosigner: Cosigner,
        state: State,
        logs: Sequence[Verifier],
        *,
        now: Callable[[], float] = time.time,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self.cosigner = cosigner
        self._state = state
        self._logs = _by_origin(logs)
        self._now = now
        self._at = at

    def add_checkpoint(self, body: bytes) -> Answer:
        """The answer to `POST /add-checkpoint`. Blocks until what it decided is on disk."""
        try:
            return Answer(200, self._add(_request(body)))
        except _Refused as refused:
            return refused.answer

    def checkpoint(self, origin_sha256: str) -> bytes | None:
        """The newest cosigned checkpoint of a log, for monitors."""
        witnessed = self._state.get(origin_sha256)
        return None if witnessed is None else witnessed.note

    def _add(self, request: AddCheckpoint) -> bytes:
        origin = request.checkpoint.partition(b"\n")[0]
        verifiers = self._logs.get(origin)
        if verifiers is None:
            raise _Refused(404, "this witness does not know a log of that origin")
        text, signatures = _opened(request.checkpoint, verifiers)
        checkpoint = _parsed(text, request.old_size)
        if request.old_size > checkpoint.size:
            raise _Refused(400, f"old size {request.old_size} is beyond the checkpoint's, {checkpoint.size}")
        with self._state.updating(sha256(origin).hexdigest()) as update:
            known = update.newest.size if update.newest else 0
            if request.old_size != known:
                raise _Refused(409, encode_size(known), SIZE_TYPE)
            try:
                _check_consistency(update.newest, request, checkpoint)
            except ValueError as error:
                log.error("a checkpoint of %s that contradicts size %d: %r", checkpoint.origin, known, text)
                raise _Refused(422, f"the consistency proof does not hold: {error}") from None
            line = self.cosigner.cosign(text, int(self._now()))
            note = add_lines(text + b"\n", [*signatures, line])
            update.store(Witnessed(checkpoint.size, checkpoint.root, note))
            self._at("before_persist")
        self._at("after_persist_before_answer")
        return line


def _request(body: bytes) -> AddCheckpoint:
    try:
        return parse_request(body)
    except ValueError as error:
        raise _Refused(400, str(error)) from None


def _opened(note: bytes, verifiers: Sequence[Verifier]) -> tuple[bytes, list[bytes]]:
    """The text and the log's own signature lines; what others signed is nothing that this witness vouches for."""
    try:
        opened = open_note(note, verifiers)
    except (UnsignedNote, UnknownSigner, BadSignature) as error:
        raise _Refused(403, str(error)) from None
    except NoteError as error:
        raise _Refused(400, str(error)) from None
    return opened.text, [signature.line for signature in opened.signatures]


def _parsed(text: bytes, old_size: int) -> Checkpoint:
    try:
        return Checkpoint.parse(text)
    except WrongEmptyRoot as error:
        raise _Refused(400 if old_size else 422, str(error)) from None
    except NoteError as error:
        raise _Refused(400, str(error)) from None


def _check_consistency(newest: Witnessed | None, request: AddCheckpoint, checkpoint: Checkpoint) -> None:
    """Raises ValueError unless the checkpoint continues the newest tree, which has the request's old size."""
    if newest is not None and newest.size:
        verify_consistency(newest.size, checkpoint.size, newest.root, checkpoint.root, request.proof)
    elif request.proof:
        raise ValueError(f"a proof from size 0 must be empty, has {len(request.proof)} hashes")


def _by_origin(logs: Sequence[Verifier]) -> Mapping[bytes, list[Verifier]]:
    if not logs:
        raise InvalidConfig("a witness needs the key of at least one log")
    found: dict[bytes, list[Verifier]] = {}
    for verifier in dict.fromkeys(logs):
        if verifier.algorithm != ED25519:
            raise InvalidConfig(f"the key of {verifier.name!r} is a witness's, not a log's")
        found.setdefault(verifier.name.encode(), []).append(verifier)
    return found
