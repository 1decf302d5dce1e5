"""What `modelledger log rebuild` does: the registry view is forgotten and folded again, to the end or to Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ledger.errors import InvalidInput
from ledger.note import NoteError, Verifier
from modelledger.cli.progress import counting_bar


def rebuild_registry(data: Path, url: str) -> tuple[int, int]:
    """How many events are folded, of how many. Raises Damaged with the index of one that cannot be."""
    from ledger.registry_view import REGISTRY_VIEW, fold_registry, keys_read
    from ledger.views import ViewRunner
    from ledger.writer import LogSettings

    settings = LogSettings(url, data / "keys", _origin(data / "keys"))
    with closing(settings.open()) as store, counting_bar("folding events") as progress, _interrupted() as interrupted:
        view = ViewRunner(store, REGISTRY_VIEW, fold_registry, keys_read)

        def cancelled() -> bool:
            progress(view.position, store.head.size)
            return interrupted()

        view.rebuild(cancelled)
        return view.position, store.head.size


def _origin(keys: Path) -> str:
    """The log's name. Opening a log makes the keys that are missing: not here."""
    if not (keys / "log.key").is_file():
        raise InvalidInput(f"{keys} has no log.key; name the --data directory of a ledger")
    try:
        return Verifier.parse((keys / "log.vkey").read_text().strip()).name
    except (OSError, NoteError) as error:
        raise InvalidInput(f"{keys / 'log.vkey'}: {error}; start the ledger once, which writes it") from None


@contextmanager
def _interrupted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed meanwhile. What is under way is ended in order."""
    pressed = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
