"""Faults happen on every database: the fixtures are in tests/databases.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import postgresql, postgresql_stores, sqlite_stores, store_factory
from tests.faults.ledger_process import Ledger, ledger_process
from tests.faults.strace import strace_works

__all__ = ["postgresql", "postgresql_stores", "sqlite_stores", "store_factory", "strace_works"]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A process that is this test's alone."""
    with ledger_process(tmp_path) as running:
        yield running
