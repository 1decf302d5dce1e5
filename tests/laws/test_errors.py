"""The exception tree is the ErrorReason enum, and every reason has one class."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st
from modelledger.ledger.v1 import error_reason_pb2

from ledger import errors
from ledger.errors import BY_REASON, ModelLedgerError, Violation, all_errors
from ledger.kit import client
from ledger.kit.client import from_rpc_error, from_status
from ledger.kit.interceptors import to_status

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


# Above it gRPC refuses trailers by chance, and twice above always; names of other headers need a little.
TRAILERS = 8 * 1024 - 300

messages = st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=9), st.integers(0, 4_000))
violations = st.builds(lambda text, times: [Violation(text, "NOT_FOUND", text)] * times, messages, st.integers(0, 200))


@given(messages, violations, st.floats(0, 1e6))
def test_a_status_fits_into_the_trailers_of_a_call(message: str, found: list[Violation], seconds: float) -> None:
    status = to_status(errors.InvalidInput(message, violations=found, retry_after=seconds))
    assert len(quote(status.message)) + len(base64.b64encode(status.SerializeToString())) < TRAILERS
    assert status.message in (message, message[: len(status.message) - 1] + "…")
    assert status.message == message or len(quote(message)) > 1_000


@given(st.sampled_from(TREE), st.floats(0, 1e6))
def test_a_caller_gets_the_error_that_was_raised(kind: type[ModelLedgerError], seconds: float) -> None:
    found = [Violation("a", "NOT_FOUND", "b")]
    raised = kind("it is so", violations=found, metadata={"id": "7"}, retry_after=seconds)
    got = from_status(to_status(raised))
    assert type(got) is kind
    assert (got.message, got.violations, got.metadata) == ("it is so", tuple(found), {"id": "7"})
    assert got.retry_after == pytest.approx(seconds, abs=1e-6)


def test_a_status_of_another_server_is_the_nearest_error_and_its_time_to_wait_counts() -> None:
    status = to_status(errors.Overloaded("later", retry_after=1.5))
    del status.details[0]
    got = from_status(status)
    assert (type(got), got.message, got.retry_after) == (errors.Overloaded, "later", 1.5)


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ("SERVER: Received message larger than max (4194400 vs. 4194304)", errors.InvalidInput),
        ("grpc: received message larger than max (4194400 vs. 4194304)", errors.InvalidInput),
        ("rate limited", errors.Overloaded),  # by a proxy: the same may be tried again
        ("", errors.Overloaded),
    ],
)
def test_only_a_message_that_is_too_large_is_the_callers_fault(details: str, kind: type[ModelLedgerError]) -> None:
    class Answered(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.RESOURCE_EXHAUSTED

        def details(self) -> str:
            return details

        def trailing_metadata(self) -> tuple[()]:
            return ()

    assert type(from_rpc_error(Answered())) is kind


def test_no_time_to_wait_is_told_where_none_is_known() -> None:
    assert len(to_status(errors.Overloaded("later")).details) == 1
    assert from_status(to_status(errors.Overloaded("later"))).retry_after == 0


@pytest.mark.parametrize("asked", [-5.0, 0.0, 1e6])
def test_whoever_tries_again_waits_within_bounds(asked: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "AGAIN_AFTER", 0.02)
    monkeypatch.setattr(client, "MAX_PAUSE", 0.04)
    started, refusals = time.monotonic(), iter([errors.Overloaded("later", retry_after=asked)] * 3)

    def ask() -> str:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return "done"

    assert client.patiently(ask) == "done"
    assert time.monotonic() - started >= 3 * 0.02


def test_a_path_that_is_no_unicode_text_has_a_status() -> None:
    assert to_status(errors.InvalidInput("folder \udcff is wrong")).message == "folder ? is wrong"


def test_what_a_status_leaves_out_is_counted() -> None:
    found = [Violation(f"field {number}", "NOT_FOUND", "x" * 100) for number in range(200)]
    bad = error_details_pb2.BadRequest()
    assert to_status(errors.InvalidInput("no", violations=found)).details[1].Unpack(bad)
    told = len(bad.field_violations) - 1
    assert [violation.field for violation in bad.field_violations[:told]] == [v.field for v in found[:told]]
    assert bad.field_violations[told].description == f"{200 - told} more are not listed"
    assert told > 10
