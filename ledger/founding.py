"""The first events of a log: its creation and the enrolment of the actors that will write in it.

Runs at every start and appends only what is missing, so a crash half-way is completed by the next start, and several
processes may start on a new database at once.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path

from modelledger.ledger.v1 import events_pb2

from ledger import possession
from ledger.actor_keys import ActorKeys
from ledger.committer import Committer
from ledger.envelope import Signer
from ledger.errors import AlreadyExists, DamagedLog, OtherLog, Refused
from ledger.events import INFERENCE, QUANTIZER, TRAINER
from ledger.local_actor import Author
from ledger.note import LogSigner
from ledger.rules import Known, current_key
from ledger.statement import Artifact

_ELSEWHERE = (TRAINER, QUANTIZER, INFERENCE)  # sign in processes of their own


def found(committer: Committer, log: LogSigner, signers: Mapping[str, Signer], vkey_file: Path) -> None:
    """Create the log when it is empty, and enrol the actors that are not.

    `vkey_file` is written once the log exists; it is what verifiers are given, and what tells an emptied database
    from a new one. Raises OtherLog for foreign keys, DamagedLog for a log that was there and is gone.
    """
    if vkey_file.exists():
        committer.store.refresh()  # another process may have made the log, and then the file, a moment ago
        if committer.store.head.size == 0:
            raise DamagedLog(
                f"{vkey_file} says that this log exists, but its database is empty; restore the database from a backup"
            )
    _create_with_others(committer, log, signers)
    text = f"{log.vkey()}\n"
    if not vkey_file.exists() or vkey_file.read_text() != text:
        temporary = vkey_file.with_suffix(f".{uuid.uuid4().hex}")
        temporary.write_text(text)
        temporary.rename(vkey_file)


def _create_with_others(committer: Committer, log: LogSigner, signers: Mapping[str, Signer]) -> None:
    """`_create`, and again whenever another process has appended some of it meanwhile."""
    for _ in signers:
        size = committer.store.head.size
        try:
            return _create(committer, log, signers)
        except (AlreadyExists, Refused):
            if committer.store.head.size == size:
                raise
    return _create(committer, log, signers)


def _create(committer: Committer, log: LogSigner, signers: Mapping[str, Signer]) -> None:
    ledger = Author("ledger", signers["ledger"], committer.store)
    if committer.store.head.size == 0:
        verifier = log.verifier
        created = events_pb2.LogCreated(
            origin=log.name, log_vkey=log.vkey(), actor_public_key=_text(ledger.signer.public_key_der)
        )
        log_artifact = Artifact(f"log/{log.name}", hashlib.sha256(verifier.public_key).hexdigest())
        committer.append([ledger.sign(created, "log", 1, [log_artifact, _key("ledger", ledger.signer)])])
    for actor, signer in signers.items():
        known = Known(keys=ActorKeys(committer.store).known)
        key = known.keys.get(signer.keyid)
        stream = f"actors/{actor}"
        if key is None and current_key(known, actor) is not None:
            if actor in _ELSEWHERE and ledger.next_version(stream) > 2:
                continue  # its key was rotated since: it may be kept where the service runs, and nowhere else
            raise OtherLog(f"the key file of {actor!r} is not the key enrolled in this log; restore the right key file")
        if ledger.next_version(stream) > 1:
            continue
        proof = _text(possession.prove(actor, "", signer))
        enrolled = events_pb2.ActorEnrolled(
            actor=actor, public_key=_text(signer.public_key_der), role=actor, possession=proof
        )
        committer.append([ledger.sign(enrolled, stream, 1, [_key(actor, signer)])])


def _key(actor: str, signer: Signer) -> Artifact:
    return Artifact(f"actors/{actor}", signer.keyid)


def _text(der: bytes) -> str:
    return base64.b64encode(der).decode()
