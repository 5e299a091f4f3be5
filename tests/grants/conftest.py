"""The stores that every machine of the tests has: what the engine promises holds on each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from flask_atm.grants.stores import MemoryStore, SQLiteStore
from flask_atm.protocols import AtomicGrantStore
from flask_atm.testing.clock import FakeClock
from tests.grants.redis_tools import clocked
from tests.servers.redis_server import RedisServer


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def empty_redis(_shared_redis: RedisServer) -> RedisServer:
    with redis.Redis.from_url(_shared_redis.url) as client:
        client.flushall()
    return _shared_redis


@pytest.fixture(params=["memory", "sqlite", "redis"])
def any_store(
    request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path
) -> Iterator[AtomicGrantStore]:
    """An empty store by the clock of the test module."""
    if request.param == "memory":
        yield MemoryStore(clock=clock)
    elif request.param == "sqlite":
        yield SQLiteStore(tmp_path / "any.sqlite3", clock=clock)
    else:
        store = clocked(request.getfixturevalue("empty_redis").url, clock)
        yield store
        store.close()
