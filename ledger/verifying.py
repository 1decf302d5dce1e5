"""Signatures of many events, verified on all cores.

    verify = AllCores()          # in the process that needs the verdicts, used by one thread
    verify(checks)               # one verdict for each, as verify_here(checks)

The cryptography package holds the interpreter's lock while it verifies, so threads gain nothing: the other cores are
helper processes, each of which gets a piece whenever it has done one; this process does pieces meanwhile. A helper
that dies or does not answer is done without and loses nothing: its piece is verified here.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from ledger import envelope
from ledger.kit.companion import answer_questions, frame, frames

Check = tuple[bytes, bytes, bytes]
"""A public key (DER SubjectPublicKeyInfo) that the log holds, a signature, and the message it should be of."""
Verify = Callable[[Sequence[Check]], list[bool]]

WORTH_SHARING = 64  # checks; fewer are done before a helper has woken up
PIECE = 16  # checks
MAX_PIECE = 1 << 20  # bytes, more than PIECE of the largest entries have
PATIENCE = 5.0  # seconds for one piece, which takes a thousandth of that
MOST_HELPERS = 8  # they verify ten times what one process can write
REST = 60.0  # seconds until another helper is started in the place of a lost one

log = logging.getLogger("modelledger.verifying")


def verify_here(checks: Sequence[Check]) -> list[bool]:
    """Whether each signature was made by its key over its message."""
    return [envelope.is_signed(envelope.load_public_key(der), signature, message) for der, signature, message in checks]


class AllCores:
    """Verifies with `helpers` other processes, which are started when they are first worth it."""

    def __init__(self, helpers: int | None = None) -> None:
        self._wanted = min(len(os.sched_getaffinity(0)) - 1, MOST_HELPERS) if helpers is None else helpers
        self.helpers: list[Helper] = []
        self._started_at = -REST  # on the monotonic clock

    def __call__(self, checks: Sequence[Check]) -> list[bool]:
        if len(checks) < WORTH_SHARING or not self._wanted:
            return verify_here(checks)
        self.start()
        return self._share(checks)

    def start(self) -> None:
        """Start the helpers that there are not, unless some were started a moment ago."""
        missing = self._wanted - len(self.helpers)
        if missing and time.monotonic() >= self._started_at + REST:
            self._started_at = time.monotonic()
            try:
                for _ in range(missing):
                    self.helpers.append(Helper())
            except OSError as error:  # this machine has no room for them
                log.error("no process that verifies signatures can be started: %s", error)

    def close(self) -> None:
        for helper in self.helpers:
            helper.close()
        self.helpers = []

    def _share(self, checks: Sequence[Check]) -> list[bool]:
        starts = list(range(0, len(checks), PIECE))
        verdicts: dict[int, list[bool]] = {}
        given: dict[Helper, int] = {}

        def give(helper: Helper) -> None:
            if starts and helper.ready:
                start = starts.pop()
                given[helper] = start
                helper.ask(checks[start : start + PIECE])

        def take(timeout: float) -> None:
            """What helpers have answered, or what they were given back."""
            answered = select.select(list(given), [], [], timeout)[0]
            for helper in answered if answered or not timeout else list(given):
                start = given.pop(helper)
                found = helper.answer() if helper in answered else None
                # A verdict too few would make every later one somebody else's.
                if found is None or len(found) != len(checks[start : start + PIECE]):
                    log.error("a process that verifies signatures is lost; its piece is verified here")
                    self.helpers.remove(helper)
                    helper.close()
                    starts.append(start)
                else:
                    verdicts[start] = found
                    give(helper)

        for helper in list(self.helpers):
            give(helper)
        while starts or given:
            if starts:
                start = starts.pop()
                verdicts[start] = verify_here(checks[start : start + PIECE])
            if given:
                take(0 if starts else PATIENCE)
        return [verdict for start in sorted(verdicts) for verdict in verdicts[start]]


class Helper:
    """One helper process, which has at most one piece."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ledger.verifying", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._started = False
        try:  # so that asking never waits, whatever the helper does
            fcntl.fcntl(self.process.stdin, fcntl.F_SETPIPE_SZ, MAX_PIECE)  # type: ignore[arg-type]  # made with a pipe
        except OSError:  # one user's pipes have a limit, pipe(7)
            self.close()
            raise
        self.ask(None)

    @property
    def ready(self) -> bool:
        """Whether it has started; it says so by answering its first question."""
        if not self._started and select.select([self], [], [], 0)[0]:
            self.answer()
            self._started = True
        return self._started

    def ask(self, question: Sequence[Check] | None) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer will not come, either
            self.process.stdin.write(frame(question))  # type: ignore[union-attr]  # it was made with a pipe

    def answer(self) -> list[bool] | None:
        """Its answer, to be asked for when there is something to read; None when it has none."""
        found = next(frames(self.process.stdout), None)  # type: ignore[arg-type]  # it was made with a pipe
        return found if isinstance(found, list) else None

    def fileno(self) -> int:
        return self.process.stdout.fileno()  # type: ignore[union-attr]  # it was made with a pipe

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    answer_questions(lambda settings: verify_here)
