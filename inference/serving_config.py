"""serving.toml: which models are served, which one answers when none is named, and how much the engines may use.

    default = "acme/support"          # must be listed and enabled; left out only while nothing is enabled

    [engine]                          # every field may be left out
    context = 2048                    # tokens of one request, prompt and answer together
    threads = 1                       # llama.cpp threads of one engine
    slots = 4                         # requests one engine answers at once
    memory_limit_bytes = 8589934592   # of all engines together, measured
    max_engines = 4                   # loaded at once; the least recently used one goes

    [[models]]
    name = "acme/support"             # org/model, or base/<key> for a base model as it is
    enabled = true
    auto_load = false                 # true: load at start, false: on the first request
    quantisation = "Q4_K_M"           # Q4_K_M, Q5_K_M, Q6_K, Q8_0 or F16

Nothing is guessed: an unknown field, a wrong type or a duplicate is an InvalidConfig that names file, field and
reason. `ServingConfig` notices an edit on the next use; after a bad one the old state stays and `problem` says why.
`write_toggle` is what `deploy enable` and `disable` do; it writes the file anew, so comments do not survive it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ledger import strict_toml
from ledger.errors import InvalidConfig, NotFound
from ledger.kit.artifacts import sync_directory

QUANTISATIONS = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
MAX_FILE_BYTES = 1 << 20
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_NAME = re.compile(rf"{_PART}/{_PART}")


@dataclass(frozen=True)
class EngineSettings:
    """What each engine gets, and what all of them together may use."""

    context: int = 2048
    threads: int = 1
    slots: int = 4
    memory_limit_bytes: int = 8 << 30
    max_engines: int = 4


_BOUNDS = {
    "context": (16, 1 << 20),
    "threads": (1, 256),
    "slots": (1, 64),
    "memory_limit_bytes": (1 << 20, 1 << 50),
    "max_engines": (1, 64),
}


@dataclass(frozen=True)
class ServedModel:
    """One entry: a model and whether and how it is served."""

    name: str
    enabled: bool
    auto_load: bool = False
    quantisation: str = "Q4_K_M"


@dataclass(frozen=True)
class Serving:
    """One valid state of the file."""

    default: str | None = None
    models: tuple[ServedModel, ...] = ()
    engine: EngineSettings = field(default_factory=EngineSettings)

    def enabled(self) -> tuple[ServedModel, ...]:
        return tuple(model for model in self.models if model.enabled)

    def served(self, name: str | None) -> ServedModel:
        """The enabled model of this name; the default when no name is given. Raises NotFound, also if disabled."""
        wanted = self.default if name is None else name
        if wanted is None:
            raise NotFound("no model is served yet; enable one with `modelledger deploy enable`")
        for model in self.enabled():
            if model.name == wanted:
                return model
        raise not_served(wanted)


class ServingConfig:
    """The file as it is now. Each use costs one stat; only a changed file is read again."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidConfig if the file is missing or wrong: there is no old state to run on."""
        self.path = path
        self.problem: InvalidConfig | None = None
        self._seen = _signature(path)
        self._state = load(path)

    def current(self) -> Serving:
        """The newest valid state. After a bad edit that is an older one, and `problem` is set."""
        seen = _signature(self.path)
        if seen != self._seen:
            self._seen = seen
            try:
                self._state, self.problem = load(self.path), None
            except InvalidConfig as error:
                self.problem = error
        return self._state


def not_served(name: str) -> NotFound:
    """What is answered for a name that is unknown or disabled; which of the two is not told."""
    return NotFound(
        f"the model {name!r} does not exist or is not served; `modelledger deploy list` shows what is, "
        f"`modelledger deploy enable {name}` serves it"
    )


def load(path: Path) -> Serving:
    """Read and check the file. Raises InvalidConfig."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise InvalidConfig(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    if not data.strip():
        # As a file is between the two steps in which most programs write one.
        raise InvalidConfig(f"{path}: is empty; to serve nothing, list every model with enabled = false")
    return parse(data, str(path))


def parse(data: bytes, source: str) -> Serving:
    """Check the text of a file called `source`. Raises InvalidConfig with source, field and reason."""
    try:
        document = strict_toml.loads(data)
    except ValueError as error:
        raise InvalidConfig(f"{source}: not TOML: {error}") from None
    return _Reader(source).serving(document)


def render(serving: Serving) -> str:
    """The file that says this. Law: parse(render(s)) == s."""
    lines = [] if serving.default is None else [f"default = {_toml(serving.default)}", ""]
    lines += ["[engine]", *_assignments(serving.engine)]
    for model in serving.models:
        lines += ["", "[[models]]", *_assignments(model)]
    return "\n".join(lines) + "\n"


def toggle(serving: Serving, name: str, enabled: bool, make_default: bool = False) -> Serving:
    """The state with one model switched. Enabling adds a model that is not listed, and makes the first enabled one
    the default, or this one on request. Disabling refuses the default while others are enabled (InvalidConfig), an
    unlisted one (NotFound)."""
    if make_default and not enabled:
        raise InvalidConfig(f"{name!r} cannot be the default model without being enabled")
    listed = {model.name: model for model in serving.models}
    if name not in listed and not enabled:
        raise NotFound(f"{name!r} is not in the list of served models")
    listed[name] = replace(listed[name], enabled=enabled) if name in listed else ServedModel(name, enabled)
    changed = replace(serving, models=tuple(listed.values()))
    if enabled and (serving.default is None or make_default):
        return replace(changed, default=name)
    if name == serving.default and not enabled:
        if changed.enabled():
            raise InvalidConfig(f"{name!r} is the default model; make another one the default first")
        return replace(changed, default=None)
    return changed


def write(path: Path, serving: Serving) -> None:
    """Replace the file atomically, after checking that it will be accepted."""
    data = render(serving).encode()
    parse(data, str(path))
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_toggle(path: Path, name: str, enabled: bool, make_default: bool = False) -> Serving:
    """Switch one model in the file and answer the new state. A file that is wrong is not overwritten."""
    with _one_writer(path.parent):
        serving = toggle(load(path), name, enabled, make_default)
        write(path, serving)
    return serving


class _Reader:
    """Takes a parsed document apart; every complaint begins with the file."""

    def __init__(self, source: str) -> None:
        self._source = source

    def serving(self, document: dict[str, Any]) -> Serving:
        self._known(document, "", ("default", "models", "engine"))
        tables = document.get("models", [])
        if not isinstance(tables, list):
            raise self._wrong("models", "must be written as [[models]] tables")
        models = tuple(self._model(table, f"models[{index}]") for index, table in enumerate(tables))
        seen: set[str] = set()
        for index, model in enumerate(models):
            if model.name in seen:
                raise self._wrong(f"models[{index}].name", f"{model.name!r} is listed twice")
            seen.add(model.name)
        default = self._default(document, models)
        return Serving(default, models, self._engine(document.get("engine", {})))

    def _default(self, document: dict[str, Any], models: tuple[ServedModel, ...]) -> str | None:
        enabled = [model.name for model in models if model.enabled]
        if "default" not in document:
            if enabled:
                raise self._wrong("default", f"is missing; one of {', '.join(enabled)}")
            return None
        default = self._typed(document, "default", str, "")
        if default not in {model.name for model in models}:
            raise self._wrong("default", f"{default!r} is not one of the models")
        if default not in enabled:
            raise self._wrong("default", f"{default!r} is not enabled")
        return str(default)

    def _model(self, table: Any, where: str) -> ServedModel:
        names = tuple(field.name for field in fields(ServedModel))
        if not isinstance(table, dict):
            raise self._wrong(where, "must be a table")
        self._known(table, f"{where}.", names)
        for required in ("name", "enabled"):
            if required not in table:
                raise self._wrong(f"{where}.{required}", "is missing")
        model = ServedModel(
            name=self._typed(table, "name", str, f"{where}."),
            enabled=self._typed(table, "enabled", bool, f"{where}."),
            auto_load=self._typed(table, "auto_load", bool, f"{where}.", ServedModel.auto_load),
            quantisation=self._typed(table, "quantisation", str, f"{where}.", ServedModel.quantisation),
        )
        if not _NAME.fullmatch(model.name):
            raise self._wrong(f"{where}.name", f"{model.name!r} is not of the form org/model or base/<key>")
        if model.quantisation not in QUANTISATIONS:
            reason = f"{model.quantisation!r} is unknown; one of {', '.join(QUANTISATIONS)}"
            raise self._wrong(f"{where}.quantisation", reason)
        return model

    def _engine(self, table: Any) -> EngineSettings:
        if not isinstance(table, dict):
            raise self._wrong("engine", "must be a table, written [engine]")
        self._known(table, "engine.", tuple(_BOUNDS))
        for name, (least, most) in _BOUNDS.items():
            value = self._typed(table, name, int, "engine.", least)
            if not least <= value <= most:
                raise self._wrong(f"engine.{name}", f"{value} is not between {least} and {most}")
        return EngineSettings(**table)

    def _known(self, table: dict[str, Any], where: str, names: tuple[str, ...]) -> None:
        for name in table:
            if name not in names:
                raise self._wrong(f"{where}{name}", f"unknown field; known: {', '.join(names)}")

    def _typed(self, table: dict[str, Any], name: str, kind: type, where: str, missing: object = None) -> Any:
        value = table.get(name, missing)
        # bool is a subclass of int in Python, not in TOML.
        if type(value) is not kind:
            words = {str: "a string", bool: "true or false", int: "a whole number"}
            raise self._wrong(f"{where}{name}", f"must be {words[kind]}")
        return value

    def _wrong(self, where: str, reason: str) -> InvalidConfig:
        return InvalidConfig(f"{self._source}: {where}: {reason}", metadata={"field": where})


def _assignments(record: EngineSettings | ServedModel) -> Iterator[str]:
    for entry in fields(record):
        yield f"{entry.name} = {_toml(getattr(record, entry.name))}"


def _toml(value: str | bool | int) -> str:
    """Strings, booleans and integers are written alike in JSON and TOML (names hold no control characters)."""
    return json.dumps(value)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Two toggles at once must not undo each other: the second waits for the first."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
