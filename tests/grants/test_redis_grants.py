"""Grants over Redis: one refresh for all hosts, and what happens when Redis is away."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import redis
from flask import Flask

from flask_atm import ATM
from flask_atm.assembly import make_state
from flask_atm.errors import ConfigurationError, LoginRequired, StoreError
from flask_atm.grants.parameters import EngineParameters
from flask_atm.state import STATE_KEY, Hooks, State
from flask_atm.stores import RedisStore
from flask_atm.tokens import TokenParameters
from tests.grants import outages
from tests.grants.api_calls import PROCESSES, one_refresh
from tests.grants.support import SECRET_KEY, Setup, config, grant_from
from tests.grants.tools import World, make_world, refreshes, settings
from tests.servers import OIDCServer, RotatingTokenServer
from tests.servers.redis_server import RedisServer

ID_TOKEN = "id-token-canary-5d8f"


@pytest.fixture(scope="module")
def _redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(_redis_server: RedisServer) -> RedisServer:
    with redis.Redis.from_url(_redis_server.url) as client:
        client.flushall()
    return _redis_server


@pytest.fixture
def server() -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer() as running:
        yield running


# -- A1, A3: a provider that kills a grant for a replay


def expired(oidc: OIDCServer, store: str) -> tuple[Setup, str]:
    """Sign in with a clock of a quarter of an hour ago: by that of Redis the token has expired."""
    client = oidc.add_client("http://localhost/oidc/callback")
    response = oidc.sign_in_directly(client)
    setup = Setup(config=config(oidc, client, store), ahead=-1000)
    grant_id = grant_from(setup.state(), response)
    oidc.reset()
    return replace(setup, ahead=0.0), grant_id


@pytest.mark.parametrize("latency", [0.2, 2.5])
def test_a1_8_processes_with_16_threads_over_redis_make_one_refresh(
    oidc: OIDCServer, redis_server: RedisServer, latency: float
) -> None:
    setup, grant_id = expired(oidc, redis_server.url)
    oidc.latency(token=latency)
    one_refresh(oidc, setup, grant_id)
    # The grant is alive: another renewal works.
    again = setup.state().provider().tokens.get(grant_id, TokenParameters(force_renewal=True))
    assert again.refreshable
    assert len(oidc.token_requests()) == 2


@dataclass(frozen=True, kw_only=True)
class TwoHosts(Setup):
    """Processes whose clocks are 5 minutes apart, by turns."""

    def state(self, **arguments: Any) -> State:
        with redis.Redis.from_url(self.config["ATM_STORE"]) as client:
            number = client.incr("processes")
        setup = Setup(config=self.config, ahead=150.0 if number % 2 else -150.0)
        return setup.state(**arguments)


def test_a3_two_groups_of_processes_whose_clocks_are_5_minutes_apart(
    oidc: OIDCServer, redis_server: RedisServer
) -> None:
    setup, grant_id = expired(oidc, redis_server.url)
    oidc.latency(token=0.2)
    one_refresh(oidc, TwoHosts(config=setup.config), grant_id)
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.get("processes") == b"%d" % PROCESSES


# -- C1, C2, C3, C5: Redis is away, comes back, comes back empty, refuses

#: L = 5.4 s, W = 6.5 s.
QUICK = EngineParameters(
    timeout=0.7,
    send_window=0.4,
    doubt_wait=0.1,
    store_connect=1.0,
    store_operation=1.0,
    slack=0.2,
    backoff=0.1,
    poll_last=0.05,
    keep_interval=0.02,
)


def world_over(
    server: RotatingTokenServer, redis_server: RedisServer, *, ahead: float = 0.0
) -> World:
    return make_world(
        server,
        store=RedisStore(redis_server.url, connect_timeout=1.0, timeout=1.0),
        clock=lambda: time.time() + ahead,
        engine=QUICK,
    )


def expired_over(server: RotatingTokenServer, redis_server: RedisServer) -> tuple[World, str]:
    """A process, and a grant whose token has expired."""
    grant_id = world_over(server, redis_server, ahead=-1000).sign_in(server.issue("alice"))
    return world_over(server, redis_server), grant_id


def test_c1_nothing_is_sent_while_redis_is_away(server: RotatingTokenServer) -> None:
    with RedisServer("--appendfsync", "always", appendonly=True) as own:
        outages.nothing_is_sent_while_it_is_away(
            server, own, lambda ahead: world_over(server, own, ahead=ahead)
        )


def test_c2_redis_is_killed_during_the_request_and_comes_back(server: RotatingTokenServer) -> None:
    with RedisServer("--appendfsync", "always", appendonly=True) as own:
        outages.killed_during_the_request(
            server, own, lambda ahead: world_over(server, own, ahead=ahead)
        )


def test_c3_redis_comes_back_empty(
    server: RotatingTokenServer, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as redis_server:
        world, grant_id = expired_over(server, redis_server)
        redis_server.kill()
        redis_server.start()
        with pytest.raises(LoginRequired):
            world.get(grant_id)
        # It takes new sign-ins at once, with the scripts loaded anew.
        assert world.get(world.sign_in(server.issue("alice"))).value
        assert refreshes(server) == []


def test_c5_begin_fails_before_the_refresh_token_is_spent(
    server: RotatingTokenServer, redis_server: RedisServer
) -> None:
    world, grant_id = expired_over(server, redis_server)
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreError, match="raise maxmemory"):
                world.get(grant_id)
        finally:
            client.config_set("maxmemory", 0)
    assert refreshes(server) == []
    assert world.get(grant_id).value


# -- D10


def test_d10_a_dump_of_redis_shows_nothing(
    server: RotatingTokenServer, redis_server: RedisServer
) -> None:
    world = world_over(server, redis_server)
    response = {**server.issue("alice"), "id_token": ID_TOKEN}
    grant_id = world.sign_in(response, sub="alice-sub", email="alice@example.com", sid="sid-7")
    canaries = {response["access_token"], response["refresh_token"], ID_TOKEN, grant_id}
    world.state.store_id()
    token = world.get(grant_id, force_renewal=True)
    stored = world.stored(grant_id).grant
    assert stored.refresh_token is not None
    canaries |= {token.value, stored.refresh_token.reveal(), grant_id.rpartition(".")[2]}
    first = redis_server.dump()
    world.state.provider().tokens.end(grant_id)
    dumps = [first, redis_server.dump()]
    assert b":index:" in dumps[0]
    assert all(b"flask_atm:grant:" in dump for dump in dumps)
    canaries |= {"alice", "example.com", "sid-7", SECRET_KEY, "secret"}
    for canary in canaries:
        assert not [dump for dump in dumps if canary.encode() in dump], canary


# -- the setting


def test_the_setting_names_it_and_the_prefix(
    server: RotatingTokenServer, redis_server: RedisServer
) -> None:
    app = Flask("test")
    app.config.update(settings(server, redis_server.url, ATM_STORE_PREFIX="shop"))
    ATM(app)
    state: State = app.extensions[STATE_KEY]
    assert isinstance(state.store, RedisStore)
    assert state.store_id() == state.store_id()
    with redis.Redis.from_url(redis_server.url) as client:
        assert all(key.startswith(b"shop:") for key in client.scan_iter())


def test_a_bad_url_is_a_configuration_error_without_its_password(
    server: RotatingTokenServer,
) -> None:
    app = Flask("test")
    app.config.update(settings(server, "redis://:canary-5a@host:port"))
    with pytest.raises(ConfigurationError, match="redis-py") as caught:
        make_state(app, hooks=Hooks())
    assert "canary" not in str(caught.value)
