"""Contracts hold on every database: most fixtures are in tests/databases.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ledger.store import Store
from tests.databases import StoreFactory, postgresql, postgresql_stores, sqlite_stores, store_factory
from tests.groups import World
from tests.logs import Log

__all__ = ["postgresql", "postgresql_stores", "sqlite_stores", "store_factory"]


@pytest.fixture
def store(store_factory: StoreFactory) -> Store:
    return store_factory()


@pytest.fixture
def log(store: Store) -> Log:
    return Log(store)


@pytest.fixture
def world(store_factory: StoreFactory) -> Iterator[World]:
    world = World(store_factory, store_factory())
    yield world
    world.close()
