"""Configuration: one TOML file plus environment, read once into frozen dataclasses.

    [ledger]
    listen = "127.0.0.1:50051"

Each service reads its own section into its own dataclass (`<service>/config.py` documents the fields). An environment
variable MODELLEDGER_<SECTION>_<FIELD> wins over the file. An unknown field, in the file or in the environment, a wrong
type or a missing file is refused with file, field and reason. A field that neither gives may come from a variable with
a plain name: `field(default="", metadata={FALLBACK: "BASE_MODELS"})`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ledger import strict_toml
from ledger.errors import InvalidConfig

Section = TypeVar("Section")

FALLBACK = "fallback"  # key of a field's metadata
SECTIONS = ("ledger", "trainer", "quantizer", "inference")


def read_file(path: Path | None) -> dict[str, Any]:
    """The whole file as nested dicts; empty without a file."""
    if path is None:
        return {}
    try:
        document = strict_toml.loads(path.read_bytes())
    except OSError as error:
        raise InvalidConfig(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidConfig(f"{path}: {error}") from None
    for name in document:
        if name not in SECTIONS:
            raise InvalidConfig(f"{path}: [{name}]: unknown section; known are {', '.join(SECTIONS)}")
    return document


def section(
    kind: type[Section], name: str, document: Mapping[str, Any], environment: Mapping[str, str], source: str = ""
) -> Section:
    """Fill dataclass `kind` from document[name] and MODELLEDGER_<NAME>_<FIELD> variables."""
    values = document.get(name, {})
    where = source or "configuration"
    if not isinstance(values, dict):
        raise InvalidConfig(f"{where}: [{name}] is not a table")
    types_of = typing.get_type_hints(kind)
    fields = {field.name: types_of[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InvalidConfig(f"{where}: [{name}] {unknown[0]}: unknown field; known are {', '.join(sorted(fields))}")
    result = {field: _typed(value, fields[field], f"{where}: [{name}] {field}") for field, value in values.items()}
    prefix = f"MODELLEDGER_{name.upper()}_"
    variables = {prefix + field.upper(): field for field in fields}
    for variable in sorted(variable for variable in environment if variable.startswith(prefix)):
        if variable not in variables:
            raise InvalidConfig(f"environment: {variable}: unknown field; known are {', '.join(sorted(variables))}")
        field = variables[variable]
        result[field] = _parsed(environment[variable], fields[field], f"environment: {variable}")
    for described in dataclasses.fields(kind):  # type: ignore[arg-type]
        field, variable = described.name, described.metadata.get(FALLBACK, "")
        if variable in environment and not result.get(field):
            result[field] = _parsed(environment[variable], fields[field], f"environment: {variable}")
    return kind(**result)


def _typed(value: Any, wanted: Any, where: str) -> Any:
    if wanted is Path and isinstance(value, str):
        return Path(value).expanduser()
    if typing.get_origin(wanted) is tuple and isinstance(value, list):
        element = typing.get_args(wanted)[0]
        return tuple(_typed(item, element, f"{where}[{number}]") for number, item in enumerate(value))
    if isinstance(wanted, types.UnionType):
        return _typed(value, next(t for t in typing.get_args(wanted) if t is not type(None)), where)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise InvalidConfig(f"{where}: is {type(value).__name__}, expected {getattr(wanted, '__name__', wanted)}")
    return value


def _parsed(text: str, wanted: Any, where: str) -> Any:
    if typing.get_origin(wanted) is tuple:
        element = typing.get_args(wanted)[0]
        return tuple(_parsed(part.strip(), element, where) for part in text.split(",") if part.strip())
    if isinstance(wanted, types.UnionType):
        return _parsed(text, next(t for t in typing.get_args(wanted) if t is not type(None)), where)
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise InvalidConfig(f"{where}: {text!r} is not true or false")
        return text.lower() == "true"
    try:
        return Path(text).expanduser() if wanted is Path else wanted(text)
    except ValueError:
        raise InvalidConfig(f"{where}: {text!r} is not {wanted.__name__}") from None
