"""What a verifier trusts: keys of logs, and when it knows more than the log says, keys of actors. Pure.

    --trust "origin+hash+key"       a log's verifier key
    --trust log.vkey                a file with one such key per line; # begins a comment
    --trust trust.toml              everything that can be said:

    logs = ["modelledger.local/1f2e…+5c6d7e8f+AQ…"]      # at least one

    [[actors]]                      # pins: only these keys, in this role, may have signed for the actor
    name = "trainer"
    keys = ["<64 hex digits>"]      # as `modelledger actors list` shows them; any key when left out
    role = "trainer"                # any role when left out

    [[compromised]]                 # valid up to an event: this key is not trusted from that index on
    key = "<64 hex digits>"
    from = 1200

A log says itself which keys were compromised (ActorKeyRotated, ActorRevoked); the earlier index counts. Several
files add up. Whatever is wrong in a file is named with file and line, or file and field.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger.errors import InvalidConfig
from ledger.events import ROLES
from ledger.note import MalformedKey, Verifier

MAX_TRUST_FILE = 64 << 10  # bytes

_KEY_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pin:
    """What may sign for an actor. No keys: any that is enrolled; no role: any."""

    keys: frozenset[str] = frozenset()
    role: str = ""


@dataclass(frozen=True)
class Trust:
    """vkeys of logs; pins by actor; by key id the index from which on a key is not trusted."""

    vkeys: tuple[str, ...]
    actors: Mapping[str, Pin] = field(default_factory=dict)
    compromised: Mapping[str, int] = field(default_factory=dict)

    def verifiers(self) -> list[Verifier]:
        """Raises InvalidConfig when there is none, or what is none."""
        try:
            found = [Verifier.parse(vkey) for vkey in dict.fromkeys(self.vkeys)]
        except MalformedKey as error:
            raise InvalidConfig(f"trusted key: {error}") from None
        if not found:
            raise InvalidConfig("verification needs at least one trusted key")
        return found


def read_all(texts: Sequence[str]) -> Trust:
    """What all of them say together. Raises InvalidConfig."""
    vkeys: list[str] = []
    actors: dict[str, Pin] = {}
    compromised: dict[str, int] = {}
    for text in texts:
        trust = read(text)
        vkeys += trust.vkeys
        for name, pin in trust.actors.items():
            if actors.setdefault(name, pin) != pin:
                raise InvalidConfig(f"{text}: actors: {name!r} is pinned otherwise in another trust file")
        for key, index in trust.compromised.items():
            compromised[key] = min(index, compromised.get(key, index))
    return Trust(tuple(dict.fromkeys(vkeys)), actors, compromised)


def read(text: str) -> Trust:
    """A verifier key, a file of them, or a trust file, which ends in .toml. Raises InvalidConfig."""
    path = Path(text)
    if "+" in text and not os.path.isfile(text):  # which says no, and raises nothing, for a key too long for a path
        return Trust((_vkey(text, text),))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUST_FILE + 1)
    except OSError as error:
        raise InvalidConfig(f"{text}: neither a verifier key nor a file that can be read: {error}") from None
    if len(data) > MAX_TRUST_FILE:
        raise InvalidConfig(f"{text}: larger than {MAX_TRUST_FILE} bytes")
    try:
        content = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{text}: is not UTF-8: {error}") from None
    trust = _document(content, text) if path.suffix == ".toml" else Trust(tuple(_lines(content, text)))
    if not trust.vkeys:
        raise InvalidConfig(f"{text}: holds no verifier key of a log")
    return trust


def _lines(content: str, where: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _vkey(line.strip(), f"{where}: line {number}")


def _vkey(text: str, where: str) -> str:
    try:
        Verifier.parse(text)
    except MalformedKey as error:
        raise InvalidConfig(f"{where}: {error}") from None
    return text


def _document(content: str, where: str) -> Trust:
    try:
        document = tomllib.loads(content)
    except ValueError as error:  # names line and column
        raise InvalidConfig(f"{where}: {error}") from None
    except RecursionError:
        raise InvalidConfig(f"{where}: is nested too deep") from None
    _only(document, {"logs", "actors", "compromised"}, where)
    vkeys = [_vkey(text, f"{where}: logs[{n}]") for n, text in enumerate(_texts(document, "logs", where))]
    actors: dict[str, Pin] = {}
    for at, table in _tables(document, "actors", where):
        _only(table, {"name", "keys", "role"}, at)
        name, role = _text(table, "name", at), _text(table, "role", at, "")
        if name in actors:
            raise InvalidConfig(f"{at}.name: {name!r} is pinned twice; list all its keys in one place")
        if role and role not in ROLES:
            raise InvalidConfig(f"{at}.role: {role!r} is not one of {', '.join(ROLES)}")
        if not role and not table.get("keys"):
            raise InvalidConfig(f"{at}: pins neither keys nor a role")
        keys = [_key_id(text, f"{at}.keys[{n}]") for n, text in enumerate(_texts(table, "keys", at))]
        actors[name] = Pin(frozenset(keys), role)
    compromised: dict[str, int] = {}
    for at, table in _tables(document, "compromised", where):
        _only(table, {"key", "from"}, at)
        key, index = _key_id(_text(table, "key", at), f"{at}.key"), table.get("from")
        if type(index) is not int or index < 0:
            raise InvalidConfig(f"{at}.from: is not the index of an event")
        if key in compromised:
            raise InvalidConfig(f"{at}.key: stands twice")
        compromised[key] = index
    return Trust(tuple(vkeys), actors, compromised)


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise InvalidConfig(f"{where}: {unknown[0]}: unknown field; known are {', '.join(sorted(known))}")


def _tables(document: Mapping[str, Any], name: str, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    found = document.get(name, [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise InvalidConfig(f"{where}: {name}: is not a list of tables; each begins with [[{name}]]")
    for number, table in enumerate(found):
        yield f"{where}: {name}[{number}]", table


def _texts(table: Mapping[str, Any], name: str, where: str) -> list[str]:
    found = table.get(name, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise InvalidConfig(f"{where}: {name}: is not a list of texts")
    return found


def _text(table: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    found = table.get(name, default)
    if not isinstance(found, str) or (not found and default is None):
        raise InvalidConfig(f"{where}.{name}: is not a text")
    return found


def _key_id(text: str, where: str) -> str:
    if not _KEY_ID.fullmatch(text):
        raise InvalidConfig(f"{where}: is not a key id of 64 hex digits; `modelledger actors list --json` shows them")
    return text
