"""Training options: every one is applied or refused, and the effective ones are a pure function.

    effective("laptop", {"epochs": 3}) -> Options(epochs=3, batch_size=1, device="cpu", ...)

`effective` takes a profile and what the caller overrides, and answers the complete set that will be in
force; the service records it, the training child (run.py) reads it back with `from_mapping`. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ledger.errors import InvalidOption, ModelLedgerError, Violation

SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
DEVICES = ("cpu", "cuda")
QUANTISATIONS = ("none", "nf4")
ALL_LINEAR = "all-linear"
MAX_TARGET_MODULES = 64


@dataclass(frozen=True)
class Options:
    """What a training run does. The defaults are the laptop profile."""

    epochs: int = 1  # passes over the training split
    batch_size: int = 1  # rows per forward pass
    gradient_accumulation: int = 1  # forward passes per optimiser step
    learning_rate: float = 2e-4  # peak rate; LoRA wants about ten times a full fine-tune's
    warmup_steps: int = 0  # optimiser steps from zero to the peak rate
    scheduler: str = "cosine"  # one of SCHEDULERS
    lora_rank: int = 8
    lora_alpha: int = 16  # the update is scaled by lora_alpha / lora_rank
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR  # every linear layer but the head, or these names
    max_length: int = 512  # tokens; longer rows are skipped and reported, never cut
    seed: int = 0
    validation_fraction: float = 0.1  # held out of training; 0: no validation loss is measured
    completion_only: bool = True  # loss on the last answer's tokens only
    device: str = "cpu"  # one of DEVICES
    threads: int = 1  # CPU threads of the training process
    quantisation: str = "none"  # of the frozen base while training: one of QUANTISATIONS

    def to_mapping(self) -> dict[str, Any]:
        """As JSON-ready values; `from_mapping` is the inverse."""
        values = asdict(self)
        if not isinstance(self.target_modules, str):
            values["target_modules"] = list(self.target_modules)
        return values


PROFILES: dict[str, Options] = {
    "laptop": Options(device="cpu", batch_size=1, epochs=1),
    "workstation": Options(device="cuda", batch_size=8, epochs=3),
}

# name -> (type, smallest, largest); floats take integers too.
_NUMBERS: dict[str, tuple[type, float, float]] = {
    "epochs": (int, 1, 1000),
    "batch_size": (int, 1, 4096),
    "gradient_accumulation": (int, 1, 4096),
    "learning_rate": (float, 1e-9, 1.0),
    "warmup_steps": (int, 0, 1_000_000),
    "lora_rank": (int, 1, 1024),
    "lora_alpha": (int, 1, 4096),
    "lora_dropout": (float, 0.0, 0.9),
    "max_length": (int, 8, 1 << 20),
    "seed": (int, 0, 2**32 - 1),
    "validation_fraction": (float, 0.0, 0.5),
    "threads": (int, 1, 1024),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "scheduler": SCHEDULERS,
    "device": DEVICES,
    "quantisation": QUANTISATIONS,
}
_MODULE_NAME = re.compile(r"[A-Za-z0-9_.]{1,128}")


def profile(name: str) -> Options:
    """The options of a hardware profile. Raises InvalidOption with the known names."""
    if name not in PROFILES:
        raise _refusal([Violation("profile", _REASON, f"is {name!r}, must be one of {', '.join(PROFILES)}")])
    return PROFILES[name]


def effective(profile_name: str, overrides: Mapping[str, Any]) -> Options:
    """The profile with the overrides in place. Raises InvalidOption with every field that is wrong."""
    return from_mapping(profile(profile_name).to_mapping() | dict(overrides))


def from_mapping(values: Mapping[str, Any]) -> Options:
    """Options from JSON values; what is not given has its default. Raises InvalidOption with every field."""
    known = {field.name for field in fields(Options)}
    violations = [
        Violation(name, _REASON, f"is not an option; the options are {', '.join(sorted(known))}")
        for name in sorted(set(values) - known)
    ]
    checked: dict[str, Any] = {}
    for name in sorted(set(values) & known):
        try:
            checked[name] = _check(name, values[name])
        except ValueError as error:
            violations.append(Violation(name, _REASON, str(error)))
    if violations:
        raise _refusal(violations)
    return Options(**checked)


_REASON = InvalidOption.reason


def _check(name: str, value: Any) -> Any:
    if name in _NUMBERS:
        kind, low, high = _NUMBERS[name]
        number = isinstance(value, int) and not isinstance(value, bool)
        if kind is int and not number:
            raise ValueError(f"is {value!r}, must be a whole number")
        if kind is float and not (number or isinstance(value, float)):
            raise ValueError(f"is {value!r}, must be a number")
        if not low <= value <= high:  # false for NaN too
            raise ValueError(f"is {str(value)[:80]}, must be from {low:g} to {high:g}")
        return kind(value)
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"is {value!r}, must be one of {', '.join(_CHOICES[name])}")
        return value
    if name == "completion_only":
        if not isinstance(value, bool):
            raise ValueError(f"is {value!r}, must be true or false")
        return value
    return _check_target_modules(value)


def _check_target_modules(value: Any) -> str | tuple[str, ...]:
    if value == ALL_LINEAR:
        return ALL_LINEAR
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_TARGET_MODULES:
        raise ValueError(f'is {value!r}, must be "{ALL_LINEAR}" or a list of 1 to {MAX_TARGET_MODULES} names')
    for name in value:
        if not isinstance(name, str) or not _MODULE_NAME.fullmatch(name):
            raise ValueError(f"names {name!r}, which is no module name")
    # Sorted and unique: the order a caller wrote them in changes nothing about the training.
    return tuple(sorted(set(value)))


def _refusal(violations: list[Violation]) -> ModelLedgerError:
    listed = "; ".join(str(violation) for violation in violations)
    return InvalidOption(f"training options refused: {listed}", violations=violations)
