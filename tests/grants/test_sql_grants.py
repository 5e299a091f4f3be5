# ruff: noqa: S608 -- the names of tables are those of the test
"""Grants over SQL: one refresh for all hosts, and the application's own use of the database."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from flask_atm import ATM
from flask_atm.grants.parameters import EngineParameters
from flask_atm.state import STATE_KEY, State
from flask_atm.stores import SQLStore
from flask_atm.testing import sign_in
from flask_atm.tokens import TokenParameters
from tests.grants import outages
from tests.grants.api_calls import PROCESSES, one_refresh
from tests.grants.support import Setup, config, grant_from
from tests.grants.tools import World, make_world, metadata, refreshes, settings, together
from tests.servers import OIDCServer, Reply, RotatingTokenServer
from tests.servers.postgres_server import PostgresServer

ID_TOKEN = "id-token-canary-5d8f"
_numbers = count()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"p{next(_numbers)}"


@pytest.fixture
def server() -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer() as running:
        yield running


# -- A1, A3: a provider that kills a grant for a replay


def expired(oidc: OIDCServer, url: str, prefix: str) -> tuple[Setup, str]:
    """Sign in with a clock of a quarter of an hour ago: by the database's the token has expired."""
    client = oidc.add_client("http://localhost/oidc/callback")
    response = oidc.sign_in_directly(client)
    configured = config(oidc, client, url, ATM_STORE_PREFIX=prefix)
    setup = Setup(config=configured, ahead=-1000)
    state = setup.state()
    grant_id = grant_from(state, response)
    closed(state)
    oidc.reset()
    return replace(setup, ahead=0.0), grant_id


def closed(state: State) -> None:
    assert isinstance(state.store, SQLStore)
    state.store.close()


@pytest.mark.parametrize("latency", [0.2, 2.5])
def test_a1_8_processes_with_16_threads_over_postgresql_make_one_refresh(
    oidc: OIDCServer, postgres: PostgresServer, prefix: str, latency: float
) -> None:
    setup, grant_id = expired(oidc, postgres.url(), prefix)
    oidc.latency(token=latency)
    one_refresh(oidc, setup, grant_id)
    # The grant is alive: another renewal works.
    state = setup.state()
    again = state.provider().tokens.get(grant_id, TokenParameters(force_renewal=True))
    assert again.refreshable
    assert len(oidc.token_requests()) == 2
    closed(state)


class TwoHosts(Setup):
    """Processes whose clocks are 5 minutes apart, by turns."""

    def state(self, **arguments: Any) -> State:
        import psycopg

        url = self.config["ATM_STORE"].replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute("SELECT nextval('processes')").fetchone()
        assert row is not None
        ahead = 150.0 if row[0] % 2 else -150.0
        return Setup(config=self.config, ahead=ahead).state(**arguments)


def test_a3_two_groups_of_processes_whose_clocks_are_5_minutes_apart(
    oidc: OIDCServer, postgres: PostgresServer, prefix: str
) -> None:
    postgres.execute("CREATE SEQUENCE processes")
    setup, grant_id = expired(oidc, postgres.url(), prefix)
    oidc.latency(token=0.2)
    one_refresh(oidc, TwoHosts(config=setup.config), grant_id)
    assert postgres.execute("SELECT last_value FROM processes") == [(PROCESSES,)]


def test_k3_hosts_with_clocks_apart_agree_by_the_clock_of_the_database(
    server: RotatingTokenServer, world_of: Callable[..., World], postgres: PostgresServer
) -> None:
    server.lifetime = 90  # less than the clocks are apart
    late, early = world_of(postgres, ahead=-120), world_of(postgres, ahead=120)
    signed_in_here = world_of(postgres)
    grant_id = signed_in_here.sign_in(server.issue("alice"))
    token = signed_in_here.get(grant_id).value
    assert [world.get(grant_id).value for world in (late, early)] == [token, token]
    assert refreshes(server) == []
    renewed = late.get(grant_id, force_renewal=True).value
    assert renewed != token
    assert early.get(grant_id).value == renewed
    assert len(refreshes(server)) == 1
    moments = {
        world.stored(grant_id).grant.slots[slot].expires_at
        for world in (late, early)
        for slot in world.stored(grant_id).grant.slots
    }
    assert len(moments) == 1


# -- C1, C2, C8: the database is away, comes back, throws everybody out

#: L = 7.8 s, W = 8.9 s.
QUICK = EngineParameters(
    timeout=0.7,
    send_window=0.8,
    doubt_wait=0.1,
    store_connect=1.0,
    store_operation=2.0,
    slack=0.2,
    backoff=0.1,
    poll_last=0.05,
    keep_interval=0.02,
)


@pytest.fixture
def world_of(server: RotatingTokenServer, prefix: str) -> Iterator[Callable[..., World]]:
    stores = []

    def make(postgres: PostgresServer, *, ahead: float = 0.0) -> World:
        store = SQLStore(postgres.url(), table=prefix, connect_timeout=1.0, timeout=2.0)
        stores.append(store)
        return make_world(server, store=store, clock=lambda: time.time() + ahead, engine=QUICK)

    yield make
    for store in stores:
        store.close()


def test_c1_nothing_is_sent_while_the_database_is_away(
    server: RotatingTokenServer, world_of: Callable[..., World]
) -> None:
    with PostgresServer() as own:
        outages.nothing_is_sent_while_it_is_away(
            server, own, lambda ahead: world_of(own, ahead=ahead)
        )


def test_c2_the_database_is_killed_during_the_request_and_comes_back(
    server: RotatingTokenServer, world_of: Callable[..., World]
) -> None:
    with PostgresServer() as own:
        outages.killed_during_the_request(server, own, lambda ahead: world_of(own, ahead=ahead))


def test_c8_connections_that_are_terminated_during_a_refresh_change_nothing(
    server: RotatingTokenServer, world_of: Callable[..., World], postgres: PostgresServer
) -> None:
    grant_id = world_of(postgres, ahead=-1000).sign_in(server.issue("alice"))
    world = world_of(postgres)
    for point in ("begin", "begun", "answered", "commit"):
        world.stops.then(point, postgres.terminate_connections)
    tokens = together(8, lambda number: world.get(grant_id).value)
    assert len(set(tokens)) == 1
    assert len(refreshes(server)) == 1
    assert world.get(grant_id, force_renewal=True).value not in tokens
    assert len(refreshes(server)) == 2


# -- C9, C10: the application's own connections and transactions


@pytest.fixture
def browser(
    server: RotatingTokenServer, postgres: PostgresServer, prefix: str
) -> Iterator[FlaskClient]:
    """An application with one connection to its database, and somebody who is signed in there."""
    engine = create_engine(postgres.url(), pool_size=1, max_overflow=0, pool_timeout=0.1)
    postgres.execute(f"CREATE TABLE {prefix}_orders (number int)")
    server.always(Reply(body=metadata(server)), "/.well-known/openid-configuration")
    app = Flask(__name__)
    app.config.update(settings(server, postgres.url(), ATM_STORE_PREFIX=prefix))
    atm = ATM(app)

    @app.get("/order")
    def order() -> str:
        with engine.connect() as connection:
            connection.execute(text(f"INSERT INTO {prefix}_orders VALUES (1)"))
            token = atm.get_user_token(force_renewal=True).value
            with pytest.raises(PoolTimeout):
                engine.connect()  # this was the last one
            connection.rollback()
        return token

    client = app.test_client()
    sign_in(client, refresh_token=server.issue("alice")["refresh_token"])
    yield client
    closed(app.extensions[STATE_KEY])
    engine.dispose()


def test_c9_c10_a_view_that_holds_the_last_connection_and_rolls_back(
    browser: FlaskClient, postgres: PostgresServer, prefix: str
) -> None:
    before = postgres.execute(f"SELECT max(version) FROM {prefix}_grants")
    answers = [browser.get("/order") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].text != answers[1].text
    assert postgres.execute(f"SELECT count(*) FROM {prefix}_orders") == [(0,)]
    ((after,),) = postgres.execute(f"SELECT max(version) FROM {prefix}_grants")
    assert after == before[0][0] + 2


# -- D10


def test_d10_a_dump_of_the_database_shows_nothing(
    server: RotatingTokenServer,
    world_of: Callable[..., World],
    postgres: PostgresServer,
) -> None:
    world = world_of(postgres)
    response = {**server.issue("alice"), "id_token": ID_TOKEN}
    grant_id = world.sign_in(response, sub="alice-sub", email="alice@example.com", sid="sid-7")
    canaries = {response["access_token"], response["refresh_token"], ID_TOKEN, grant_id}
    world.state.store_id()
    renewed = world.get(grant_id, force_renewal=True)
    canaries |= {renewed.value, grant_id.partition(".")[2]}
    ended = world.sign_in(server.issue("bob"), sub="bob-sub", sid="sid-8")
    world.state.provider().tokens.end(ended)
    dump = postgres.dump()
    assert b"flask_atm" not in dump.replace(b"flask_atm_grants", b"")
    for canary in (*canaries, ended, "alice", "bob-sub", "example.com", "sid-7", "sid-8"):
        assert canary.encode() not in dump, canary


def test_j1_sqlalchemy_shows_no_secret_whatever_it_logs(
    server: RotatingTokenServer,
    world_of: Callable[..., World],
    postgres: PostgresServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As with ``echo="debug"``, which shows every statement and every row."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy").setLevel(logging.DEBUG)
    try:
        world = world_of(postgres)
        response = {**server.issue("alice"), "id_token": ID_TOKEN}
        grant_id = world.sign_in(response, sub="alice-sub", email="alice@example.com", sid="sid-7")
        renewed = world.get(grant_id, force_renewal=True).value
        world.state.provider().tokens.end(grant_id)
        world.state.provider().tokens.outbox.drain()
    finally:
        logging.getLogger("sqlalchemy").setLevel(logging.NOTSET)
    assert all(word in caplog.text for word in ("INSERT INTO", "UPDATE", "DELETE FROM", "Row ("))
    canaries = {response["access_token"], response["refresh_token"], renewed, ID_TOKEN, grant_id}
    canaries |= {grant_id.partition(".")[2], "alice-sub", "example.com", "sid-7"}
    for canary in canaries:
        assert canary not in caplog.text, canary
