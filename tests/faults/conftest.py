"""Faults happen on every database: the fixtures are in tests/databases.py."""

from tests.databases import postgresql, postgresql_stores, sqlite_stores, store_factory
from tests.faults.strace import strace_works

__all__ = ["postgresql", "postgresql_stores", "sqlite_stores", "store_factory", "strace_works"]
