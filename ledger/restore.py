"""Restoring a backup: audited first, whole or not at all, and only where there is nothing yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ledger.audit import Audited, Progress, audit
from ledger.backup import Backup
from ledger.errors import DamagedLog
from ledger.note import Verifier
from ledger.whole_log import require_empty, write_log


def restore(
    path: Path, url: str, verifiers: Sequence[Verifier], progress: Progress = lambda done, total: None
) -> Audited:
    """Write the log in the backup at `path` into the empty database at `url`.

    Raises DamagedLog or InvalidSignature before anything is written, Refused when there is a log already.
    """
    require_empty(url)  # asked again inside the transaction; here so that nobody waits for an audit in vain
    backup = Backup(path)
    audited = audit(backup, verifiers, progress=progress)
    digest = backup.digest

    def still_good() -> None:
        if backup.digest != digest:
            raise DamagedLog(f"{path} was changed while it was restored; nothing was written")

    write_log(url, backup.bundles(0, audited.size), still_good)
    return audited
