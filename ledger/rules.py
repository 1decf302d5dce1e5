"""What may be appended: a pure function from what is known and an event to the list of what is wrong.

`check` answers every violation at once; an empty list means accepted. `learn` is how an accepted event
changes what is known. The sequencer runs both inside its write transaction, the auditor over a whole log; there
`form` runs on all cores, `standing` in order.

The last rule is the point of the system: every material and every spoken-of subject was introduced by an
earlier event under that name and is not revoked, and every digest in an event's data is one of its subjects or
materials. So a record that names the wrong base model, or data nobody registered, cannot be written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ledger.errors import Violation
from ledger.events import KINDS, LEDGER, Kind
from ledger.key_rules import KEY_KINDS, about, check_keys, compromised_from, decode
from ledger.statement import Artifact, Event

# Fields that become parts of resource names, of streams and of keys; see ledger/resource_names.py.
_NAME_FIELDS = frozenset({"org", "model", "run", "quantization", "certificate", "key", "base", "actor"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ActorKey(Struct, frozen=True):
    """A public key (DER SubjectPublicKeyInfo) that may sign for an actor from `enrolled_at` on.

    compromised_from: where the event that retired it says that others had it. The append rules refuse it from
    `retired_at` on, whatever that says; verifiers do not trust what it signed from there on.
    """

    actor: str
    role: str
    public_key: bytes
    enrolled_at: int
    retired_at: int | None = None
    compromised_from: int | None = None


class Introduced(Struct, frozen=True):
    """Under which names a digest was introduced, by the event at which index, and since when it is revoked."""

    names: frozenset[str]
    index: int
    revoked_at: int | None = None


@dataclass
class Known:
    """Everything the rules may ask. The store fills in what a batch mentions; the auditor holds it all."""

    size: int = 0
    keys: dict[str, ActorKey] = field(default_factory=dict)
    artifacts: dict[str, Introduced] = field(default_factory=dict)
    streams: dict[str, int] = field(default_factory=dict)
    ids: dict[str, tuple[int, str]] = field(default_factory=dict)

    def fork(self) -> Known:
        """A copy to try events on; the original stays as it is."""
        return Known(self.size, dict(self.keys), dict(self.artifacts), dict(self.streams), dict(self.ids))


class Candidate(Struct, frozen=True):
    """An event with what was found out about it before the write transaction.

    verified: ids of the keys whose signatures verify; problems: failed signatures, violations of the schema.
    """

    event: Event
    payload_sha256: str
    verified: frozenset[str]
    problems: tuple[Violation, ...] = ()


def check(known: Known, candidate: Candidate) -> list[Violation]:
    """Everything that forbids appending the candidate next; empty when it may be appended."""
    event = candidate.event
    if event.kind not in KINDS:
        return form(event)
    return [*candidate.problems, *standing(known, candidate), *form(event)]


def form(event: Event) -> list[Violation]:
    """What is wrong with an event by itself, whatever the log holds: one half of `check`."""
    kind = KINDS.get(event.kind)
    if kind is None:
        return [_violation("predicate.event.kind", "UNKNOWN_KIND", f"{event.kind!r} is not a kind of event")]
    return [*_stream(event, kind), *_required(event, kind), *_introduces(event, kind), *_data_agrees(event)]


def standing(known: Known, candidate: Candidate) -> list[Violation]:
    """What is wrong with an event where it stands: the other half of `check`.

    Of an event's data it reads only that of KEY_KINDS.
    """
    event = candidate.event
    kind = KINDS.get(event.kind)
    if kind is None:
        return []  # `form` says so
    found = [*_actor(known, candidate, kind), *_position(known, event), *_artifacts(known, event, kind)]
    if event.kind in KEY_KINDS:
        found.extend(check_keys(event, known.keys, current_key(known, about(event)), known.size))
    return found


def learn(known: Known, candidate: Candidate) -> None:
    """Take an accepted event in: it gets index `known.size`."""
    event, index = candidate.event, known.size
    kind = KINDS[event.kind]
    known.size += 1
    known.streams[event.stream] = event.version
    known.ids[event.id] = (index, candidate.payload_sha256)
    for subject in event.subjects:
        earlier = known.artifacts.get(subject.sha256)
        if earlier is None:
            if kind.introduces:
                known.artifacts[subject.sha256] = Introduced(frozenset((subject.name,)), index)
        elif kind.revokes:
            known.artifacts[subject.sha256] = replace(earlier, revoked_at=index)
        elif kind.introduces and subject.name not in earlier.names:
            known.artifacts[subject.sha256] = replace(earlier, names=earlier.names | {subject.name})
    learn_keys(known, event, index)


def founder(event: Event) -> ActorKey | None:
    """The key that a LogCreated event enrols, before anything is known."""
    if event.kind != "LogCreated":
        return None
    der = decode(event.data.get("actorPublicKey"))
    return ActorKey(event.actor, LEDGER, der, 0) if der else None


def key_id(key: ActorKey) -> str:
    """The keyid of signatures by this key."""
    return hashlib.sha256(key.public_key).hexdigest()


def _actor(known: Known, candidate: Candidate, kind: Kind) -> Iterator[Violation]:
    event = candidate.event
    keys = known.keys
    if known.size == 0:
        key = founder(event)
        keys = {key_id(key): key} if key else {}
    signers = [keys[keyid] for keyid in sorted(candidate.verified) if keyid in keys]
    if not signers:
        # A signature that fails is already reported as such.
        if not any(problem.field == "signatures" for problem in candidate.problems):
            yield _violation("signatures", "UNKNOWN_ACTOR", "no signature is by an enrolled actor's key")
        return
    own = [key for key in signers if key.actor == event.actor]
    current = [key for key in own if key.retired_at is None]  # at most one: an actor has one key at a time
    if not own:
        yield _violation(
            "predicate.event.actor",
            "UNKNOWN_ACTOR",
            f"{event.actor!r} did not sign; {signers[0].actor!r} did",
        )
    elif not current:
        yield _violation(
            "signatures",
            "REVOKED_ACTOR",
            f"the key of {event.actor!r} was revoked or replaced at index {own[0].retired_at}; give its service the "
            "new key and restart it, or enrol the actor again: modelledger actors",
        )
    elif current[0].role not in kind.roles:
        yield _violation(
            "predicate.event.kind",
            "KIND_NOT_ALLOWED",
            f"an actor with role {current[0].role!r} may not write {kind.name}",
        )


def _stream(event: Event, kind: Kind) -> Iterator[Violation]:
    try:
        stream = kind.stream.format_map(event.data)
    except KeyError:
        stream = kind.stream  # with its braces, which no stream has in its name
    if not (event.stream.startswith(stream) if stream.endswith("/") else event.stream == stream):
        yield _violation(
            "predicate.event.stream", "MALFORMED_EVENT", f"this {kind.name} belongs into the stream {stream}"
        )


def _position(known: Known, event: Event) -> Iterator[Violation]:
    if (known.size == 0) != (event.kind == "LogCreated"):
        yield _violation(
            "predicate.event.kind", "REFUSED", "LogCreated is the first event of a log, and only the first"
        )
    expected = known.streams.get(event.stream, 0) + 1
    if event.version != expected:
        yield _violation(
            "predicate.event.version",
            "WRONG_STREAM_VERSION",
            f"stream {event.stream} is at version {expected - 1}, so the next is {expected}, not {event.version}",
        )


def _required(event: Event, kind: Kind) -> Iterator[Violation]:
    data = event.data
    for name in kind.required:
        if not (value := data.get(name)) and value in (None, "", [], {}):  # 0 and false say something
            yield _violation(f"predicate.data.{name}", "MALFORMED_EVENT", f"is required in {kind.name}")
    for name in data:
        if name not in _NAME_FIELDS:
            continue
        value = data[name]
        if isinstance(value, str) and value and not _NAME.fullmatch(value):
            yield _violation(f"predicate.data.{name}", "MALFORMED_EVENT", f"does not have the form {_NAME.pattern}")


def _introduces(event: Event, kind: Kind) -> Iterator[Violation]:
    if not kind.introduces:
        return
    for position, subject in enumerate(event.subjects):
        if not subject.name.startswith(kind.introduces):
            yield _violation(
                f"subject[{position}]",
                "MALFORMED_EVENT",
                f"{kind.name} introduces {' or '.join(kind.introduces)}…, not {subject.name!r}",
            )


def _artifacts(known: Known, event: Event, kind: Kind) -> Iterator[Violation]:
    for position, material in enumerate(event.materials):
        yield from _usable(known, material, f"predicate.materials[{position}]", may_be_revoked=False)
    for position, subject in enumerate(event.subjects):
        where = f"subject[{position}]"
        if not kind.introduces:
            yield from _usable(known, subject, where, may_be_revoked=kind.of_revoked)
            continue
        earlier = known.artifacts.get(subject.sha256)
        if earlier and earlier.revoked_at is not None:
            yield _violation(where, "REVOKED_MATERIAL", f"{subject.name} was revoked at index {earlier.revoked_at}")


def _data_agrees(event: Event) -> Iterator[Violation]:
    """What an event's data says about artifacts is what its subjects and materials say."""
    found = list(_digests(event.data, "predicate.data"))
    named: dict[str, set[str]] = {}
    for artifact in (*event.materials, *event.subjects) if found else ():
        named.setdefault(artifact.sha256, set()).add(artifact.name)
    for path, owner, digest in found:
        names = named.get(digest)
        expected = owner.get("name") if path.endswith(".sha256") else None
        if path.endswith((".baseSha256", ".base_sha256")):
            expected = f"base-models/{owner.get('key') or owner.get('base')}"
        if names is None:
            yield _violation(path, "UNKNOWN_MATERIAL", f"{digest} is neither a subject nor a material of this event")
        elif isinstance(expected, str) and expected and expected not in names:
            yield _violation(path, "UNKNOWN_MATERIAL", f"is {sorted(names)}, not {expected!r}")
    required = list(_material_names(event))
    materials = {material.name for material in event.materials} if required else set()
    for path, name in required:
        if name not in materials:
            yield _violation(path, "UNKNOWN_MATERIAL", f"{name} is not a material of this event")
    yield from _adapters_agree(event)


def _material_names(event: Event) -> Iterator[tuple[str, str]]:
    """The materials that an event's data names without a digest."""
    data = event.data
    if event.kind == "TrainingRequested":
        bases = data.get("bases")
        for position, key in enumerate(bases if isinstance(bases, list) else ()):
            yield f"predicate.data.bases[{position}]", f"base-models/{key}"
        yield "predicate.data.dataset", f"datasets/{data.get('dataset')}"
    if event.kind in ("QuantizationRequested", "QuantizationCompleted"):
        yield "predicate.data.base", f"base-models/{data.get('base')}"


def _adapters_agree(event: Event) -> Iterator[Violation]:
    """Each base of a training or a version has its digest, and adapters that were trained on it."""
    for field_name in ("trained", "adapters"):
        items = event.data.get(field_name)
        for position, item in enumerate(items if isinstance(items, list) else ()):
            where = f"predicate.data.{field_name}[{position}]"
            if not isinstance(item, dict):
                continue  # the schema reports it
            # A base named without its digest would only be claimed: nothing could be compared with it.
            if not item.get("baseSha256"):
                yield _violation(f"{where}.baseSha256", "MALFORMED_EVENT", f"is required in {event.kind}")
            chain = item.get("chain")
            refs = chain if isinstance(chain, list) else [item.get("adapter")]
            key = item.get("key") or item.get("base")
            for ref in refs or [None]:
                if not isinstance(ref, dict) or not ref.get("sha256"):
                    yield _violation(where, "MALFORMED_EVENT", "names an adapter without its sha256")
                elif str(ref.get("name")).rpartition("/")[2] != key:
                    yield _violation(where, "UNKNOWN_MATERIAL", f"{ref.get('name')} is not an adapter over {key}")


def _usable(known: Known, artifact: Artifact, where: str, *, may_be_revoked: bool) -> Iterator[Violation]:
    introduced = known.artifacts.get(artifact.sha256)
    if introduced is None:
        yield _violation(
            where, "UNKNOWN_MATERIAL", f"no earlier event introduced {artifact.name} sha256:{artifact.sha256}"
        )
    elif artifact.name not in introduced.names:
        yield _violation(
            where,
            "UNKNOWN_MATERIAL",
            f"sha256:{artifact.sha256} was introduced as {sorted(introduced.names)}, not as {artifact.name!r}",
        )
    elif introduced.revoked_at is not None and not may_be_revoked:
        yield _violation(where, "REVOKED_MATERIAL", f"{artifact.name} was revoked at index {introduced.revoked_at}")


def _digests(value: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Every digest named anywhere in an event's data, with its place and the object it stands in."""
    if isinstance(value, dict):
        for name, child in value.items():
            if isinstance(child, str):
                # proto3 JSON reads both spellings of a field, baseSha256 and base_sha256.
                if child and name.lower().endswith("sha256"):
                    yield f"{path}.{name}", value, child
            elif isinstance(child, dict | list):
                yield from _digests(child, f"{path}.{name}")
    elif isinstance(value, list):
        for position, child in enumerate(value):
            if isinstance(child, dict | list):
                yield from _digests(child, f"{path}[{position}]")


def current_key(known: Known, actor: str) -> ActorKey | None:
    """The key an actor signs with now."""
    for key in known.keys.values():
        if key.actor == actor and key.retired_at is None:
            return key
    return None


def learn_keys(known: Known, event: Event, index: int) -> None:
    """Take in what the accepted event at `index` says about the actors' keys."""
    if event.kind == "LogCreated":
        key = founder(event)
        if key:
            known.keys[key_id(key)] = key
        return
    if event.kind not in KEY_KINDS:
        return
    actor = str(event.data["actor"])
    role = str(event.data.get("role", ""))
    for keyid, key in list(known.keys.items()):
        if key.actor == actor and key.retired_at is None:
            role = role or key.role
            known.keys[keyid] = replace(key, retired_at=index, compromised_from=compromised_from(event.data))
    der = decode(event.data.get("publicKey"))
    if der:
        known.keys[hashlib.sha256(der).hexdigest()] = ActorKey(actor, role, der, index)


def _violation(where: str, reason: str, description: str) -> Violation:
    return Violation(where, reason, description)
