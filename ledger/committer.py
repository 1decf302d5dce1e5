"""One transaction for many requests: read, verify, decide, write, prove.

    committer = Committer(store)
    committer.commit([request, ...])      # one answer or error for each, after one durable commit

A request is a list of envelopes and is all or nothing: an event that breaks a rule fails its own request and
no other. This is all computation and one database; who calls it, and from where, is ledger/writer.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from msgspec import Struct

from ledger import rules
from ledger.actor_keys import ActorKeys
from ledger.database import driver_errors
from ledger.errors import BY_REASON, EventIdReused
from ledger.merkle import inclusion_proofs
from ledger.reading import Keys, Read, Reading, begin_reading
from ledger.rules import Known
from ledger.store import Store
from ledger.verifying import Verify, verify_alone
from ledger.writing import row_of

Request = Sequence[bytes]


class Appended(Struct, frozen=True):
    """Positions of a request's events, their inclusion proofs in the tree of `size`, and its checkpoint."""

    indexes: tuple[int, ...]
    proofs: tuple[tuple[bytes, ...], ...]
    size: int
    checkpoint: bytes


Commit = Callable[[], list[Appended | Exception]]
"""Commits a batch that was begun, once: one answer or error for each request."""


class Committer:
    """Decides and writes, for one store. Not for two threads at once."""

    def __init__(self, store: Store, verify: Verify = verify_alone) -> None:
        self.store = store
        self._verify = verify
        self._keys = ActorKeys(store)

    def append(self, envelopes: Request) -> Appended:
        """One request on its own. Raises the error of the first broken rule, with every violation on it."""
        (result,) = self.commit([envelopes])
        if isinstance(result, Exception):
            raise result
        return result

    def commit(self, requests: Sequence[Request]) -> list[Appended | Exception]:
        """One answer or error for each request, after one durable commit."""
        return self.begin(requests)()

    def begin(self, requests: Sequence[Request]) -> Commit:
        """What commits them. Their signatures are verified from now on, on the other cores: another batch may be
        committed meanwhile."""
        keys = self._keys.known
        return partial(self._commit, requests, keys, begin_reading(requests, keys, self._verify))

    def _commit(self, requests: Sequence[Request], keys: Keys, reading: Reading) -> list[Appended | Exception]:
        read = reading()
        if keys != self._keys.known:  # the batch before changed them
            read = begin_reading(requests, self._keys.known, self._verify)()
        accepted: list[Read] = []
        indexes: list[tuple[int, ...] | Exception] = []
        with driver_errors(), self.store.writing() as writing:
            if writing.size != self._keys.size:
                # Another process wrote, or a commit of ours went through unacknowledged.
                self._keys.catch_up(writing.size)
                read = begin_reading(requests, self._keys.known, self._verify)()
            events = [item.candidate.event for items in read if isinstance(items, list) for item in items]
            known = writing.known(
                digests=(a.sha256 for event in events for a in (*event.materials, *event.subjects)),
                ids=(event.id for event in events),
                streams=(event.stream for event in events),
            )
            known.keys = dict(self._keys.known)  # what is learned counts when it is committed
            for items in read:
                if isinstance(items, Exception):
                    indexes.append(items)
                    continue
                # One event leaves a trace only when it is accepted; more of them may fail half-way.
                attempt = known if len(items) == 1 else known.fork()
                try:
                    positions, fresh = _check_request(attempt, items)
                except Exception as error:  # whatever is wrong with one request is that request's own
                    indexes.append(error)
                    continue
                known = attempt
                indexes.append(positions)
                accepted += fresh
            writing.append([row_of(i.candidate.event, i.candidate.payload_sha256, i.entry) for i in accepted])
        self._keys.known, self._keys.size = known.keys, known.size
        return self._proven(indexes)

    def _proven(self, requests: Sequence[tuple[int, ...] | Exception]) -> list[Appended | Exception]:
        head = self.store.head
        wanted = list({index: None for request in requests if isinstance(request, tuple) for index in request})
        found = inclusion_proofs(self.store.tiles(head), wanted, head.size)
        proofs = dict(zip(wanted, map(tuple, found), strict=True))
        return [
            Appended(request, tuple([proofs[index] for index in request]), head.size, head.checkpoint)
            if isinstance(request, tuple)
            else request
            for request in requests
        ]


def _check_request(known: Known, items: Sequence[Read]) -> tuple[tuple[int, ...], list[Read]]:
    """Positions of a request's events, and those of them that are new. Raises when any may not be appended."""
    positions, fresh, violations = [], [], []
    for number, item in enumerate(items):
        event = item.candidate.event
        if event.id in known.ids:
            index, payload_sha256 = known.ids[event.id]
            if payload_sha256 != item.candidate.payload_sha256:
                raise EventIdReused(
                    f"envelopes[{number}]: event id {event.id} is taken by another event at index {index}"
                )
            positions.append(index)
            continue
        found = rules.check(known, item.candidate)
        violations += [replace(v, field=f"envelopes[{number}].{v.field}") for v in found]
        if not found:
            positions.append(known.size)
            fresh.append(item)
            rules.learn(known, item.candidate)
    if violations:
        # A lost race is reported as such only when nothing else is wrong.
        first = next((v for v in violations if v.reason != "WRONG_STREAM_VERSION"), violations[0])
        raise BY_REASON[first.reason]("; ".join(map(str, violations)), violations=violations)
    return tuple(positions), fresh
