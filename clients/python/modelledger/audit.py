"""The auditor of a whole log: entries in order and a verified checkpoint, believed not at all. Pure.

Everything that the sequencer checked is checked again: each envelope's signatures by the keys that were enrolled then,
each statement against the append rules, and the Merkle root of all entries against the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ledger import envelope, merkle, rules, schema, statement
from ledger.checkpoint import Checkpoint
from ledger.errors import DamagedLog, ModelLedgerError, Violation
from ledger.rules import Candidate, Known
from ledger.trust import Trust
from ledger.verify_keys import Signed, Untrusted

NOBODY = Trust(())


@dataclass(frozen=True)
class Audited:
    """What the log holds."""

    streams: int
    artifacts: int
    actors: list[str]
    untrusted: list[Untrusted]  # events by keys that others had too, or that `trust` does not allow


def audit(entries: Iterable[bytes], checkpoint: Checkpoint, trust: Trust = NOBODY) -> Audited:
    """Verify entries 0, 1, … against the checkpoint. Raises DamagedLog with the position of the first fault."""
    known, leaves, signed = Known(), [], Signed()
    for index, entry in enumerate(entries):
        leaves.append(merkle.leaf_hash(entry))
        try:
            candidate = _candidate(known, entry)
        except ModelLedgerError as error:
            raise DamagedLog(f"event {index}: {error.message}") from None
        violations = rules.check(known, candidate)
        if candidate.event.id in known.ids:
            violations.append(Violation("predicate.event.id", "EVENT_ID_REUSED", "stands in the log twice"))
        if violations:
            raise DamagedLog(f"event {index} breaks a rule: {'; '.join(map(str, violations))}", violations=violations)
        rules.learn(known, candidate)
        signed.add(index, candidate.event.actor, candidate.verified, known.keys)
    if len(leaves) != checkpoint.size:
        raise DamagedLog(f"the log holds {len(leaves)} events, its checkpoint covers {checkpoint.size}")
    root = merkle.root(leaves)
    if root != checkpoint.root:
        raise DamagedLog(f"the events have the root {root.hex()}, the checkpoint signs {checkpoint.root.hex()}")
    actors = sorted({key.actor for key in known.keys.values()})
    return Audited(len(known.streams), len(known.artifacts), actors, signed.untrusted(known.keys, trust))


def _candidate(known: Known, entry: bytes) -> Candidate:
    parsed = envelope.parse(entry)
    event = statement.decode(parsed.payload)
    verified, problems = set(), list(schema.violations(event.kind, event.data))
    for signature in parsed.signatures:
        key = known.keys.get(signature.keyid) or (None if known.keys else rules.founder(event))
        if key is None:
            continue  # a stranger's signature neither helps nor harms
        try:
            envelope.verify(parsed, signature.keyid, envelope.load_public_key(key.public_key))
            verified.add(signature.keyid)
        except ModelLedgerError as error:
            problems.append(Violation("signatures", error.reason, error.message))
    return Candidate(event, envelope.payload_digest(parsed), frozenset(verified), tuple(problems))
