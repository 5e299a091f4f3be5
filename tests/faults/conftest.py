"""A server with a grace period, one without, and the means to sign in there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.faults.driver import Fleet
from tests.faults.engines import PARAMETERS, FlaskATM
from tests.grants.support import Setup
from tests.grants.tools import metadata, settings
from tests.servers import Reply, RotatingTokenServer
from tests.servers.postgres_server import PostgresServer
from tests.servers.redis_server import RedisServer

__all__ = ["Place"]

LIFETIME = 300.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """A server, and engines that share a store.

    :param folder: where files may be.
    :param store: its URL.
    """

    server: RotatingTokenServer
    folder: Path
    store: str

    def engine(self, left: float = -100.0) -> FlaskATM:
        """Give an engine for which the tokens of a sign-in have so many seconds left."""
        setup = Setup(
            config=settings(self.server, self.store),
            ahead=LIFETIME - left,
            engine=PARAMETERS,
        )
        return FlaskATM(setup=setup)

    def sign_in(self) -> str:
        return self.engine().sign_in(self.server.issue("alice"))

    def sent(self) -> list[str]:
        """Give the refresh tokens that were sent, in order."""
        return [one.parameter("refresh_token") or "" for one in self.server.token_requests]


@pytest.fixture(scope="session")
def _redis() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresServer]:
    with PostgresServer("-c", "max_connections=300") as running:
        yield running


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An SQLite file; whoever parametrizes this indirectly gets another store."""
    kind = getattr(request, "param", "sqlite")
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'grants.sqlite3'}"
    if kind == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("_postgres")
        postgres.execute("DROP TABLE IF EXISTS flask_atm_grants, flask_atm_grants_index")
        return postgres.url()
    server: RedisServer = request.getfixturevalue("_redis")
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


@pytest.fixture
def place(tmp_path: Path, store_url: str) -> Iterator[Place]:
    with RotatingTokenServer(lifetime=LIFETIME) as server:
        server.always(Reply(body={"keys": []}), "/jwks")
        server.always(Reply(body=metadata(server)), "/.well-known/openid-configuration")
        yield Place(server=server, folder=tmp_path, store=store_url)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as running:
        yield running
