"""Whether a bundle's checkpoint satisfies a tlog-policy: signed by one of its logs, cosigned by its quorum. Pure."""

from __future__ import annotations

from ledger.note import NoteError, open_note
from ledger.report import Report
from ledger.trust_policy import TrustPolicy


def check_witnesses(note: bytes, origin: str, policy: TrustPolicy, report: Report) -> None:
    """Checks the note that the proofs carry; that it is a checkpoint of log `origin` was checked before."""
    try:
        if policy.logs:
            logs = [entry.verifier for entry in policy.logs]
            if origin not in {signature.verifier.name for signature in open_note(note, logs).signatures}:
                report.invalid("witnesses", origin, "other-log", "the policy does not name a key of this log")
                return
        verdict = policy.judge(note)
    except NoteError as error:
        report.invalid("witnesses", origin, error.kind, str(error))
        return
    if verdict.satisfied:
        report.valid("witnesses", origin, verdict.detail)
    else:
        report.invalid("witnesses", origin, "quorum-not-met", f"quorum {verdict.detail}")
