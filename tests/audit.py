"""Believe nothing: recompute a whole log from its entries and compare everything the database says about it."""

from __future__ import annotations

from sqlalchemy import select

from ledger import envelope as dsse
from ledger import rules, schema, statement, tables
from ledger.checkpoint import open_checkpoint
from ledger.edge import Edge
from ledger.errors import InvalidSignature, Violation
from ledger.events import KINDS
from ledger.merkle import EMPTY_ROOT, leaf_hash
from ledger.note import NoteError
from ledger.rules import Candidate, Known
from ledger.statement import Event
from ledger.store import Store


def verify_whole_log(store: Store) -> int:
    """The number of events. Raises AssertionError naming the position of the first thing that is wrong."""
    with store._reader.connect() as connection:
        rows = connection.execute(select(tables.events).order_by(tables.events.c.position)).all()
        stored_tiles = {(t.level, t.tile): t.hashes for t in connection.execute(select(tables.tiles))}
        notes = connection.execute(select(tables.checkpoints).order_by(tables.checkpoints.c.size)).all()
        introductions = {(i.sha256, i.name): i.position for i in connection.execute(select(tables.introductions))}
        revocations = {r.sha256: r.position for r in connection.execute(select(tables.revocations))}

    edge, known = Edge(), Known()
    roots = {0: EMPTY_ROOT}
    introduced: dict[tuple[str, str], int] = {}
    revoked: dict[str, int] = {}
    for index, row in enumerate(rows):
        where = f"event {index}"
        assert row.position == index, f"{where} is missing; the next one is at {row.position}"
        assert leaf_hash(row.entry) == row.leaf_hash, f"{where}: its bytes do not have its leaf hash"
        for tile, hashes in edge.append(row.leaf_hash):
            stored = stored_tiles.pop((tile.level, tile.index), None)
            assert stored == hashes, f"{where}: {tile} is not made of the events' leaf hashes"
        roots[edge.size] = edge.root()
        candidate = _replay(known, row.entry, where)
        event = candidate.event
        columns = (row.id, row.stream, row.version, row.kind, row.payload_sha256)
        signed = (event.id, event.stream, event.version, event.kind, candidate.payload_sha256)
        assert columns == signed, f"{where}: the columns {columns} are not what was signed, {signed}"
        assert row.id not in known.ids, f"{where}: its id stands twice"
        for subject in event.subjects:
            if KINDS[event.kind].introduces:
                introduced.setdefault((subject.sha256, subject.name), index)
            if KINDS[event.kind].revokes:
                revoked[subject.sha256] = index
        rules.learn(known, candidate)
    assert not stored_tiles, f"tiles that no event completes: {sorted(stored_tiles)}"
    assert introductions == introduced, "introductions are not those of the events"
    assert revocations == revoked, "revocations are not those of the events"

    previous = 0
    for row in notes:
        where = f"checkpoint {row.size}"
        try:
            checkpoint = open_checkpoint(row.note, [store.signer.verifier], store.signer.name)
        except NoteError as error:
            raise AssertionError(f"{where}: {error}") from error
        assert checkpoint.size == row.size, f"{where} signs size {checkpoint.size}"
        assert row.previous == previous, f"{where} follows {row.previous}, not {previous}"
        assert checkpoint.root == roots.get(row.size), f"{where} does not sign the root of its events"
        previous = row.size
    assert previous == len(rows), f"the newest checkpoint covers {previous} of {len(rows)} events"
    return len(rows)


def _replay(known: Known, entry: bytes, where: str) -> Candidate:
    """What the append rules say about an entry after everything before it."""
    envelope = dsse.parse(entry)
    event = statement.decode(envelope.payload)
    verified, problems = set(), list(schema.violations(event.kind, event.data))
    for signature in envelope.signatures:
        key = known.keys.get(signature.keyid) or _founder(known, event)
        if key is None:
            continue
        try:
            dsse.verify(envelope, signature.keyid, dsse.load_public_key(key.public_key))
            verified.add(signature.keyid)
        except InvalidSignature as error:
            problems.append(Violation("signatures", error.reason, error.message))
    candidate = Candidate(event, dsse.payload_digest(envelope), frozenset(verified), tuple(problems))
    violations = rules.check(known, candidate)
    assert not violations, f"{where} breaks a rule: " + "; ".join(map(str, violations))
    return candidate


def _founder(known: Known, event: Event) -> rules.ActorKey | None:
    return None if known.keys else rules.founder(event)
