"""Contracts hold on every database: the fixtures are in tests/databases.py."""

from tests.databases import postgresql, postgresql_stores, sqlite_stores, store_factory

__all__ = ["postgresql", "postgresql_stores", "sqlite_stores", "store_factory"]
