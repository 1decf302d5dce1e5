"""The auditor of a whole log: everything the ledger checked is checked again, and its word is taken for nothing.

    source ──► bundles of 256 entries ──► all cores: envelopes, statements, schemas, signatures, leaf hashes
                                     ──► here, in order: rules, stored columns, tiles, checkpoints, the signed root

    audited = audit(source, [Verifier.parse(vkey)])
    audit(source, verifiers, since=last_note, state=AuditState(path, last_note))   # only what came since

Any fault is a DamagedLog that names the position of the first one. Memory is bounded: entries stream, and what
the rules must remember lies in an AuditState.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ledger import rules
from ledger.audit_cores import read_on_cores
from ledger.audit_entries import ReadBundle, ReadEntry, read_bundle, read_entries, verified_by
from ledger.audit_plain import Plain
from ledger.audit_source import Bundle, Source, fault
from ledger.audit_state import AuditState
from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.errors import DamagedLog, InvalidSignature, Violation
from ledger.events import KINDS
from ledger.frontier import Frontier
from ledger.merkle import HASH_SIZE, NODE_HEIGHT, TILE_HEIGHT, TILE_WIDTH, StoredTile, Tile, tile_nodes, tile_root
from ledger.note import NoteError, Verifier
from ledger.rules import Candidate
from ledger.trust import Trust
from ledger.verify_keys import Signed, Untrusted

ALONE = 2_000  # events that are read in this process: starting others takes as long
NOBODY = Trust(())

Progress = Callable[[int, int], None]
IndexRow = TypeVar("IndexRow", bound=tuple[Any, ...])


@dataclass(frozen=True)
class Audited:
    """What was found sound: the log up to its newest checkpoint, of which `since` events had been audited before."""

    origin: str
    size: int
    root: bytes
    note: bytes
    since: int
    streams: int
    artifacts: int
    actors: list[str]
    untrusted: list[Untrusted]  # of those read now: by keys that others had too, or that `trust` does not allow


def audit(
    source: Source,
    verifiers: Sequence[Verifier],
    *,
    since: bytes = b"",
    state: AuditState | None = None,
    trust: Trust = NOBODY,
    jobs: int = 0,
    progress: Progress = lambda done, total: None,
) -> Audited:
    """Verify the log up to its newest checkpoint, and that it continues the checkpoint `since`.

    `state` must be the one saved for `since`, or empty: then everything is read again. `jobs` processes read; 0 is one
    for each core. `progress` gets events done and to do. Raises DamagedLog, InvalidSignature.
    """
    note = source.checkpoint()
    newest = open_trusted(note, verifiers, source.name)
    if state is None:
        with AuditState() as temporary:
            return _Audit(source, verifiers, newest, since, temporary).run(note, jobs, progress, trust)
    return _Audit(source, verifiers, newest, since, state).run(note, jobs, progress, trust)


def open_trusted(note: bytes, verifiers: Sequence[Verifier], name: str) -> Checkpoint:
    """The checkpoint of a log that we trust, whatever the note calls itself. Raises InvalidSignature."""
    origin = note.partition(b"\n")[0].decode(errors="replace")
    if origin not in {verifier.name for verifier in verifiers}:
        raise InvalidSignature(f"{name}: the checkpoint is of log {origin[:200]!r}, which is not one you trust")
    try:
        return open_checkpoint(note, verifiers, origin)
    except NoteError as error:
        raise InvalidSignature(f"{name}: the checkpoint does not verify: {error}") from None


def claimed_key(source: Source) -> str:
    """The verifier key that a log's first event names: what there is to go by when nobody has said which to trust."""
    source.checkpoint()  # which says best what is wrong with an address where there is no log
    bundle = next(source.bundles(0, 1), None)
    if bundle is None:
        raise fault(0, "event 0 is missing")
    [entry] = read_entries(bundle.entries[:1], {})
    if isinstance(entry, str):
        raise fault(0, f"event 0: {entry}")
    vkey = str(entry.event.data.get("logVkey"))
    try:
        Verifier.parse(vkey)
    except NoteError as error:
        raise fault(0, f"event 0: {error}") from None
    return vkey


class _Audit:
    """One pass over one source."""

    def __init__(
        self, source: Source, verifiers: Sequence[Verifier], newest: Checkpoint, since: bytes, state: AuditState
    ) -> None:
        self._source = source
        self._verifiers = tuple(verifiers)
        self._newest = newest
        self._state = state
        self._expected: dict[int, bytes] = {newest.size: newest.root}  # size -> root that a trusted checkpoint signs
        if since:
            self._continue(open_trusted(since, verifiers, "the last checkpoint seen"))
        self._start = self._kept_size = state.known.size
        self._frontier = Frontier(_subtrees(state))
        self._signed = Signed()

    def run(self, note: bytes, jobs: int, progress: Progress, trust: Trust) -> Audited:
        size, state = self._newest.size, self._state
        done = self._start
        progress(done, size)
        for bundle, read in self._read(self._source.bundles(self._start, size), jobs or len(os.sched_getaffinity(0))):
            self._take(bundle, read)
            done += len(bundle.entries)
            progress(done, size)
        if done != size:
            raise fault(done, f"event {done} is missing: the log ends there, its checkpoint covers {size} events")
        self._source.finish(size)
        actors = sorted({key.actor for key in state.known.keys.values()})
        return Audited(
            origin=self._newest.origin,
            size=size,
            root=self._newest.root,
            note=note,
            since=self._start,
            streams=state.counts()[0],
            artifacts=state.counts()[1],
            actors=actors,
            untrusted=self._signed.untrusted(state.known.keys, trust),
        )

    def _continue(self, last: Checkpoint) -> None:
        newest, state = self._newest, self._state
        if last.origin != newest.origin:
            raise InvalidSignature(f"the last checkpoint seen is of log {last.origin!r}, this is {newest.origin!r}")
        if last.size > newest.size:
            raise fault(
                newest.size,
                f"the log was cut off: it had {last.size} events, its newest checkpoint covers {newest.size}",
            )
        if state.known.size not in (0, last.size) or (state.known.size and state.edge.root() != last.root):
            state.forget()
        if self._expected.setdefault(last.size, last.root) != last.root:
            raise fault(last.size, f"the log was forked: it has signed two checkpoints of size {last.size}")

    def _read(self, bundles: Iterator[Bundle], jobs: int) -> Iterator[tuple[Bundle, ReadBundle]]:
        """Every bundle with what the cores made of it, in order."""
        remaining = self._newest.size - self._start
        for bundle in bundles:
            # The first here, alone: it holds the keys that the others are verified by.
            yield bundle, read_bundle(*self._task(bundle))
            remaining -= len(bundle.entries)
            if remaining > ALONE and jobs > 1:
                break
        else:
            return
        yield from read_on_cores(bundles, self._task, min(jobs, -(-remaining // TILE_WIDTH)))

    def _task(self, bundle: Bundle) -> tuple[Any, ...]:
        """What `read_bundle` is called with."""
        notes = [kept.note for kept in bundle.checkpoints]
        return bundle.entries, self._keys(), notes, self._verifiers, bundle.columns

    def _keys(self) -> dict[str, bytes]:
        return {keyid: key.public_key for keyid, key in self._state.known.keys.items()}

    # The tree

    def _take(self, bundle: Bundle, read: ReadBundle) -> None:
        """Check one bundle. The rules are asked up to the tree's first fault, so that the first of all is named."""
        wrong = self._tree(bundle, read)
        if wrong is None and read.plain and self._fits(read.plain):
            self._take_plain(bundle, read.plain)
        else:
            limit = max(0, int(wrong.metadata["position"]) - bundle.start) if wrong else len(bundle.entries)
            entries = read.entries or read_entries(bundle.entries[:limit], self._keys())
            self._rules(bundle, entries[:limit], whole=wrong is None)
        if wrong:
            raise wrong
        self._state.rest()

    def _tree(self, bundle: Bundle, read: ReadBundle) -> DamagedLog | None:
        """The first fault that hashes show in a bundle."""
        leaf_hashes, start = read.leaf_hashes, bundle.start
        hashes = [leaf_hashes[i : i + HASH_SIZE] for i in range(0, len(leaf_hashes), HASH_SIZE)]
        kept_hashes = bundle.columns.leaf_hash if bundle.columns else None
        if kept_hashes is not None and kept_hashes != tuple(hashes):
            index = start + next(i for i, leaf in enumerate(hashes) if kept_hashes[i] != leaf)
            return fault(index, f"event {index} was changed: its bytes do not have the leaf hash kept for it")
        tiles = self._state.edge.extend(leaf_hashes)
        if start + len(hashes) == self._newest.size:
            tiles += self._partial_tiles()
        for tile, expected in tiles:
            if wrong := self._compare(tile, expected):
                return wrong
        due = {size: root for size, root in self._expected.items() if start < size <= start + len(hashes)}
        for kept, (size, root, problem) in zip(bundle.checkpoints, read.notes, strict=True):
            if problem:
                return fault(kept.size, f"the checkpoint kept for size {kept.size} does not verify: {problem}")
            if size != kept.size:
                return fault(kept.size, f"the checkpoint kept for size {kept.size} signs size {size}")
            if kept.previous != self._kept_size:
                what = f"says that it follows size {kept.previous}, not {self._kept_size}"
                return fault(kept.size, f"the checkpoint kept for size {kept.size} {what}")
            if due.setdefault(size, root) != root:
                return fault(size, f"the log was forked: it has signed two checkpoints of size {size}")
            self._kept_size = size
        return self._roots(hashes, start, due)

    def _roots(self, hashes: Sequence[bytes], start: int, due: dict[int, bytes]) -> DamagedLog | None:
        """Grow the tree by a bundle; compare its root at every size that a checkpoint signs."""
        if len(hashes) == TILE_WIDTH and due.keys() <= {start + TILE_WIDTH}:
            self._frontier.append(tile_root(b"".join(hashes)), TILE_HEIGHT)
            return self._root(start + TILE_WIDTH, due)
        for size, leaf in enumerate(hashes, start + 1):
            self._frontier.append(leaf)
            if wrong := self._root(size, due):
                return wrong
        return None

    def _root(self, size: int, due: dict[int, bytes]) -> DamagedLog | None:
        if size not in due or (root := self._frontier.root()) == due[size]:
            return None
        return fault(
            size, f"the first {size} events have the root {root.hex()}, their checkpoint signs {due[size].hex()}"
        )

    def _compare(self, tile: Tile, expected: bytes) -> DamagedLog | None:
        kept = self._source.tile(tile)
        if kept is None:
            return None
        element, what, each = _first_difference(kept, expected), "hash", 1
        if element is None and isinstance(kept, StoredTile):
            element, what, each = _first_difference(kept.nodes, tile_nodes(expected)), "node", 1 << NODE_HEIGHT
        if element is None:
            return None
        position = (tile.index * TILE_WIDTH + element * each) << (TILE_HEIGHT * tile.level)
        where = f"tile {tile.index} of level {tile.level}"
        return fault(position, f"event {position} does not agree with {what} {element} of {where}, width {tile.width}")

    def _partial_tiles(self) -> Iterator[tuple[Tile, bytes]]:
        """The tiles that the tree's last leaf left incomplete."""
        edge = self._state.edge
        for level in range(edge.levels):
            if hashes := edge.partial(level):
                yield Tile(level, edge.size >> (TILE_HEIGHT * (level + 1)), len(hashes) // HASH_SIZE), hashes

    # The rules

    def _fits(self, plain: Plain) -> bool:
        self._state.recall(plain.ids, plain.before.keys(), plain.digests())
        return plain.fits(self._state.known)

    def _take_plain(self, bundle: Bundle, plain: Plain) -> None:
        introduced = plain.learn(self._state.known)
        for (keyid, _, _), offsets in plain.signed.items():
            self._signed.extend(keyid, [bundle.start + offset for offset in offsets])
        _check_rows("introduction", bundle.introductions, introduced)
        _check_rows("revocation", bundle.revocations, set())

    def _rules(self, bundle: Bundle, entries: Sequence[ReadEntry | str], *, whole: bool) -> None:
        state, known = self._state, self._state.known
        events = [entry.event for entry in entries if isinstance(entry, ReadEntry)]
        mentioned = {a.sha256 for event in events for a in (*event.subjects, *event.materials)}
        state.recall((event.id for event in events), {event.stream for event in events}, mentioned)
        introduced: set[tuple[str, str, int]] = set()
        revoked: set[tuple[str, int]] = set()
        for offset, entry in enumerate(entries):
            index = bundle.start + offset
            if isinstance(entry, str):
                raise fault(index, f"event {index}: {entry}")
            event = entry.event
            candidate = self._candidate(entry, bundle.entries[offset])
            violations = [*candidate.problems, *rules.standing(known, candidate)]
            if event.id in known.ids:
                violations.append(Violation("predicate.event.id", "EVENT_ID_REUSED", "stands in the log twice"))
            if violations:
                wrong = fault(index, f"event {index} breaks a rule: {'; '.join(map(str, violations))}")
                wrong.violations = tuple(violations)
                raise wrong
            if bundle.columns is not None:
                _check_columns(index, bundle, offset, entry)
            kind = KINDS[event.kind]
            for subject in event.subjects:
                earlier = known.artifacts.get(subject.sha256)
                if kind.introduces and not (earlier and subject.name in earlier.names):
                    introduced.add((subject.sha256, subject.name, index))
                if kind.revokes:
                    revoked.add((subject.sha256, index))
            rules.learn(known, candidate)
            self._signed.add(index, event.actor, candidate.verified, known.keys)
            if index == 0:
                self._is_this_log(event.data)
        if whole:
            _check_rows("introduction", bundle.introductions, introduced)
            _check_rows("revocation", bundle.revocations, revoked)

    def _candidate(self, entry: ReadEntry, raw: bytes) -> Candidate:
        """The entry's signatures as the keys of this moment see them: a stranger's neither helps nor harms."""
        event, keys = entry.event, self._state.known.keys
        if not keys and (founder := rules.founder(event)):
            keys = {rules.key_id(founder): founder}
        signatures = entry.signatures
        verified, failed = set(signatures.verified), dict(signatures.failed)
        for keyid in signatures.untried:
            if keyid in keys:
                problem = verified_by(raw, keyid, keys[keyid].public_key)
                if problem:
                    failed[keyid] = problem
                else:
                    verified.add(keyid)
        problems = [
            Violation("signatures", InvalidSignature.reason, failed[keyid]) for keyid in failed if keyid in keys
        ]
        return Candidate(event, entry.payload_sha256, frozenset(verified & keys.keys()), (*entry.problems, *problems))

    def _is_this_log(self, data: object) -> None:
        """The log says of itself who it is; that must be the log whose checkpoints we trust."""
        trusted = {verifier.vkey() for verifier in self._verifiers if verifier.name == self._newest.origin}
        if (
            not isinstance(data, dict)
            or data.get("origin") != self._newest.origin
            or data.get("logVkey") not in trusted
        ):
            raise fault(0, "event 0 creates another log than the one whose checkpoint you trust")


def _first_difference(kept: bytes, expected: bytes) -> int | None:
    """Which of some hashes is the first to be another one, or not to be there."""
    if kept == expected:
        return None
    starts = range(0, len(expected), HASH_SIZE)
    differ = (at // HASH_SIZE for at in starts if kept[at : at + HASH_SIZE] != expected[at : at + HASH_SIZE])
    return next(differ, len(starts))


def _check_columns(index: int, bundle: Bundle, offset: int, entry: ReadEntry) -> None:
    assert bundle.columns is not None  # noqa: S101 - for the type checker
    event = entry.event
    signed = {"id": event.id, "stream": event.stream, "version": event.version, "kind": event.kind}
    signed["payload_sha256"] = entry.payload_sha256
    for name, value in signed.items():
        column = getattr(bundle.columns, name)
        if column is not None and column[offset] != value:
            raise fault(index, f"event {index}: {name} is kept as {column[offset]!r}, signed is {value!r}")


def _check_rows(what: str, kept: frozenset[IndexRow] | None, expected: set[IndexRow]) -> None:
    """Compare index rows, whose last field is a position."""
    if kept is None or kept == expected:
        return
    row = min(kept ^ expected, key=lambda row: int(row[-1]))
    how = "is kept, and no event made it" if row in kept else "is missing"
    raise fault(int(row[-1]), f"event {row[-1]}: its {what} of {' '.join(map(str, row[:-1]))} {how}")


def _subtrees(state: AuditState) -> Iterator[tuple[int, bytes]]:
    """The complete subtrees at a tree's edge, largest first."""
    edge = state.edge
    for level in reversed(range(edge.levels)):
        hashes, frontier = edge.partial(level), Frontier()
        for i in range(0, len(hashes), HASH_SIZE):
            frontier.append(hashes[i : i + HASH_SIZE])
        for height, root in frontier.subtrees:
            yield TILE_HEIGHT * level + height, root
