"""Everything that can go wrong, as one tree: class -> gRPC status code + reason.

    ModelLedgerError                INTERNAL             INTERNAL
    ├─ InvalidInput                 INVALID_ARGUMENT     INVALID_INPUT
    │  ├─ MalformedEvent                                 MALFORMED_EVENT
    │  ├─ UnknownKind                                    UNKNOWN_KIND
    │  ├─ EventTooLarge                                  EVENT_TOO_LARGE
    │  ├─ InvalidName                                    INVALID_NAME
    │  ├─ AmbiguousName                                  AMBIGUOUS_NAME
    │  ├─ NoBaseSelected                                 NO_BASE_SELECTED
    │  ├─ InvalidBaseModel                               INVALID_BASE_MODEL
    │  ├─ InvalidDataset                                 INVALID_DATASET
    │  ├─ InvalidOption                                  INVALID_OPTION
    │  └─ InvalidConfig                                  INVALID_CONFIG
    ├─ NotFound                     NOT_FOUND            NOT_FOUND
    ├─ EventIdReused                ALREADY_EXISTS       EVENT_ID_REUSED
    ├─ AlreadyExists                ALREADY_EXISTS       ALREADY_EXISTS
    ├─ WrongStreamVersion           ABORTED              WRONG_STREAM_VERSION
    ├─ InvalidSignature             UNAUTHENTICATED      INVALID_SIGNATURE
    ├─ PermissionDenied             PERMISSION_DENIED    PERMISSION_DENIED
    │  ├─ UnknownActor                                   UNKNOWN_ACTOR
    │  ├─ RevokedActor                                   REVOKED_ACTOR
    │  └─ KindNotAllowed                                 KIND_NOT_ALLOWED
    ├─ Refused                      FAILED_PRECONDITION  REFUSED
    │  ├─ UnknownMaterial                                UNKNOWN_MATERIAL
    │  ├─ RevokedMaterial                                REVOKED_MATERIAL
    │  ├─ NotReady                                       NOT_READY
    │  ├─ EvidenceMissing                                EVIDENCE_MISSING
    │  ├─ MissingCapability                              MISSING_CAPABILITY
    │  └─ UnsafeKeyFile                                  UNSAFE_KEY_FILE
    ├─ Overloaded                   RESOURCE_EXHAUSTED   OVERLOADED
    ├─ Unreachable                  UNAVAILABLE          UNREACHABLE
    └─ Damaged                      DATA_LOSS            DAMAGED
       ├─ DamagedLog                                     DAMAGED_LOG
       ├─ OtherLog                                       OTHER_LOG
       └─ ArtifactMismatch                               ARTIFACT_MISMATCH

A message says what is wrong, where (file, line, field, event index), and what to do next. The
reasons are documented in protos/modelledger/ledger/v1/error_reason.proto; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One thing wrong with one field; a refusal carries all of them at once."""

    field: str
    reason: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class ModelLedgerError(Exception):
    """Root of the tree. `code` is a gRPC status code name, `reason` an ErrorReason without prefix.

    `retry_after`: seconds from now on after which the same may be tried again; 0 when nobody knows.
    """

    code = "INTERNAL"
    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        metadata: dict[str, str] | None = None,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after


class InvalidInput(ModelLedgerError):
    code, reason = "INVALID_ARGUMENT", "INVALID_INPUT"


class MalformedEvent(InvalidInput):
    reason = "MALFORMED_EVENT"


class UnknownKind(InvalidInput):
    reason = "UNKNOWN_KIND"


class EventTooLarge(InvalidInput):
    reason = "EVENT_TOO_LARGE"


class InvalidName(InvalidInput):
    reason = "INVALID_NAME"


class AmbiguousName(InvalidInput):
    reason = "AMBIGUOUS_NAME"


class NoBaseSelected(InvalidInput):
    reason = "NO_BASE_SELECTED"


class InvalidBaseModel(InvalidInput):
    reason = "INVALID_BASE_MODEL"


class InvalidDataset(InvalidInput):
    reason = "INVALID_DATASET"


class InvalidOption(InvalidInput):
    reason = "INVALID_OPTION"


class InvalidConfig(InvalidInput):
    reason = "INVALID_CONFIG"


class NotFound(ModelLedgerError):
    code, reason = "NOT_FOUND", "NOT_FOUND"


class EventIdReused(ModelLedgerError):
    code, reason = "ALREADY_EXISTS", "EVENT_ID_REUSED"


class AlreadyExists(ModelLedgerError):
    code, reason = "ALREADY_EXISTS", "ALREADY_EXISTS"


class WrongStreamVersion(ModelLedgerError):
    code, reason = "ABORTED", "WRONG_STREAM_VERSION"


class InvalidSignature(ModelLedgerError):
    code, reason = "UNAUTHENTICATED", "INVALID_SIGNATURE"


class PermissionDenied(ModelLedgerError):
    code, reason = "PERMISSION_DENIED", "PERMISSION_DENIED"


class UnknownActor(PermissionDenied):
    reason = "UNKNOWN_ACTOR"


class RevokedActor(PermissionDenied):
    reason = "REVOKED_ACTOR"


class KindNotAllowed(PermissionDenied):
    reason = "KIND_NOT_ALLOWED"


class Refused(ModelLedgerError):
    code, reason = "FAILED_PRECONDITION", "REFUSED"


class UnknownMaterial(Refused):
    reason = "UNKNOWN_MATERIAL"


class RevokedMaterial(Refused):
    reason = "REVOKED_MATERIAL"


class NotReady(Refused):
    """The input is valid but there is not enough of it, or a step before this one is missing."""

    reason = "NOT_READY"


class EvidenceMissing(Refused):
    """A certificate's policy asks for evidence the log does not hold."""

    reason = "EVIDENCE_MISSING"


class MissingCapability(Refused):
    """This machine or installation cannot do it: no CUDA, a library missing, an unknown tokenizer."""

    reason = "MISSING_CAPABILITY"


class UnsafeKeyFile(Refused):
    reason = "UNSAFE_KEY_FILE"


class Overloaded(ModelLedgerError):
    code, reason = "RESOURCE_EXHAUSTED", "OVERLOADED"


class Unreachable(ModelLedgerError):
    code, reason = "UNAVAILABLE", "UNREACHABLE"


class Damaged(ModelLedgerError):
    code, reason = "DATA_LOSS", "DAMAGED"


class DamagedLog(Damaged):
    reason = "DAMAGED_LOG"


class OtherLog(Damaged):
    reason = "OTHER_LOG"


class ArtifactMismatch(Damaged):
    """Bytes on disk are not the bytes their digest names."""

    reason = "ARTIFACT_MISMATCH"


def all_errors(root: type[ModelLedgerError] = ModelLedgerError) -> Iterator[type[ModelLedgerError]]:
    """The tree, root first."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


BY_REASON: dict[str, type[ModelLedgerError]] = {error.reason: error for error in all_errors()}
