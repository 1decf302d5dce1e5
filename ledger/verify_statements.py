"""The statements of a bundle, proven: in a trusted log, signed by enrolled actors, allowed by the append rules. Pure.

The rules are the log's own (ledger/rules.py), run over the statements that are there. What a bundle leaves out is
noticed where it matters: streams of actors, runs and quantisations must be whole, and whatever a statement
consumes or speaks of must have been introduced by an earlier statement of the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ledger import bundle, rules, statement, strict_json
from ledger import envelope as dsse
from ledger.bundle import Statement
from ledger.bundle_files import BundleFiles, UnreadableBundle
from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.errors import ModelLedgerError, Violation
from ledger.note import ED25519, NoteError, Verifier
from ledger.proof_file import MAX_PROOF_SIZE, LogProof, parse_proof, verify_proof
from ledger.report import Report
from ledger.rules import Candidate, Known
from ledger.trust import Trust
from ledger.verify_keys import Signed, distrust, with_trust

_WHOLE_STREAMS = ("log", "actors/", "training-runs/", "quantizations/")


@dataclass
class Proven:
    """Statements that passed every check, by index, with the state of the rules behind the last of them."""

    checkpoint: Checkpoint
    trust: Trust
    note: bytes  # the checkpoint as it was signed, and maybe cosigned
    statements: dict[int, Statement] = field(default_factory=dict)
    proofs: dict[int, LogProof] = field(default_factory=dict)
    known: Known = field(default_factory=Known)


def prove(files: BundleFiles, verifiers: Sequence[Verifier], report: Report, trust: Trust) -> Proven | None:
    """Check all of statements/. None when there is no checkpoint to trust: then nothing can be proven."""
    pairs: dict[tuple[int, str], set[str]] = {}
    for path in sorted(files.sizes):
        if path.startswith(bundle.STATEMENTS):
            parsed = bundle.parse_statement_path(path)
            if parsed is None:
                report.invalid("statement", path, "extra-file", "is not the name of a statement or a proof")
            else:
                pairs.setdefault(parsed[:2], set()).add(parsed[2])
    complete = []
    for (index, kind), forms in sorted(pairs.items()):
        for form, path in (
            ("dsse.json", bundle.statement_path(index, kind)),
            ("tlog-proof", bundle.proof_path(index, kind)),
        ):
            if form not in forms:
                report.missing("statement", path, "missing-file", "the other half of a statement and its proof")
        if len(forms) == 2:
            complete.append((index, kind))
    proofs = {pair: _read_proof(files, pair, report) for pair in complete}
    notes = {proof.checkpoint for proof in proofs.values() if proof}
    if len(notes) != 1:
        report.invalid(
            "checkpoint",
            bundle.STATEMENTS,
            "different-checkpoints" if notes else "no-checkpoint",
            f"the proofs carry {len(notes)} different checkpoints, expected one",
        )
        return None
    note = notes.pop()
    checkpoint = _checkpoint(note, verifiers, report)
    if checkpoint is None:
        return None
    proven = Proven(checkpoint, trust, note)
    for index, kind in complete:
        proof = proofs[index, kind]
        if proof is not None:
            _prove_one(files, (index, kind), proof, verifiers, proven, report)
    _log_created(proven, verifiers, report)
    _trusted_keys(proven, report)
    return proven


def _read_proof(files: BundleFiles, pair: tuple[int, str], report: Report) -> LogProof | None:
    path = bundle.proof_path(*pair)
    try:
        proof = parse_proof(files.read(path, MAX_PROOF_SIZE))
        if proof.index != pair[0]:
            raise ValueError(f"is a proof for index {proof.index}")
    except (UnreadableBundle, NoteError, ValueError) as error:
        report.invalid("inclusion", path, "malformed-proof", str(error))
        return None
    return proof


def _checkpoint(note: bytes, verifiers: Sequence[Verifier], report: Report) -> Checkpoint | None:
    origin = note.partition(b"\n")[0].decode(errors="replace")
    logs = {verifier.name for verifier in verifiers if verifier.algorithm == ED25519}
    if origin not in logs:
        known = ", ".join(sorted(logs)) or "none"
        detail = f"the checkpoint is of log {origin[:200]!r}; trusted: {known}"
        report.invalid("checkpoint", origin[:200], "other-log", detail)
        return None
    try:
        checkpoint = open_checkpoint(note, verifiers, origin)
    except NoteError as error:
        report.invalid("checkpoint", origin, error.kind, str(error))
        return None
    report.valid("checkpoint", origin, f"size {checkpoint.size}, signed by a trusted key")
    return checkpoint


def _prove_one(
    files: BundleFiles,
    pair: tuple[int, str],
    proof: LogProof,
    verifiers: Sequence[Verifier],
    proven: Proven,
    report: Report,
) -> None:
    index, kind = pair
    path = bundle.statement_path(index, kind)
    try:
        entry = files.read(path, dsse.MAX_ENTRY)
    except UnreadableBundle as error:
        report.invalid("statement", path, error.reason, str(error))
        return
    included = True
    try:
        verify_proof(proof, entry, verifiers, proven.checkpoint.origin)
    except NoteError as error:
        included = False
        report.invalid("inclusion", path, error.kind, f"index {index}: {error}")
    if _is_stripped(entry):
        report.invalid("signature", path, "stripped-signature", "the envelope carries no signature")
        return
    try:
        envelope = dsse.parse(entry)
        event = statement.decode(envelope.payload)
    except ModelLedgerError as error:
        report.invalid("statement", path, _word(error.reason), error.message)
        return
    if event.kind != kind:
        report.invalid("statement", path, "wrong-name", f"holds an event of kind {event.kind!r}")
        return
    candidate = _candidate(envelope, event, proven.known, first=index == 0)
    known = proven.known
    known.size = index
    if not event.stream.startswith(_WHOLE_STREAMS):
        known.streams[event.stream] = event.version - 1
    violations = rules.check(known, candidate)
    for violation in violations:
        report.invalid("signature" if violation.field == "signatures" else "rules", path, *_told(violation))
    if included and not violations:
        rules.learn(known, candidate)
        proven.statements[index] = Statement(index, entry, event)
        proven.proofs[index] = proof
        report.valid("statement", path, f"signed by {event.actor}, in the log at index {index}")


def _candidate(envelope: dsse.Envelope, event: statement.Event, known: Known, *, first: bool) -> Candidate:
    verified, problems = set(), []
    for signature in envelope.signatures:
        key = known.keys.get(signature.keyid) or (rules.founder(event) if first else None)
        if key is None:
            continue  # a stranger's signature neither helps nor harms
        try:
            dsse.verify(envelope, signature.keyid, dsse.load_public_key(key.public_key))
            verified.add(signature.keyid)
        except ModelLedgerError as error:
            problems.append(Violation("signatures", error.reason, error.message))
    return Candidate(event, dsse.payload_digest(envelope), frozenset(verified), tuple(problems))


def _log_created(proven: Proven, verifiers: Sequence[Verifier], report: Report) -> None:
    """The log says of itself who it is; that must be the log that signed the checkpoint."""
    first = proven.statements.get(0)
    if first is None:
        report.missing("log", bundle.statement_path(0, "LogCreated"), "missing-file", "the log's first event")
        return
    trusted = {v.vkey() for v in verifiers if v.name == proven.checkpoint.origin}
    data = first.event.data
    if data.get("origin") != proven.checkpoint.origin or data.get("logVkey") not in trusted:
        where = bundle.statement_path(0, "LogCreated")
        report.invalid("log", where, "other-log", f"it creates log {data.get('origin')!r}, not the trusted one")


def _trusted_keys(proven: Proven, report: Report) -> None:
    """Every statement by a key that the log, or who verifies, did not trust at its index. Known after the last one."""
    signed = Signed()
    for index, found in proven.statements.items():
        key_ids = [signature.keyid for signature in dsse.parse(found.entry).signatures]
        signed.add(index, found.event.actor, key_ids, proven.known.keys)
    for one in signed.untrusted(proven.known.keys, proven.trust):
        where = bundle.statement_path(one.index, proven.statements[one.index].event.kind)
        report.invalid("signature", where, one.reason, one.detail)
    proven.known.keys = with_trust(proven.known.keys, proven.trust)


def _is_stripped(entry: bytes) -> bool:
    try:
        value = strict_json.loads(entry)
    except ValueError:
        return False
    return isinstance(value, dict) and "payload" in value and not value.get("signatures")


def _told(violation: Violation) -> tuple[str, str]:
    return _word(violation.reason), str(violation)


def _word(reason: str) -> str:
    return reason.lower().replace("_", "-")


def signed_by(data: bytes, actor: str, proven: Proven) -> tuple[dsse.Envelope, bytes]:
    """The envelope in `data` and the DER key of `actor` that signed it, current at the checkpoint.

    Raises UnreadableBundle with one reason each for: no signature, a stranger's key, a retired key, a key that is not
    trusted, a signature that does not fit, a spelling that is not the writer's.
    """
    if _is_stripped(data):
        raise UnreadableBundle("stripped-signature", "the envelope carries no signature")
    try:
        envelope = dsse.parse(data)
    except ModelLedgerError as error:
        raise UnreadableBundle(_word(error.reason), error.message) from None
    keyid = envelope.signatures[0].keyid
    key = proven.known.keys.get(keyid)
    if key is None or key.actor != actor:
        raise UnreadableBundle("unknown-actor", f"signed by key {keyid}, which is not one of {actor!r}")
    if key.retired_at is not None:
        raise UnreadableBundle(
            "revoked-actor", f"signed by a key of {actor!r} that was revoked or replaced at index {key.retired_at}"
        )
    for reason, detail in distrust(keyid, key, proven.checkpoint.size, proven.trust):
        raise UnreadableBundle(reason, detail)
    try:
        dsse.verify(envelope, keyid, dsse.load_public_key(key.public_key))
    except ModelLedgerError as error:
        raise UnreadableBundle(_word(error.reason), error.message) from None
    return envelope, key.public_key
