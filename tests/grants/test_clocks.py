"""K: clocks that differ, and clocks that jump."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flask_atm.errors import ServerUnavailable
from flask_atm.grants.stores import MemoryStore
from flask_atm.protocols import AtomicGrantStore
from flask_atm.testing.clock import FakeClock
from tests.grants.tools import FAST, WAIT, World, make_world, refreshes
from tests.servers import Reply, RotatingTokenServer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server() -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer() as running:
        yield running


def jwt_of(clock: Any, lifetime: float) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({})}.{part({'iat': clock(), 'exp': clock() + lifetime})}.c2ln"


@pytest.mark.parametrize("ahead", [-300, 300])
@pytest.mark.parametrize("told", ["expires_in", "only in a JWT"])
def test_k1_a_server_5_min_apart_changes_nothing(
    server: RotatingTokenServer,
    clock: FakeClock,
    any_store: AtomicGrantStore,
    ahead: float,
    told: str,
) -> None:
    server.clock, server.lifetime = (lambda: clock() + ahead), 100
    if told == "only in a JWT":
        server.decorate = lambda answer: {
            "access_token": jwt_of(server.clock, 100),
            "refresh_token": answer["refresh_token"],
        }
    world = make_world(server, store=any_store, clock=clock)
    grant_id = world.sign_in(server.issue("alice"))
    good = 0
    for _ in range(200):
        clock.advance(2)
        token = world.get(grant_id).value
        good += told != "expires_in" or server.lookup(token) is not None
    # 400 s: one renewal per 80-82 s, and never a token that has expired.
    assert len(refreshes(server)) in (4, 5)
    assert good == 200


@pytest.mark.parametrize("jump", [-3600, 3600, -20, 20])
def test_k2_a_jump_of_the_clock_costs_one_refresh_at_most(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore, jump: float
) -> None:
    world = make_world(server, store=any_store, clock=clock)
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(jump)
    for _ in range(20):
        assert server.lookup(world.get(grant_id).value) is not None
        clock.advance(1)
    # Who knows how old a token from the future is?
    assert len(refreshes(server)) == (0 if jump == 20 else 1)


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_k2_a_pause_ends_with_a_jump_or_with_its_time(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore, jump: float
) -> None:
    world = make_world(server, store=any_store, clock=clock)
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(7200)
    server.add(Reply(429, headers={"Retry-After": "300"}), path="/token")
    for _ in range(2):
        with pytest.raises(ServerUnavailable):
            world.get(grant_id)
    clock.advance(jump)
    assert world.get(grant_id)


def test_k2_a_lease_is_void_after_a_jump_forward_and_its_holder_is_waited_for(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock)
    other = make_world(server, store=world.store.store, clock=clock)
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(1000)
    server.hold()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(world.get, grant_id)
        server.wait_held()
        clock.advance(3600)
        look = other.stops.close("doubt")
        second = pool.submit(other.get, grant_id)
        # Taken over, in doubt, and sent again only if no answer lands meanwhile.
        other.stops.wait("doubt")
        server.release()
        first.result(WAIT)
        look.set()
        assert server.lookup(second.result(WAIT).value) is not None
    # By the clock of now the first answer has expired.
    assert len(refreshes(server)) == 2
    assert server.replays == 0


def test_k2_a_lease_is_void_after_a_jump_back_and_nothing_is_sent_again(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock)
    other = make_world(server, store=world.store.store, clock=clock)
    grant_id = world.sign_in(server.issue("alice"))
    old = world.get(grant_id).value
    clock.advance(260)
    server.hold()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(world.get, grant_id)
        server.wait_held()
        clock.advance(-3600)
        # The token comes from the future now: stale, and the refresh token is in doubt.
        assert other.get(grant_id).value == old
        server.release()
        token = first.result(WAIT).value
    assert token != old
    assert other.get(grant_id).value
    assert len(refreshes(server)) == 2
    assert server.replays == 0


def test_k2_waits_do_not_end_or_grow_with_the_clock(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore
) -> None:
    world = make_world(server, store=any_store, clock=clock)
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(1000)
    server.hold()
    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(_outcome, world, grant_id) for _ in range(3)]
        server.wait_held()
        for jump in (-3600, 7200, -3600):
            clock.advance(jump)
            threading.Event().wait(0.05)
        outcomes = [call.result(WAIT) for call in calls]
    assert set(outcomes) == {ServerUnavailable}
    assert FAST.timeout - 0.2 < time.monotonic() - started < FAST.wait + 1


def _outcome(world: World, grant_id: str) -> type:
    try:
        return type(world.get(grant_id))
    except ServerUnavailable as error:
        return type(error)


def test_k3_hosts_with_clocks_apart_agree_by_the_clock_of_the_store(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    store = MemoryStore(clock=clock)
    hosts = [
        make_world(server, store=store, clock=lambda ahead=ahead: clock() + ahead)
        for ahead in (0.0, 120.0, -120.0)
    ]
    grant_id = hosts[0].sign_in(server.issue("alice"))
    for _ in range(100):
        clock.advance(5)
        found = {host.get(grant_id).value for host in hosts}
        assert len(found) == 1
        left = [host.get(grant_id).expires_in for host in hosts]
        assert max(left) - min(left) < 1
    assert len(refreshes(server)) == 2
