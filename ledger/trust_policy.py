"""C2SP tlog-policy: which logs are trusted, and which of which witnesses must have cosigned a checkpoint.

    log <vkey> [<url>]
    witness <name> <vkey> [<url>]
    group <name> any|all|<k> <member>...        at least k of the members; a member is a witness or a group
    quorum <name>|none                          exactly one

Names mean something in the file only; they stand above the line that uses them, and each is a member at most once. The
file is octets: names are compared byte by byte, only space and tab separate, # begins a comment line. Every fault is
an InvalidConfig that names the line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ledger.cosignature import cosignatures
from ledger.errors import InvalidConfig
from ledger.note import COSIGNATURE_V1, ED25519, MalformedKey, Verifier
from ledger.strict_text import decode_decimal

MAX_FILE = 256 << 10
MAX_DEFINED = 256  # of logs, of witnesses, of groups each; the specification asks for at least 32

_NONE = b"none"
_FORMS = {
    b"log": "log <vkey> [<url>]",
    b"witness": "witness <name> <vkey> [<url>]",
    b"group": "group <name> any|all|<k> <member>...",
    b"quorum": "quorum <name>|none",
}


@dataclass(frozen=True)
class PolicyLog:
    verifier: Verifier
    url: str


@dataclass(frozen=True)
class Witness:
    name: bytes
    verifier: Verifier
    url: str  # submission prefix; empty when the policy is for verifying only


@dataclass(frozen=True)
class Group:
    """Witnesses a checkpoint when at least `threshold` of its members do."""

    name: bytes
    threshold: int
    members: tuple[bytes, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether the quorum is met; the names of the witnesses that cosigned, and of those that could still help."""

    satisfied: bool
    cosigned: tuple[str, ...]
    missing: tuple[str, ...]
    detail: str  # for people


@dataclass(frozen=True)
class TrustPolicy:
    """A policy file, read. `quorum` is None when no cosignature is asked for."""

    logs: tuple[PolicyLog, ...]
    witnesses: Mapping[bytes, Witness]
    groups: Mapping[bytes, Group]  # members always stand before their group
    quorum: bytes | None

    def judge(self, note: bytes) -> Verdict:
        """Whether enough witnesses cosigned this checkpoint. Says nothing about the log's own signature.

        Raises NoteError when the note is none, or a cosignature of one of the witnesses does not fit.
        """
        found = cosignatures(note, [witness.verifier for witness in self.witnesses.values()])
        return self.judge_cosigners([signature.verifier for signature in found])

    def judge_cosigners(self, cosigners: Collection[Verifier]) -> Verdict:
        """The same for cosignatures that were verified already."""
        met = {name: witness.verifier in cosigners for name, witness in self.witnesses.items()}
        cosigned = tuple(shown(name) for name, present in met.items() if present)
        for name, group in self.groups.items():
            met[name] = sum(met[member] for member in group.members) >= group.threshold
        if self.quorum is None:
            return Verdict(True, cosigned, (), "no cosignature is asked for")
        if met[self.quorum]:
            return Verdict(True, cosigned, (), f"{shown(self.quorum)}: cosigned by {', '.join(cosigned)}")
        missing: list[str] = []
        wanted = [self.quorum]
        for name in wanted:  # grows: an unmet group needs more of its unmet members
            if name in self.groups:
                wanted += [member for member in self.groups[name].members if not met[member]]
            else:
                missing.append(shown(name))
        detail = f"{shown(self.quorum)} is not met: cosigned by {', '.join(cosigned) or 'nobody'}"
        return Verdict(False, cosigned, tuple(missing), f"{detail}; missing {', '.join(missing)}")


def shown(name: bytes) -> str:
    """A name for people."""
    return name.decode(errors="backslashreplace")


def read_trust_policy(path: Path) -> TrustPolicy:
    """Read a policy file. Raises InvalidConfig with file and line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InvalidConfig(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return parse_trust_policy(data)
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: {error.message}") from None


def parse_trust_policy(data: bytes) -> TrustPolicy:
    """The policy in these octets. Raises InvalidConfig with the line."""
    if len(data) > MAX_FILE:
        raise InvalidConfig(f"a policy has at most {MAX_FILE} bytes")
    reader = _Reader()
    lines = data.split(b"\n")
    last = lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            reader.read(line)
        except ValueError as error:
            raise InvalidConfig(f"line {number}: {error}") from None
    if last:  # what was cut off may have been the rest of a name
        raise InvalidConfig(f"line {len(lines) + 1}: the file does not end in a newline; it may be cut off")
    if not reader.has_quorum:
        raise InvalidConfig(f"line {len(lines) + 1}: the file ends without a quorum; say `quorum none` for none")
    return TrustPolicy(tuple(reader.logs), reader.witnesses, reader.groups, reader.quorum)


class _Reader:
    """The lines so far. Every fault is a ValueError."""

    def __init__(self) -> None:
        self.logs: list[PolicyLog] = []
        self.witnesses: dict[bytes, Witness] = {}
        self.groups: dict[bytes, Group] = {}
        self.quorum: bytes | None = None
        self.has_quorum = False
        self._members: set[bytes] = set()

    def read(self, line: bytes) -> None:
        for position, octet in enumerate(line, start=1):
            if octet == 0x7F or (octet < 0x20 and octet != 0x09):
                raise ValueError(f"octet {position} is the control character 0x{octet:02x}")
        items = line.split()  # at spaces and tabs: the other ASCII white space was refused above
        if not items or items[0].startswith(b"#"):
            return
        keyword, *rest = items
        if keyword not in _FORMS:
            raise ValueError(f"unknown keyword {shown(keyword[:40])!r}; known are log, witness, group and quorum")
        fits = {b"log": 1 <= len(rest) <= 2, b"witness": 2 <= len(rest) <= 3, b"group": len(rest) >= 3}
        if not fits.get(keyword, len(rest) == 1):
            raise ValueError(f"expected {_FORMS[keyword]}")
        {b"log": self._log, b"witness": self._witness, b"group": self._group, b"quorum": self._quorum}[keyword](rest)

    def _log(self, items: list[bytes]) -> None:
        verifier = _key(items[0], ED25519, "a log's, type 0x01")
        if any(log.verifier.public_key == verifier.public_key for log in self.logs):
            raise ValueError(f"the key of log {verifier.name!r} stands here already")
        _room(self.logs, "logs")
        self.logs.append(PolicyLog(verifier, _url(items[1:])))

    def _witness(self, items: list[bytes]) -> None:
        verifier = _key(items[1], COSIGNATURE_V1, "a witness's, type 0x04")
        for other in self.witnesses.values():
            if other.verifier.public_key == verifier.public_key:
                raise ValueError(f"this is the key of witness {shown(other.name)!r} already")
            if (other.verifier.name, other.verifier.key_id) == (verifier.name, verifier.key_id):
                raise ValueError(f"witness {shown(other.name)!r} has a key with the same name and key ID")
        _room(self.witnesses, "witnesses")
        self.witnesses[self._new(items[0])] = Witness(items[0], verifier, _url(items[2:]))

    def _group(self, items: list[bytes]) -> None:
        name, threshold, *members = items
        _room(self.groups, "groups")
        for number, member in enumerate(members):
            if not self._is_defined(member):
                raise ValueError(f"{shown(member)!r} is not the name of a witness or group above")
            if member in self._members or member in members[:number]:
                raise ValueError(f"{shown(member)!r} is a member already; a name is a member only once")
        self.groups[self._new(name)] = Group(name, _threshold(threshold, len(members)), tuple(members))
        self._members.update(members)

    def _quorum(self, items: list[bytes]) -> None:
        if self.has_quorum:
            raise ValueError("a second quorum")
        if items[0] != _NONE and not self._is_defined(items[0]):
            raise ValueError(f"{shown(items[0])!r} is not the name of a witness or group above")
        self.has_quorum = True
        self.quorum = None if items[0] == _NONE else items[0]

    def _new(self, name: bytes) -> bytes:
        if name == _NONE or self._is_defined(name):
            raise ValueError(f"the name {shown(name)!r} is taken")
        return name

    def _is_defined(self, name: bytes) -> bool:
        return name in self.witnesses or name in self.groups


def _key(item: bytes, algorithm: int, wanted: str) -> Verifier:
    try:
        verifier = Verifier.parse(item.decode())
    except UnicodeDecodeError:
        raise MalformedKey("the key's name is not UTF-8") from None
    if verifier.algorithm != algorithm:
        raise MalformedKey(f"the key of {verifier.name!r} is not {wanted}")
    return verifier


def _url(items: list[bytes]) -> str:
    return items[0].decode(errors="backslashreplace") if items else ""


def _threshold(text: bytes, members: int) -> int:
    named = {b"any": 1, b"all": members}
    threshold = named[text] if text in named else decode_decimal(text)
    if not 1 <= threshold <= members:
        raise ValueError(f"{threshold} of {members} members is not possible")
    return threshold


def _room(defined: Collection[object], what: str) -> None:
    if len(defined) == MAX_DEFINED:
        raise ValueError(f"more than {MAX_DEFINED} {what}")
