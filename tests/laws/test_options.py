"""Training options: complete, checked, and a pure function of profile and overrides."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InvalidOption
from trainer.options import PROFILES, Options, effective, from_mapping, profile

VALID = {
    "epochs": 4,
    "batch_size": 2,
    "gradient_accumulation": 3,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "scheduler": "linear",
    "lora_rank": 4,
    "lora_alpha": 32,
    "lora_dropout": 0.25,
    "target_modules": ["q_proj", "v_proj"],
    "max_length": 64,
    "seed": 9,
    "validation_fraction": 0.0,
    "completion_only": False,
    "device": "cuda",
    "threads": 2,
    "quantisation": "nf4",
}


def test_profiles_are_what_the_hardware_allows() -> None:
    laptop, workstation = profile("laptop"), profile("workstation")
    assert (laptop.device, laptop.batch_size, laptop.epochs) == ("cpu", 1, 1)
    assert (workstation.device, workstation.batch_size, workstation.epochs) == ("cuda", 8, 3)


@pytest.mark.parametrize("name", VALID)
def test_every_option_can_be_overridden_and_nothing_else_changes(name: str) -> None:
    before = profile("laptop").to_mapping()
    after = effective("laptop", {name: VALID[name]}).to_mapping()
    assert after == before | {name: VALID[name]}
    assert after[name] != before[name], "the test's value must differ from the default"


def test_the_table_above_names_every_option() -> None:
    assert set(VALID) == set(Options().to_mapping())


@pytest.mark.parametrize("name", PROFILES)
def test_a_recorded_mapping_reads_back_as_the_same_options(name: str) -> None:
    chosen = effective(name, {"target_modules": ["v_proj", "q_proj", "q_proj"]})
    assert from_mapping(json.loads(json.dumps(chosen.to_mapping()))) == chosen
    assert chosen.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", True),
        ("epochs", 1.5),
        ("epochs", "3"),
        ("batch_size", -1),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", 10**400),
        ("learning_rate", None),
        ("warmup_steps", -1),
        ("scheduler", "cubic"),
        ("scheduler", ["linear"]),
        ("lora_dropout", 1.0),
        ("target_modules", "q_proj"),
        ("target_modules", []),
        ("target_modules", ["q proj"]),
        ("target_modules", [1]),
        ("max_length", 1),
        ("seed", -1),
        ("seed", 2**32),
        ("validation_fraction", 0.6),
        ("completion_only", 1),
        ("device", "tpu"),
        ("quantisation", "int8"),
        ("packing", True),
    ],
)
def test_a_bad_option_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(InvalidOption) as refusal:
        effective("laptop", {name: value})
    assert [violation.field for violation in refusal.value.violations] == [name]
    assert name in refusal.value.message


def test_all_bad_options_are_named_at_once() -> None:
    with pytest.raises(InvalidOption) as refusal:
        effective("laptop", {"epochs": 0, "speed": 9, "device": "tpu"})
    assert {violation.field for violation in refusal.value.violations} == {"epochs", "speed", "device"}


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(InvalidOption, match="laptop, workstation"):
        effective("phone", {})


@given(st.dictionaries(st.sampled_from(sorted(VALID)), st.none() | st.booleans() | st.integers() | st.floats()))
def test_whatever_is_given_is_accepted_whole_or_refused(overrides: dict[str, object]) -> None:
    try:
        chosen = effective("laptop", overrides)
    except InvalidOption:
        return
    assert effective("laptop", chosen.to_mapping()) == chosen


def test_service_files_do_not_import_torch() -> None:
    code = (
        "import sys, ledger.kit.catalog, trainer.dataset, trainer.options, trainer.spec, trainer.run\n"
        "assert not {'torch', 'transformers', 'peft', 'trl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
