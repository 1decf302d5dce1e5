"""System calls of running processes that fail, kill or are written down, by strace(1).

with strace(process, inject=["fdatasync:error=EIO:when=2"], paths=[wal]):   # while it lasts
    ...
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

WRITING = "pwrite64,pwritev,write,fdatasync,fsync,ftruncate,unlink,rename"
# 12 pwrite64(3<\x2f\x61>, "\x00\x01", 2, 56) = 2
_CALL = re.compile(
    r'\d+ +(\w+)\((?:\d+<([^>"]*)>(?:\(deleted\))?|"([^"]*)")(?:, "([^"]*)")?([^"]*)\) += (\?|-?\d+)( .*)?'
)


@pytest.fixture(scope="session")
def strace_works() -> None:
    """Skips where no process may trace another, or strace is not installed."""
    try:
        tried = subprocess.run(["strace", "--output=/dev/null", "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if tried.returncode:
        pytest.skip(f"strace does not work here: {tried.stderr.strip()}")


@dataclass(frozen=True)
class Call:
    """One system call on a file. offset: of what was written, or the new length; result: negative when it failed."""

    name: str
    path: str
    content: bytes
    offset: int
    result: int


def failing(fault: str, paths: Sequence[Path], command: Sequence[str]) -> list[str]:
    """A command with a fault in it, from its start on, in calls on these files."""
    name = fault.partition(":")[0]
    tracer = ["strace", "--follow-forks", "--seccomp-bpf", "--output=/dev/null", f"--trace={name}", f"--inject={fault}"]
    # The command ends with its tracer.
    return [*tracer, *(f"--trace-path={path}" for path in paths), "setpriv", "--pdeathsig=KILL", *command]


@contextmanager
def strace(
    process: int, *, inject: Sequence[str] = (), paths: Sequence[Path] = (), record: Path | None = None
) -> Iterator[None]:
    """Trace a process, its threads, and the children that it starts. `paths`: only calls on these files; `record`: a
    file for what was done. Every thread counts the calls to be injected for itself."""
    traced = ",".join((WRITING, *(fault.partition(":")[0] for fault in inject)))
    command = ["strace", "--attach", str(process), "--follow-forks", f"--trace={traced}", "--decode-fds=path"]
    command += [f"--inject={fault}" for fault in inject]
    command += [f"--trace-path={path}" for path in paths]
    command += ["--strings-in-hex=all", "--string-limit=4194304", f"--output={record or '/dev/null'}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        while "attached" not in said:
            assert said, "strace ended"
            said = tracer.stderr.readline()
        try:
            yield
        finally:
            tracer.terminate()  # it lets go of the process, which goes on


def calls(record: Path) -> Iterator[Call]:
    """What a record says, in order. A call during which the process was killed has not happened."""
    for line in record.read_text().splitlines():
        found = _CALL.fullmatch(line)
        if found is None:
            assert "+++" in line or "---" in line or "= ?" in line, f"not foreseen: {line[:200]}"
        elif found[6] != "?":
            name, path, named, content, numbers, result, _ = found.groups(default="")
            last = re.findall(r"\d+", numbers)[-1:] or ["0"]
            yield Call(name, _bytes(path or named).decode(), _bytes(content), int(last[0]), int(result))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
