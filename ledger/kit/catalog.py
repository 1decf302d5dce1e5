"""Base models on disk: which folders are usable, what they are called, which one a caller means.

    discover(roots)            -> Catalogue: every folder directly below a root, usable or not and why
    normalise("Qwen-2.5-7B")   -> "qwen-2-5-7b"
    match("qwen", keys)        -> the one key that is meant, the same in every listing order; a folder that is
                                  meant and unusable is an error with its reason, never another base model
    select(["qwen"], ...)      -> the base models of a run; none selected is an error

A folder is read as data only: no code in it is run, no pickle is opened, and folders holding either are
refused (weights.py checks the weights). Reading stays fast because digests are kept in memory for as
long as path, size, modification and change time and inode of every file stay the same.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ledger import manifest, strict_json
from ledger.errors import AmbiguousName, InvalidBaseModel, InvalidName, ModelLedgerError, NoBaseSelected, NotFound
from ledger.kit import artifacts, weights

MAX_NAME = 200
MAX_CONFIG_BYTES = 64 << 20  # tokenizer.json of a large vocabulary is the biggest
MAX_FOLDERS = 1000

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class BaseModel:
    """A usable base model. `sha256` is the directory digest (ledger/manifest.py)."""

    key: str
    display_name: str
    architecture: str
    parameters: int
    licence: str | None
    path: Path
    sha256: str
    size: int
    files: int
    chat_template_sha256: str | None


@dataclass(frozen=True)
class Unusable:
    """A folder that is no usable base model, and the reason. `key` is empty when its name makes none."""

    folder: Path
    reason: str
    key: str = ""


@dataclass(frozen=True)
class Catalogue:
    """What the roots hold now."""

    models: Mapping[str, BaseModel] = field(default_factory=dict)
    unusable: Sequence[Unusable] = ()


# --- names


def normalise(name: str) -> str:
    """Lower case ASCII letters and digits, everything else one hyphen. Idempotent. Raises InvalidName."""
    if not name.strip():
        raise InvalidName("a base model's name is empty")
    if len(name) > MAX_NAME:
        raise InvalidName(f"a base model's name has {len(name)} characters, the limit is {MAX_NAME}")
    if "/" in name or "\\" in name or ".." in name or "\x00" in name:
        raise InvalidName(f"{name!r} is a path, not a name; give the folder's name only")
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not key:
        raise InvalidName(f"{name!r} holds no letter a-z and no digit")
    return key


def match(query: str, keys: Collection[str], unusable: Mapping[str, str] = MappingProxyType({})) -> str:
    """The key a caller means: exact, else exact without separators, else the only one that contains it.

    `unusable` are keys that can be meant and not had, each with the reason. Raises InvalidName for an empty query,
    AmbiguousName and NotFound naming the candidates, InvalidBaseModel when the one that is meant is unusable.
    """
    wanted = normalise(query)
    candidates = sorted({*keys, *unusable})
    squeezed = wanted.replace("-", "")
    for found in (
        [key for key in candidates if key == wanted],
        [key for key in candidates if key.replace("-", "") == squeezed],
        [key for key in candidates if squeezed in key.replace("-", "")],
    ):
        if len(found) > 1:
            raise AmbiguousName(f"{query!r} may be {', '.join(found)}; give the full name")
        if found and found[0] not in keys:
            raise InvalidBaseModel(f"base model {found[0]} cannot be used: {unusable[found[0]]}")
        if found:
            return found[0]
    known = f"the base models are {', '.join(sorted(keys))}" if keys else "there are no usable base models"
    raise NotFound(f"no base model is called {query!r}; {known}")


def mean(queries: Sequence[str], keys: Collection[str]) -> bool:
    """Whether a caller who asks for `queries` may have meant just these keys."""
    try:
        return len(queries) == len(keys) and {match(query, keys) for query in queries} == set(keys)
    except (NotFound, InvalidName, AmbiguousName):
        return False


# --- discovery


def discover(roots: Sequence[Path]) -> Catalogue:
    """Inspect every folder directly below the roots. A root that is missing is listed as unusable."""
    found: dict[str, list[BaseModel]] = {}
    unusable: list[Unusable] = []
    for root in dict.fromkeys(path.absolute() for path in roots):
        if not root.is_dir():
            unusable.append(Unusable(root, "is not a directory; create it or correct the configured roots"))
            continue
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        for folder in folders[MAX_FOLDERS:]:
            reason = f"is beyond the {MAX_FOLDERS} folders that are read per root"
            unusable.append(Unusable(folder, reason, _key_of(folder)))
        for folder in folders[:MAX_FOLDERS]:
            try:
                model = inspect_folder(folder)
            except (ModelLedgerError, OSError) as error:
                unusable.append(Unusable(folder, str(error), _key_of(folder)))
            else:
                found.setdefault(model.key, []).append(model)
    models = {}
    for key, same in sorted(found.items()):
        if len(same) == 1:
            models[key] = same[0]
            continue
        names = ", ".join(str(model.path) for model in same)
        unusable += [Unusable(m.path, f"several folders are called {key!r}: {names}; rename one", key) for m in same]
    return Catalogue(models, tuple(sorted(unusable, key=lambda entry: entry.folder)))


def select(requested: Sequence[str], catalogue: Catalogue, default: str | None = None) -> list[BaseModel]:
    """The base models of a run, in the order asked for; `default` is a comma list used when none are.

    Raises NoBaseSelected, NotFound, AmbiguousName, InvalidBaseModel when an unusable one is asked for, and
    InvalidName when one is asked for twice.
    """
    queries = list(requested) or [part for part in (default or "").split(",") if part.strip()]
    if not queries:
        known = ", ".join(sorted(catalogue.models)) or "none is usable"
        raise NoBaseSelected(f"no base model selected; name at least one of: {known}")
    unusable = {entry.key: entry.reason for entry in catalogue.unusable if entry.key}
    chosen: dict[str, str] = {}
    for query in queries:
        key = match(query, catalogue.models, unusable)
        if key in chosen:
            raise InvalidName(f"{chosen[key]!r} and {query!r} are both the base model {key}; name it once")
        chosen[key] = query
    return [catalogue.models[key] for key in chosen]


def _key_of(folder: Path) -> str:
    try:
        return normalise(folder.name)
    except InvalidName:
        return ""


# --- one folder


def inspect_folder(path: Path) -> BaseModel:
    """Read a folder without running anything in it. Raises InvalidBaseModel with the precise reason."""
    if path.is_symlink():
        raise InvalidBaseModel(f"{path} is a symbolic link; configure the folder it points to")
    if not path.is_dir():
        raise InvalidBaseModel(f"{path} is not a directory")
    key = normalise(path.name)
    files = _files(path)
    _refuse_code_and_pickles(path, files)
    config = _config(path / "config.json")
    parameters = weights.count_parameters(path)
    _tokenizer(path)
    name = config.get("model_name") or str(config.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
    entries = _scan(path, files)
    return BaseModel(
        key=key,
        display_name=name if isinstance(name, str) and name else path.name,
        architecture=_architecture(path, config),
        parameters=parameters,
        licence=_licence(path, config),
        path=path,
        sha256=manifest.digest(entries),
        size=sum(entry.size for entry in entries),
        files=len(entries),
        chat_template_sha256=_chat_template(path, entries),
    )


def _files(path: Path) -> list[Path]:
    """Every file below the folder. Links are refused: the digest would not cover what they point to."""
    files = []
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            entry = Path(folder, name)
            if entry.is_symlink():
                raise InvalidBaseModel(f"{entry} is a symbolic link; copy the file itself into the folder")
        files += [Path(folder, name) for name in names]
        if len(files) > manifest.MAX_FILES:
            raise InvalidBaseModel(f"{path} holds more than {manifest.MAX_FILES} files")
    return sorted(files)


def _refuse_code_and_pickles(path: Path, files: Sequence[Path]) -> None:
    for file in files:
        name = file.relative_to(path)
        if file.suffix.lower() == ".py":
            raise InvalidBaseModel(f"{path} holds code ({name}); models that bring their own code are refused")
        if file.suffix.lower() in PICKLES:
            raise InvalidBaseModel(
                f"{path} holds pickled weights ({name}), which can run code when loaded; "
                "convert them to safetensors and remove the file"
            )


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InvalidBaseModel(f"{file.parent} has no {file.name}; the download may be incomplete")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidBaseModel(f"{file} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        value = strict_json.loads(file.read_bytes())
    except ValueError as error:
        raise InvalidBaseModel(f"{file}: {error}") from None
    if not isinstance(value, dict):
        raise InvalidBaseModel(f"{file} is not a JSON object")
    if "auto_map" in value:
        raise InvalidBaseModel(f"{file} names code to run (auto_map); models that bring their own code are refused")
    return value


def _tokenizer(path: Path) -> None:
    if not any((path / name).is_file() for name in TOKENIZERS):
        raise InvalidBaseModel(f"{path} has no tokenizer; it needs {' or '.join(TOKENIZERS)}")
    if (path / "tokenizer.json").exists():
        _config(path / "tokenizer.json")
    if (path / "tokenizer_config.json").exists():
        _config(path / "tokenizer_config.json")


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise InvalidBaseModel(f"{path / 'config.json'}: architectures names no class")
    return named[0]


def _licence(path: Path, config: Mapping[str, Any]) -> str | None:
    """As the folder states it: config, else the model card's front matter, else the licence file's name."""
    stated = config.get("license")
    if isinstance(stated, str) and stated.strip():
        return stated.strip()
    card = path / "README.md"
    if card.is_file():
        with card.open("rb") as file:
            text = file.read(1 << 16).decode("utf-8", errors="replace")
        # The Hugging Face model card format: YAML between two lines of three hyphens at the very start.
        front = re.match(r"---\r?\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE)
        line = front and re.search(r"^license:\s*(\S.*?)\s*$", front[1], re.MULTILINE)
        if line:
            return line[1].strip("\"'")
    for name in sorted(entry.name for entry in path.iterdir()):
        if re.fullmatch(r"(licen[cs]e|copying)(\.txt|\.md)?", name, re.IGNORECASE):
            return f"see {name}"
    return None


def _chat_template(path: Path, entries: Sequence[manifest.FileEntry]) -> str | None:
    """SHA-256 of the template's UTF-8 text, wherever the folder keeps it."""
    for entry in entries:
        if entry.path == "chat_template.jinja":
            return entry.sha256
    if (path / "tokenizer_config.json").exists():
        template = _config(path / "tokenizer_config.json").get("chat_template")
        if isinstance(template, str):
            return hashlib.sha256(template.encode()).hexdigest()
    return None


# Folder -> what was hashed, and the identity of every file at that time.
_Identity = tuple[tuple[str, int, int, int, int], ...]
_scanned: dict[Path, tuple[_Identity, list[manifest.FileEntry]]] = {}


def _scan(path: Path, files: Sequence[Path]) -> list[manifest.FileEntry]:
    before = _identity(files)
    known = _scanned.get(path)
    if known and known[0] == before:
        return known[1]
    entries = artifacts.scan_directory(path)
    if _identity(_files(path)) != before:
        raise InvalidBaseModel(f"{path} changed while it was read; wait for the copy to finish")
    _scanned[path] = (before, entries)
    return entries


def _identity(files: Sequence[Path]) -> _Identity:
    stats = [(file, file.stat()) for file in files]
    # Anyone may set a file's modification time; its change time is the kernel's.
    return tuple((str(file), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for file, s in stats)
