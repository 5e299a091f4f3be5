"""The stores that every machine of the tests has: what the engine promises holds on each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from flask_atm.grants.stores import MemoryStore, SQLiteStore
from flask_atm.protocols import AtomicGrantStore
from flask_atm.testing.clock import FakeClock
from tests.grants.redis_tools import clocked
from tests.grants.sql_tools import clocked_sql
from tests.servers.postgres_server import PostgresServer
from tests.servers.redis_server import RedisServer


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="session")
def _shared_postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


@pytest.fixture
def empty_postgres(_shared_postgres: PostgresServer) -> PostgresServer:
    _shared_postgres.execute("DROP TABLE IF EXISTS flask_atm_grants, flask_atm_grants_index")
    return _shared_postgres


@pytest.fixture
def empty_redis(_shared_redis: RedisServer) -> RedisServer:
    with redis.Redis.from_url(_shared_redis.url) as client:
        client.flushall()
    return _shared_redis


@pytest.fixture(params=["memory", "sqlite", "redis", "postgresql"])
def any_store(
    request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path
) -> Iterator[AtomicGrantStore]:
    """An empty store by the clock of the test module."""
    if request.param == "memory":
        yield MemoryStore(clock=clock)
    elif request.param == "sqlite":
        yield SQLiteStore(tmp_path / "any.sqlite3", clock=clock)
    elif request.param == "redis":
        store = clocked(request.getfixturevalue("empty_redis").url, clock)
        yield store
        store.close()
    else:
        rows = clocked_sql(request.getfixturevalue("empty_postgres").url(), clock)
        yield rows
        rows.close()
