"""The exception tree is the ErrorReason enum, and every reason has one class."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from modelledger.ledger.v1 import error_reason_pb2

from ledger import errors
from ledger.errors import BY_REASON, ModelLedgerError, Violation, all_errors

TREE = list(all_errors())
PROTO = Path(__file__).parents[2] / "protos/modelledger/ledger/v1/error_reason.proto"


def test_the_tree_is_the_enum() -> None:
    enum = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert {error.reason for error in TREE} == enum - {"UNSPECIFIED"}


def test_the_generated_enum_is_that_of_the_proto_file() -> None:
    written = dict(re.findall(r"^\s*(ERROR_REASON_\w+) = (\d+);", PROTO.read_text(), re.MULTILINE))
    assert {name: int(number) for name, number in written.items()} == dict(error_reason_pb2.ErrorReason.items())


def test_every_reason_is_one_class_and_every_class_a_reason() -> None:
    reasons = [error.reason for error in TREE]
    assert len(set(reasons)) == len(reasons) == len(BY_REASON)
    assert all(BY_REASON[error.reason] is error for error in TREE)


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_codes_are_grpc_codes_and_reasons_are_the_class_names(error: type[ModelLedgerError]) -> None:
    assert error.code in grpc.StatusCode.__members__
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).upper()
    assert error.reason == ("INTERNAL" if error is ModelLedgerError else name)


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_the_drawing_shows_every_class_with_its_code_and_reason(error: type[ModelLedgerError]) -> None:
    (line,) = re.findall(rf"^.*\b{error.__name__}  .*$", errors.__doc__ or "", re.MULTILINE)
    assert line.split()[-1] == error.reason
    parent = error.__mro__[1]
    inherits = issubclass(parent, ModelLedgerError) and parent.code == error.code and parent is not ModelLedgerError
    assert (error.code in line.split()[:-1]) != inherits or error.code == error.reason


def test_an_error_carries_its_violations_and_metadata() -> None:
    violation = Violation("a.b", "NOT_FOUND", "is missing")
    error = errors.NotFound("nothing there", violations=[violation], metadata={"id": "7"})
    assert (str(error), error.violations, error.metadata) == ("nothing there", (violation,), {"id": "7"})
    assert str(violation) == "a.b: is missing"
