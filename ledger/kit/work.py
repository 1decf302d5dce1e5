"""The worker loop: claim a command, do it in a child process, append the outcome.

    follow the log ──► open commands ──► claim (a Started event under the expected version: two workers cannot
    both win) ──► child process (spawned, never forked) ──► its JSON lines ──► events ──► outcome

A `Job` says what is special about a kind of command; this file knows processes. Whatever dies, nothing is lost and
nothing is falsely completed: a child that dies makes a failed command with the reason; a worker or
service that dies leaves a claimed command, which the same worker's next start takes up again.
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
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from eventsourcing.persistence import ApplicationRecorder, IntegrityError

from ledger.errors import ModelLedgerError

log = logging.getLogger("modelledger.work")

MAX_LINE = 1 << 20  # one message of a child
MAX_ATTEMPTS = 3  # starts of one command, the first one included


@dataclass(frozen=True)
class Task:
    """What a child process is started with. spec: the JSON it reads; module: `python -m` what."""

    module: str
    spec: Mapping[str, Any]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a child process ended: exit code (negative: signal), and the last words it wrote to stderr."""

    code: int
    last_words: str

    @property
    def reason(self) -> str:
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
        """The child is gone: append the outcome. Only called when nobody cancelled the command."""

    def refused(self, stream: str, reason: str) -> None:
        """The command cannot even be started: append that."""


class Worker:
    """Runs the commands of one job, one after another, in one thread; another thread follows the log."""

    def __init__(self, job: Job, recorder: ApplicationRecorder, folder: Path) -> None:
        self._job = job
        self._recorder = recorder
        self._name = _worker_name(folder)
        self._open: queue.Queue[str | None] = queue.Queue()
        self._lock = threading.Lock()
        self._ended_outside: set[str] = set()
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
            except IntegrityError:
                log.info("%s was taken or ended by somebody else", stream)
            except ModelLedgerError as error:
                log.error("%s: %s", stream, error.message)
            except Exception:
                # One broken command must not end the worker; its stream stays open for the next start.
                log.exception("%s: the worker could not go on with it", stream)

    def _do(self, stream: str) -> None:
        with self._lock:
            if stream in self._ended_outside:
                return
        try:
            task = self._job.claim(stream, self._name)
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
        try:
            while child.stdout and (line := child.stdout.readline(MAX_LINE)):
                self._job.message(stream, json.loads(line))
        except Exception:
            child.kill()
            raise
        finally:
            code = child.wait()
            with self._lock:
                self._child = None
        return Ended(code, _last_line(words))


def _worker_name(folder: Path) -> str:
    """A worker's lasting identity, so that after a crash it knows which claims were its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "worker-id"
    if not path.exists():
        path.write_text(f"worker-{uuid.uuid4().hex[:12]}")
    return path.read_text().strip()


def _last_line(path: Path) -> str:
    lines = path.read_bytes()[-4_000:].decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""
