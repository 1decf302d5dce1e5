"""Believe nothing: the product's own auditor over everything that a store's database holds."""

from __future__ import annotations

from ledger.audit import audit
from ledger.errors import ModelLedgerError
from ledger.store import Store
from ledger.whole_log import DatabaseLog


def verify_whole_log(store: Store) -> int:
    """The number of events. Raises AssertionError naming the position of the first thing that is wrong."""
    if store.head.size == 0:
        return 0
    with DatabaseLog(store._reader.url.render_as_string(hide_password=False)) as source:
        try:
            return audit(source, [store.signer.verifier], jobs=1).size
        except ModelLedgerError as error:
            raise AssertionError(error.message) from error
