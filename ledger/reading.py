"""Reading what callers send, before it is decided on: envelope, signatures, statement, schema.

All of it is computation on one request at a time, so it runs wherever there is a free core: in a child process when
many events come at once (verifying a signature holds Python's global lock, threads gain nothing), in a thread
when few do. Nothing here touches the database.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

from ledger import envelope as dsse
from ledger import rules, schema, statement
from ledger.errors import ModelLedgerError, Violation
from ledger.kit.child import die_with_parent
from ledger.rules import ActorKey, Candidate

POOL_FROM = 8  # events; a smaller batch is read sooner than a child process is asked

Keys = Mapping[str, ActorKey]


@dataclass(frozen=True)
class Read:
    """One envelope, read and verified, and its bytes as they came."""

    candidate: Candidate
    entry: bytes


ReadRequest = list[Read] | Exception


def read_requests(requests: Sequence[Sequence[bytes]], keys: Keys) -> list[ReadRequest]:
    """Every request's events, or what is wrong with the first one that cannot be read."""
    return [_read_request(envelopes, keys) for envelopes in requests]


class Reader:
    """Reads requests off the event loop: in child processes, or in a thread while those are not needed or not up."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._processes: ProcessPoolExecutor | None = None
        self._warm: Future[list[ReadRequest]] | None = None

    async def read(self, requests: Sequence[Sequence[bytes]], keys: Keys) -> list[ReadRequest]:
        loop = asyncio.get_running_loop()
        if sum(map(len, requests)) >= POOL_FROM and self._processes_ready():
            try:
                return await loop.run_in_executor(self._processes, read_requests, list(map(list, requests)), dict(keys))
            except BrokenExecutor:  # a child was killed; the work is done here and new ones are started
                self._processes = self._warm = None
        return await loop.run_in_executor(self._thread, read_requests, requests, keys)

    def close(self) -> None:
        self._thread.shutdown()
        if self._processes is not None:
            self._processes.shutdown()

    def _processes_ready(self) -> bool:
        if self._processes is None:
            spare = (os.cpu_count() or 1) - 1
            if spare < 1:
                return False
            # Never fork: gRPC and its threads are in this process.
            self._processes = ProcessPoolExecutor(
                spare, mp_context=multiprocessing.get_context("spawn"), initializer=die_with_parent
            )
            self._warm = self._processes.submit(read_requests, [], {})
        return self._warm is not None and self._warm.done()


def _read_request(envelopes: Sequence[bytes], keys: Keys) -> ReadRequest:
    items = []
    for position, entry in enumerate(envelopes):
        try:
            items.append(_read(entry, keys))
        except ModelLedgerError as error:
            where = f"envelopes[{position}]"
            violations = [replace(v, field=f"{where}.{v.field}") for v in error.violations]
            return type(error)(f"{where}: {error.message}", violations=violations)
        except Exception as error:  # a fault of ours in reading one request fails that request alone
            return error
    return items


def _read(entry: bytes, keys: Keys) -> Read:
    envelope = dsse.parse(entry)
    event = statement.decode(envelope.payload)
    verified, problems = set(), list(schema.violations(event.kind, event.data))
    for signature in envelope.signatures:
        key = keys.get(signature.keyid) or (None if keys else rules.founder(event))
        if key is None:
            continue  # a stranger's signature neither helps nor harms
        try:
            dsse.verify(envelope, signature.keyid, _public_key(key.public_key))
            verified.add(signature.keyid)
        except ModelLedgerError as error:
            problems.append(Violation("signatures", error.reason, error.message))
    candidate = Candidate(event, dsse.payload_digest(envelope), frozenset(verified), tuple(problems))
    return Read(candidate, entry)


@lru_cache(1_000)
def _public_key(der: bytes) -> dsse.PublicKey:
    return dsse.load_public_key(der)
