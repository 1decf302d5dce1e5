"""Real databases for tests: SQLite files, and a throw-away PostgreSQL cluster of our own.

The fixtures at the end are imported by the conftest.py of every folder whose tests need a store.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.note import LogSigner
from ledger.store import Store

ORIGIN = "test.log"
SEED = bytes(range(32))


def log_signer(seed: bytes = SEED) -> LogSigner:
    return LogSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(seed))


class Cluster:
    """A PostgreSQL server on a Unix socket, with fsync on; `new_url` makes a fresh database, `newest` is its name."""

    def __init__(self, run: list[str], tools: Path, folder: Path, log: IO[bytes]) -> None:
        options = ("-k", folder, "-c", "listen_addresses=", "-c", "shared_buffers=16MB")
        self._command = [*run, tools / "postgres", "-D", folder / "data", *options]
        self._is_ready = [tools / "pg_isready", "-q", "-h", folder]
        self._socket = folder
        self._log = log
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Start the server; after a crash it brings its data in order first."""
        self._server = subprocess.Popen(self._command, stdout=self._log, stderr=self._log, cwd=self._socket)
        deadline = time.monotonic() + 30
        while subprocess.run(self._is_ready, check=False).returncode:
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError("the server ended or did not answer within 30 seconds")
            time.sleep(0.05)

    def crash(self) -> None:
        """Stop it at once: no transaction is ended, nothing is flushed."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(30)

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """As the superuser; every statement is a transaction."""
        return psycopg.connect(f"host={self._socket} user=postgres dbname={database}", autocommit=True)

    def new_url(self) -> str:
        self.newest = f"log{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {self.newest}")
        return self.url(self.newest)

    def url(self, database: str, role: str = "postgres") -> str:
        return f"postgresql+psycopg://{role}@/{database}?host={self._socket}"


@contextmanager
def postgresql_cluster() -> Iterator[Cluster]:
    """Start a cluster, and stop it at the end (also when this process is killed)."""
    if shutil.which("pg_config") is None:
        raise RuntimeError("these tests need PostgreSQL 15 or newer: no pg_config on PATH (apt-get install postgresql)")
    tools = Path(subprocess.check_output(["pg_config", "--bindir"], text=True).strip())
    if not (tools / "initdb").exists():
        raise RuntimeError(f"these tests need the PostgreSQL server: no initdb in {tools} (apt-get install postgresql)")
    run = ["setpriv", "--pdeathsig", "QUIT"]
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 bytes
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        run += ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
    # A locale that does not sort by bytes: the order of keys must not depend on the server's.
    locale = ["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US", "--encoding=UTF8"]
    initialise = [*run, tools / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync", *locale]
    log = (folder / "server.log").open("wb")
    try:
        subprocess.run(initialise, check=True, stdout=log, stderr=log, cwd=folder)
        cluster = Cluster(run, tools, folder, log)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.crash()  # nothing of it is kept
    except (subprocess.CalledProcessError, TimeoutError) as error:
        raise RuntimeError(f"PostgreSQL did not start: {error}\n{(folder / 'server.log').read_text()}") from error
    finally:
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


class StoreFactory:
    """`factory()` opens a store on a new database, `factory.reopen(store)` another one on the same."""

    def __init__(self, kind: str, new_url: Callable[[], str]) -> None:
        self.kind = kind
        self._new_url = new_url
        self._urls: dict[Store, str] = {}

    def __call__(self, **options: Any) -> Store:
        return self.open(self._new_url(), **options)

    def open(self, url: str, *, signer: LogSigner | None = None, **options: Any) -> Store:
        store = Store(url, signer or log_signer(), **options)
        self._urls[store] = url
        return store

    def reopen(self, store: Store, **options: Any) -> Store:
        return self.open(self._urls[store], **options)

    def url_of(self, store: Store) -> str:
        return self._urls[store]

    def file_of(self, store: Store) -> Path:
        return Path(self._urls[store].removeprefix("sqlite:///"))

    def close(self) -> None:
        for store in self._urls:
            store.close()


def sqlite_factory(folder: Path) -> StoreFactory:
    numbers = itertools.count(1)
    return StoreFactory("sqlite", lambda: f"sqlite:///{folder}/log{next(numbers)}.db")


shared = ExitStack()  # closed by tests/conftest.py


@functools.cache
def shared_cluster() -> Cluster:
    """One cluster for the whole test run, whichever folder asks first."""
    return shared.enter_context(postgresql_cluster())


@pytest.fixture(scope="session")
def postgresql() -> Cluster:
    return shared_cluster()


@pytest.fixture
def sqlite_stores(tmp_path: Path) -> Iterator[StoreFactory]:
    """Stores on new SQLite files."""
    factory = sqlite_factory(tmp_path)
    yield factory
    factory.close()


@pytest.fixture
def postgresql_stores(postgresql: Cluster) -> Iterator[StoreFactory]:
    """Stores on new PostgreSQL databases."""
    factory = StoreFactory("postgresql", postgresql.new_url)
    yield factory
    factory.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_factory(request: pytest.FixtureRequest) -> StoreFactory:
    """Stores on new databases; every test that uses it runs once per database."""
    return request.getfixturevalue(f"{request.param}_stores")
