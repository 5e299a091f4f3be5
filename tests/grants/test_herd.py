"""A19: many grants expire at once, and the server does not see them all at once."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flask_atm.grants.parameters import EngineParameters
from flask_atm.state import State
from flask_atm.testing.clock import FakeClock
from flask_atm.tokens import TokenParameters
from tests.grants.processes import run_everywhere
from tests.grants.support import Setup, grant_from
from tests.grants.tools import make_world, metadata, refreshes, settings
from tests.servers import Reply, RotatingTokenServer
from tests.servers.faulty import Behaviour, Exchange
from tests.servers.redis_server import RedisServer

PROCESSES, THREADS, PLACES = 3, 32, 8
#: The real times, and patience with a disk that many write to.
PATIENT = EngineParameters(store_operation=5.0)


@dataclass
class Gauge:
    """In front of the token endpoint: how many requests are there at once."""

    behind: Behaviour
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, exchange: Exchange) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.behind(exchange)
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture
def server() -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer(latency=0.02) as running:
        running.always(Reply(body={"keys": []}), "/jwks")
        running.always(Reply(body=metadata(running)), "/.well-known/openid-configuration")
        yield running


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'grants.sqlite3'}"
    else:
        with RedisServer() as redis:
            yield redis.url


@dataclass(frozen=True, kw_only=True)
class CallAll:
    """Get the tokens of a share of the grants; each grant is in the shares of two threads."""

    grants: tuple[str, ...]

    def __call__(self, state: State, number: int) -> list[str]:
        crowd = PROCESSES * THREADS
        mine = [*self.grants[number::crowd], *self.grants[(number + THREADS) % crowd :: crowd]]
        tokens = state.provider().tokens
        return [tokens.get(one, TokenParameters()).value for one in mine]


def expire_together(server: RotatingTokenServer, store_url: str, number: int) -> None:
    setup = Setup(config=settings(server, store_url), engine=PATIENT)
    state = setup.state()
    responses = [{**server.issue(f"user {one}"), "expires_in": 1} for one in range(number)]
    grants = tuple(grant_from(state, response) for response in responses)
    last = time.monotonic()
    gauge = Gauge(behind=server._token_endpoint)
    server.always(gauge, "/token")
    threading.Event().wait(max(0.0, last + 1.0 - time.monotonic()))

    results = run_everywhere(setup, CallAll(grants=grants), processes=PROCESSES, threads=THREADS)

    failed = [one for one in results if isinstance(one, str)]
    assert not failed, failed[0]
    # Each grant was renewed once, and both who asked have the same token of it.
    assert sorted(filter(None, refreshes(server))) == sorted(
        response["refresh_token"] for response in responses
    )
    assert server.replays == 0
    assert set(Counter(token for tokens in results for token in tokens).values()) == {2}
    assert PLACES < gauge.most <= PROCESSES * PLACES


def test_a19_1000_grants_expire_at_once_and_each_process_sends_8_at_a_time(
    server: RotatingTokenServer, store_url: str
) -> None:
    expire_together(server, store_url, 1000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a19_10000_grants_expire_at_once_and_each_process_sends_8_at_a_time(
    server: RotatingTokenServer, store_url: str
) -> None:
    expire_together(server, store_url, 10_000)


def test_a19_grants_of_one_moment_are_renewed_over_some_seconds() -> None:
    """Whoever asks all the time: the moments differ by grant, and all processes know them."""
    clock = FakeClock()
    with RotatingTokenServer(clock=clock) as server:
        worlds = [make_world(server, clock=clock, engine=PATIENT)]
        worlds.append(make_world(server, store=worlds[0].store.store, clock=clock, engine=PATIENT))
        grants = [worlds[0].sign_in(server.issue("alice")) for _ in range(120)]
        clock.advance(300 - 60.5)
        renewed = []
        for step in range(14):
            before = len(refreshes(server))
            for grant_id in grants:
                worlds[step % 2].get(grant_id)
            renewed.append(len(refreshes(server)) - before)
            clock.advance(0.5)
    # None before its time, none after 10 % of the leeway, and no crowd in between.
    assert sum(renewed) == len(grants)
    assert renewed[0] == 0
    assert max(renewed) <= len(grants) / 4
    assert sum(count > 0 for count in renewed) >= 10
