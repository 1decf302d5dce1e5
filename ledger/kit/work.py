"""The worker loop: claim a command, do it in a child process, append the outcome.

    the group's next command ──► claim (a Started event under the expected version: two workers cannot both win)
    ──► child process (spawned, never forked) ──► its JSON lines ──► events ──► outcome ──► acknowledged

A `Job` says what is special about a kind of command; this file knows processes. Whatever dies, nothing is lost and
nothing is falsely completed: a child that dies makes a failed command with the reason; a worker or service that dies
leaves a command that is leased, which its next start takes up again, or another worker when the lease has ended. Who
appended the newest Started event has the command: what an earlier one still does is refused by the job. When something
goes wrong in the worker itself the command is tried again: while the ledger is away for as long as that takes,
otherwise MAX_TROUBLES times.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from eventsourcing.persistence import IntegrityError

from ledger import strict_json
from ledger.errors import ModelLedgerError, Overloaded, Unreachable, WrongStreamVersion
from ledger.kit.application import LedgerApplication
from ledger.kit.child import signal_name
from ledger.kit.commands import MAX_DELIVERIES, Commands
from ledger.kit.hold import LOST, STOPPED, Hold
from ledger.kit.work_folder import WorkFolder

log = logging.getLogger("modelledger.work")

MAX_LINE = 1 << 20  # one message of a child
MAX_ATTEMPTS = 5  # starts of one command, or of one that is stopped and gets on: since it last got on
MAX_TROUBLES = 3  # deliveries after which an error in the worker itself makes it give a command up
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
            name = signal_name(-self.code)
            return f"the working process was killed by {name}" + (
                " (out of memory?)" if self.code == -signal.SIGKILL else ""
            )
        return f"the working process ended with exit code {self.code}: {self.last_words or 'it said nothing'}"


class Job(Protocol):
    """One kind of command."""

    group: str
    """Name of the consumer group that the workers share."""
    requested: str
    """Kind of the event that asks for it."""
    cancelled: Sequence[str]
    """Kinds of events that end it from outside."""

    def claim(self, stream: str, worker: str) -> Task | None:
        """Append the Started event; None when the command is over. IntegrityError: race lost.

        The group gives a command to one worker at a time: one that another worker began is this one's to go on with.
        """

    def message(self, stream: str, message: dict[str, Any]) -> None:
        """The child said something."""

    def ended(self, stream: str, ended: Ended) -> None:
        """The child is gone: append the outcome. Only called when nobody cancelled the command.

        Whatever this or `message` raises, the command is claimed again later. Both raise WrongStreamVersion when
        another worker has begun the command since `claim`.
        """

    def refused(self, stream: str, reason: str) -> None:
        """The command cannot even be started: append that. Raises WrongStreamVersion as `ended` does."""

    def forget(self, stream: str) -> None:
        """The worker has no more to do with the command, or begins again with it: only the log's word counts now."""


class Worker:
    """Takes the commands of one job, one after another, in one thread."""

    def __init__(self, job: Job, application: LedgerApplication, folder: Path) -> None:
        self._job = job
        self._recorder = application.recorder
        self._folder = WorkFolder(folder)
        self._commands = Commands(application.channel, job.group, job.requested, self._folder.worker)
        self._lock = threading.Lock()
        self._hold: Hold | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name=f"{job.group}-work", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the running child without an outcome, and give its command back to whichever worker is there next."""
        self._commands.stop()
        with self._lock:
            self._stopping = True
            if self._hold:
                self._hold.drop(STOPPED)
        self._thread.join(timeout=10)
        self._folder.release()

    def _work(self) -> None:
        for delivery in self._commands:
            hold = Hold(delivery, self._recorder, self._job.cancelled)
            with self._lock:
                self._hold = hold
                if self._stopping:
                    hold.drop(STOPPED)
            try:
                with hold.kept():
                    self._take(hold)
            except Exception as error:
                # Above all, the ledger is away; the command comes again when its lease has ended.
                log.warning("%s could not be settled: %s", hold.stream, error, exc_info=not isinstance(error, PASSING))
            self._job.forget(hold.stream)

    def _take(self, hold: Hold) -> None:
        """Bring the command to its end, or give it back."""
        delivery, given_up, first = hold.delivery, "", True
        if delivery.attempt >= MAX_DELIVERIES:
            given_up = f"it was taken up {delivery.attempt} times and never came to its end: {delivery.last_reason}"
        while not hold.let_go:
            try:
                if not first and not delivery.extend():
                    return  # it is in other hands
                first = False
                if given_up:
                    self._job.refused(hold.stream, given_up)
                else:
                    self._do(hold)
                break
            except PASSING as error:
                log.warning("%s is taken up again later: %s", hold.stream, error)
                self._job.forget(hold.stream)
                hold.wait(AGAIN_AFTER)
            except Exception as error:
                # One broken command must not end the worker.
                log.exception("%s: the worker could not go on with it", hold.stream)
                if given_up or delivery.attempt < MAX_TROUBLES:
                    delivery.retry(_said(error), delay=AGAIN_AFTER * delivery.attempt)
                    return
                given_up = f"the worker could not go on with it {delivery.attempt} times: {_said(error)}"
        if hold.let_go == STOPPED:
            delivery.give_back("the worker stopped")
        elif hold.let_go != LOST:
            delivery.ack()

    def _do(self, hold: Hold) -> None:
        try:
            task = self._job.claim(hold.stream, self._folder.worker)
        except PASSING:
            raise
        except ModelLedgerError as error:
            self._job.refused(hold.stream, error.message)
            return
        if task is None:
            return
        ended = self._run(hold, task)
        if not hold.let_go:
            self._job.ended(hold.stream, ended)

    def _run(self, hold: Hold, task: Task) -> Ended:
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
        problem = ""
        with hold.doing(child):
            try:
                for message in _messages(child.stdout):
                    self._job.message(hold.stream, message)
            except _BrokenMessage as error:
                problem = str(error)
                child.kill()
            except Exception:
                child.kill()
                raise
            finally:
                code = child.wait()
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
