"""The fingerprint ("DNA") of a version: a label people can read aloud and compare.

    OneSeek-7B-Zero.v1.0.6b30afe8.4539991e.a16f0dd0                      model.version.weights.categories.time
    OneSeek-7B-Zero.v1.0.en.dsCivicID-SwedID.6b30afe8.a16f0dd0           the form that names language and data

Each part of eight hex digits is the beginning of a SHA-256: of the canonical JSON (sorted keys, no spaces) of the
weights and of the sorted categories, and of the time's text as it stands. Thirty-two bits are a label, not an
identity: the identity of a version is the digests of its bytes. A model's name may hold dots; the parts
behind it have fixed forms, so both labels read back from the right.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ledger import strict_json
from ledger.errors import InvalidName

_MODEL = r"(?P<model>[^\s/]{1,200})"
_VERSION = r"(?P<version>v(?:0|[1-9]\d*)\.(?:0|[1-9]\d*))"
_HASH = r"[0-9a-f]{8}"
_PLAIN = re.compile(rf"{_MODEL}\.{_VERSION}\.(?P<weights>{_HASH})\.(?P<categories>{_HASH})\.(?P<time>{_HASH})")
_LANGUAGE = re.compile(
    rf"{_MODEL}\.{_VERSION}\.(?P<language>[a-z]{{2,3}})\.ds(?P<categories>[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*)"
    rf"\.(?P<weights>{_HASH})\.(?P<time>{_HASH})"
)


@dataclass(frozen=True)
class Fingerprint:
    """model.version.weights.categories.time; the last three are eight hex digits each."""

    model: str
    version: str
    weights: str
    categories: str
    time: str

    def __str__(self) -> str:
        return f"{self.model}.{self.version}.{self.weights}.{self.categories}.{self.time}"


@dataclass(frozen=True)
class LanguageFingerprint:
    """model.version.language.ds<categories joined by ->.weights.time."""

    model: str
    version: str
    language: str
    categories: tuple[str, ...]
    weights: str
    time: str

    def __str__(self) -> str:
        return f"{self.model}.{self.version}.{self.language}.ds{'-'.join(self.categories)}.{self.weights}.{self.time}"


def fingerprint(
    model: str, version: str, weights: Mapping[str, float], categories: Iterable[str], time: str
) -> Fingerprint:
    """`weights` by base model key, `version` as v1.0, `time` in RFC 3339. Raises InvalidName."""
    label = Fingerprint(model, version, _of_json(dict(weights)), _of_json(sorted(set(categories))), _of_text(time))
    if parse(str(label)) != label:
        raise InvalidName(f"a fingerprint cannot be made of model {model!r} and version {version!r}")
    return label


def language_fingerprint(
    model: str, version: str, language: str, weights: Mapping[str, float], categories: Iterable[str], time: str
) -> LanguageFingerprint:
    """The form that names `language` (ISO 639: "en") and the categories. Raises InvalidName."""
    label = LanguageFingerprint(
        model, version, language, tuple(sorted(set(categories))), _of_json(dict(weights)), _of_text(time)
    )
    try:
        same = parse(str(label)) == label
    except InvalidName:
        same = False
    if not same:
        raise InvalidName(
            f"a fingerprint cannot be made of model {model!r}, version {version!r}, language {language!r} and "
            f"categories {list(label.categories)}: language is two or three letters, categories are letters and digits"
        )
    return label


def parse(text: str) -> Fingerprint | LanguageFingerprint:
    """Either form, read back. Raises InvalidName."""
    if match := _PLAIN.fullmatch(text):
        return Fingerprint(**match.groupdict())
    if match := _LANGUAGE.fullmatch(text):
        model, version, language, categories, weights, time = match.groups()
        return LanguageFingerprint(model, version, language, tuple(categories.split("-")), weights, time)
    raise InvalidName(f"{text[:200]!r} is not a fingerprint: model.version.weights.categories.time")


def _of_json(value: object) -> str:
    return hashlib.sha256(strict_json.canonical(value)).hexdigest()[:8]


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
