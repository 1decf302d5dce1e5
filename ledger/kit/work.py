"""The worker loop: claim a command, do it in a child process, append the outcome.

    follow the log ──► open commands ──► claim (a Started event under the expected version: two workers cannot
    both win) ──► child process (spawned, never forked) ──► its JSON lines ──► events ──► outcome

A `Job` says what is special about a kind of command; this file knows processes. Whatever dies, nothing is lost and
nothing is falsely completed: a child that dies makes a failed command with the reason; a worker or
service that dies leaves a claimed command, which the same worker's next start takes up again. So does the worker itself
when something goes wrong in it: while the ledger is away for as long as that takes, otherwise MAX_TROUBLES times.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from eventsourcing.persistence import ApplicationRecorder, IntegrityError

from ledger import strict_json
from ledger.errors import ModelLedgerError, Overloaded, Unreachable, WrongStreamVersion
from ledger.kit.work_folder import WorkFolder

log = logging.getLogger("modelledger.work")

MAX_LINE = 1 << 20  # one message of a child
MAX_ATTEMPTS = 5  # starts of one command, or of one that is stopped and gets on: since it last got on
MAX_TROUBLES = 3  # errors in the worker itself before it gives a command up
MAX_REASON = 1_000  # characters
AGAIN_AFTER = 2.0  # seconds

# These say nothing about the command: the ledger is away, or somebody else was faster.
PASSING = (Unreachable, Overloaded, WrongStreamVersion, IntegrityError)


@dataclass(frozen=True)
class Task:
    """What a child process is started with. spec: the JSON it reads; module: `python -m` what."""

    module: str
    spec: Mapping[str, Any]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a child process ended: exit code (negative: signal), the last words it wrote to stderr, and what was wrong
    with its messages, if anything."""

    code: int
    last_words: str
    problem: str = ""

    @property
    def well(self) -> bool:
        return self.code == 0 and not self.problem

    @property
    def reason(self) -> str:
        if self.problem:
            return self.problem
        if self.code < 0:
            name = signal.Signals(-self.code).name
            return f"the working process was killed by {name}" + (
                " (out of memory?)" if self.code == -signal.SIGKILL else ""
            )
        return f"the working process ended with exit code {self.code}: {self.last_words or 'it said nothing'}"


class Job(Protocol):
    """One kind of command."""

    requested: str
    """Kind of the event that asks for it."""
    cancelled: Sequence[str]
    """Kinds of events that end it from outside."""

    def claim(self, stream: str, worker: str) -> Task | None:
        """Append the Started event; None when the command is over or another worker's. IntegrityError: race lost."""

    def message(self, stream: str, message: dict[str, Any]) -> None:
        """The child said something."""

    def ended(self, stream: str, ended: Ended) -> None:
        """The child is gone: append the outcome. Only called when nobody cancelled the command.

        Whatever this or `message` raises, the command is claimed again later.
        """

    def refused(self, stream: str, reason: str) -> None:
        """The command cannot even be started: append that."""


class Worker:
    """Runs the commands of one job, one after another, in one thread; another thread follows the log."""

    def __init__(self, job: Job, recorder: ApplicationRecorder, folder: Path) -> None:
        self._job = job
        self._recorder = recorder
        self._folder = WorkFolder(folder)
        self._open: queue.Queue[str | None] = queue.Queue()
        self._lock = threading.Lock()
        self._ended_outside: set[str] = set()
        self._troubles: dict[str, list[str]] = defaultdict(list)
        self._child: tuple[str, subprocess.Popen[bytes]] | None = None
        self._stopping = False
        self._subscription = recorder.subscribe(topics=[job.requested, *job.cancelled])
        self._threads = [
            threading.Thread(target=self._follow, name=f"{job.requested}-follow", daemon=True),
            threading.Thread(target=self._work, name=f"{job.requested}-work", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the running child without an outcome; the next start of this worker takes its command up again."""
        self._stopping = True
        self._subscription.stop()
        self._open.put(None)
        with self._lock:
            if self._child:
                self._child[1].kill()
        for thread in self._threads:
            thread.join(timeout=10)
        self._folder.release()

    def _follow(self) -> None:
        for notification in self._subscription:
            stream = str(notification.originator_id)
            if notification.topic == self._job.requested:
                self._open.put(stream)
                continue
            with self._lock:
                self._ended_outside.add(stream)
                if self._child and self._child[0] == stream:
                    self._child[1].kill()

    def _work(self) -> None:
        while (stream := self._open.get()) is not None and not self._stopping:
            try:
                self._do(stream)
            except PASSING as error:
                log.warning("%s is taken up again later: %s", stream, error)
                self._later(stream)
            except Exception as error:
                # One broken command must not end the worker.
                log.exception("%s: the worker could not go on with it", stream)
                self._troubles[stream].append(_said(error))
                if len(self._troubles[stream]) <= MAX_TROUBLES:
                    self._later(stream)
            else:
                self._troubles.pop(stream, None)

    def _later(self, stream: str) -> None:
        again = threading.Timer(AGAIN_AFTER, self._open.put, [stream])
        again.daemon = True
        again.start()

    def _do(self, stream: str) -> None:
        with self._lock:
            if stream in self._ended_outside:
                return
        if len(troubles := self._troubles[stream]) >= MAX_TROUBLES:
            self._job.refused(stream, f"the worker could not go on with it {len(troubles)} times: {troubles[-1]}")
            return
        try:
            task = self._job.claim(stream, self._folder.worker)
        except PASSING:
            raise
        except ModelLedgerError as error:
            self._job.refused(stream, error.message)
            return
        if task is None:
            return
        ended = self._run(stream, task)
        with self._lock:
            over = self._stopping or stream in self._ended_outside
        if not over:
            self._job.ended(stream, ended)

    def _run(self, stream: str, task: Task) -> Ended:
        task.folder.mkdir(parents=True, exist_ok=True)
        spec = task.folder / "spec.json"
        spec.write_text(json.dumps(task.spec, indent=1, sort_keys=True))
        words = task.folder / "stderr.log"
        with words.open("ab") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", task.module, str(spec)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **task.environment},
            )
        with self._lock:
            self._child = (stream, child)
            if self._stopping or stream in self._ended_outside:
                child.kill()
        problem = ""
        try:
            for message in _messages(child.stdout):
                self._job.message(stream, message)
        except _BrokenMessage as error:
            problem = str(error)
            child.kill()
        except Exception:
            child.kill()
            raise
        finally:
            code = child.wait()
            with self._lock:
                self._child = None
        return Ended(code, _last_line(words), problem)


class _BrokenMessage(Exception):
    """What the child sent is no message."""


def _messages(lines: IO[bytes] | None) -> Iterator[dict[str, Any]]:
    """One JSON object a line. Raises _BrokenMessage."""
    while lines and (line := lines.readline(MAX_LINE)):
        if not line.endswith(b"\n"):
            if len(line) < MAX_LINE:
                return  # the child died in the middle of it; how it ended is the reason
            raise _BrokenMessage(f"the working process sent a message of more than {MAX_LINE} bytes")
        try:
            message = strict_json.loads(line)
        except ValueError as error:
            raise _BrokenMessage(f"the working process sent a message that cannot be read: {error}") from None
        if not isinstance(message, dict) or "type" not in message:
            raise _BrokenMessage("the working process sent something that is no message")
        yield message


def _said(error: Exception) -> str:
    """An error for the record. The text of one that nobody foresaw stays in this process's log."""
    if isinstance(error, ModelLedgerError):
        return error.message[:MAX_REASON]
    return f"an unexpected {type(error).__name__}; the service's log has the details"


def _last_line(path: Path) -> str:
    lines = path.read_bytes()[-4_000:].decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""
