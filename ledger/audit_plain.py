"""A bundle of plain events at once: what they ask of the log before them, and what they add to it. Pure.

Nearly every bundle is one: each event is sound by itself and signed by one enrolled actor, and none is about keys or
revokes anything. All that depends on order within the bundle is settled by whoever reads it, on any core; what is left
to ask in order are a few look-ups. Any doubt is for `rules.standing`, event by event, which also says what is wrong.
`Plain.fits` says yes only where that finds nothing: tests/laws/test_audit_plain.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from ledger.events import KINDS
from ledger.key_rules import KEY_KINDS
from ledger.rules import Introduced, Known
from ledger.statement import Event

_PLAIN = {
    name: bool(kind.introduces)
    for name, kind in KINDS.items()
    if name not in KEY_KINDS and not kind.revokes and not kind.of_revoked
}

Named = tuple[str, str]  # sha256, name


@dataclass(frozen=True, slots=True)
class Plain:
    """What a bundle of plain events asks and adds; offsets are within the bundle.

    signed: (keyid, actor, kind) -> offsets of events; before, after: versions of the streams; used: artifacts that an
    event behind the bundle must have introduced; introduced: artifact -> offset of the first event here that did.
    """

    ids: Sequence[str]
    signed: dict[tuple[str, str, str], list[int]]
    before: dict[str, int]
    after: dict[str, int]
    used: set[Named]
    introduced: dict[Named, int]

    @classmethod
    def of(cls, events: Sequence[Event], keyids: Sequence[str]) -> Plain | None:
        """Events that are sound by themselves, each with the one key that signed it; None when they are not plain."""
        ids = tuple([event.id for event in events])
        if len(set(ids)) != len(ids):
            return None
        plain = cls(ids, {}, {}, {}, set(), {})
        signed, before, after, introduced = plain.signed, plain.before, plain.after, plain.introduced
        for offset, (event, keyid) in enumerate(zip(events, keyids, strict=True)):
            kind, stream, version = event.kind, event.stream, event.version
            if kind not in _PLAIN:
                return None
            signed.setdefault((keyid, event.actor, kind), []).append(offset)
            if after.setdefault(stream, version - 1) != version - 1:
                return None
            before.setdefault(stream, version - 1)
            after[stream] = version
            used = event.materials if _PLAIN[kind] else (*event.materials, *event.subjects)
            for artifact in used:
                if (named := (artifact.sha256, artifact.name)) not in introduced:
                    plain.used.add(named)
            if _PLAIN[kind]:
                for artifact in event.subjects:
                    introduced.setdefault((artifact.sha256, artifact.name), offset)
        return plain

    def fits(self, known: Known) -> bool:
        """Whether the append rules allow these events next, and none of their ids stands in the log already."""
        artifacts, streams = known.artifacts, known.streams
        if not known.size or not known.ids.keys().isdisjoint(self.ids):
            return False
        for keyid, actor, kind in self.signed:
            key = known.keys.get(keyid)
            if key is None or key.actor != actor or key.retired_at is not None or key.role not in KINDS[kind].roles:
                return False
        for stream, version in self.before.items():
            if streams.get(stream, 0) != version:
                return False
        for sha256, name in self.used:
            artifact = artifacts.get(sha256)
            if artifact is None or name not in artifact.names or artifact.revoked_at is not None:
                return False
        for sha256, _ in self.introduced:
            artifact = artifacts.get(sha256)
            if artifact is not None and artifact.revoked_at is not None:
                return False
        return True

    def learn(self, known: Known) -> set[tuple[str, str, int]]:
        """Take events in that fit, as `rules.learn` does one by one. What they introduced: (sha256, name, index)."""
        start, artifacts, rows = known.size, known.artifacts, set()
        known.size += len(self.ids)
        known.ids.update(dict.fromkeys(self.ids, (start, "")))
        known.streams.update(self.after)
        for (sha256, name), offset in self.introduced.items():
            earlier = artifacts.get(sha256)
            if earlier is None:
                artifacts[sha256] = Introduced(frozenset((name,)), start + offset)
            elif name in earlier.names:
                continue
            else:
                artifacts[sha256] = replace(earlier, names=earlier.names | {name})
            rows.add((sha256, name, start + offset))
        return rows

    def digests(self) -> set[str]:
        """Of every artifact that is mentioned."""
        return {sha256 for sha256, _ in self.used} | {sha256 for sha256, _ in self.introduced}
