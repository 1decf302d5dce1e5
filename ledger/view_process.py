"""The registry view follows the log in a process of its own, beside the event loop and the writer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ledger.errors import Damaged
from ledger.kit.answering import answer_questions
from ledger.kit.companion import Companion
from ledger.registry_view import REGISTRY_VIEW, fold_registry, keys_read
from ledger.views import ViewRunner
from ledger.writer import LogSettings


class ViewProcess:
    """The service's end."""

    def __init__(self, settings: LogSettings) -> None:
        self._process = Companion("ledger.view_process", settings)
        self._position = 0  # as far as is known here

    async def start(self) -> None:
        await self._process.start()

    async def reach(self, position: int) -> None:
        """Wait until the view has folded the first `position` events. Raises Damaged, Unreachable."""
        if position > self._position:
            await self._process.ask(position)
            self._position = max(self._position, position)

    async def close(self) -> None:
        await self._process.close()


class _Following:
    """The process's end: answers when a position is reached. That the view is damaged is an answer, too."""

    def __init__(self, settings: LogSettings) -> None:
        store = settings.open()
        self._reach: Callable[[int], None]
        try:
            runner = ViewRunner(store, REGISTRY_VIEW, fold_registry, keys_read)
        except Damaged as error:  # the log is sound, and goes on
            self._reach = partial(_refuse, error)
        else:
            runner.start()
            self._reach = runner.wait_for

    def __call__(self, position: int) -> Callable[[], None]:
        return partial(self._reach, position)


def _refuse(error: Damaged, position: int) -> None:
    raise error


if __name__ == "__main__":
    answer_questions(_Following)
