"""L: the application's own tokens."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from flask_atm.errors import (
    InvalidTokenResponse,
    LoginRequired,
    ServerUnavailable,
    StoreError,
    TokenEndpointError,
)
from flask_atm.grants.client_tokens import ClientTokens
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.stores import MemoryStore
from flask_atm.state import State
from flask_atm.testing.clock import FakeClock
from flask_atm.tokens import AccessToken, TokenParameters
from tests.grants.processes import run_everywhere
from tests.grants.support import Setup
from tests.grants.tools import FAST, World, make_world, settings, together
from tests.servers import Cut, Reply, RotatingTokenServer

EXPIRED = 1000.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server() -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer() as running:
        yield running


@pytest.fixture
def world(server: RotatingTokenServer, clock: FakeClock) -> World:
    return make_world(server, clock=clock)


def client(world: World) -> ClientTokens:
    return world.state.provider().client_tokens


def get(world: World, rejected: str | None = None, **parameters: Any) -> AccessToken:
    return client(world).get(TokenParameters.of(**parameters), rejected=rejected)


def count(server: RotatingTokenServer) -> int:
    return len(server.token_requests)


def test_l1_32_threads_with_a_cold_cache_make_one_request(
    world: World, server: RotatingTokenServer
) -> None:
    server.latency = 0.2
    found = together(32, lambda _: get(world, scope="read").value)
    assert len(set(found)) == 1
    assert count(server) == 1
    info = server.lookup(found[0])
    assert info is not None
    assert (info.subject, info.scope) == ("app", "read")


@dataclass(frozen=True, kw_only=True)
class GetClientToken:
    def __call__(self, state: State, number: int) -> str:
        return state.provider().client_tokens.get(TokenParameters.of(scope="read")).value


def test_l1_4_processes_with_8_threads_and_a_cold_cache_make_one_request(
    server: RotatingTokenServer, tmp_path: Path
) -> None:
    server.latency = 0.2
    store = f"sqlite:///{tmp_path / 'grants.sqlite3'}"
    make_world(server)  # its metadata
    setup = Setup(config=settings(server, store=store))
    found = run_everywhere(setup, GetClientToken(), processes=4, threads=8)
    assert len(found) == 32
    assert len(set(found)) == 1
    assert server.lookup(found[0]) is not None
    assert count(server) == 1


def test_a_token_is_used_from_memory_and_shared_by_the_store(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    token = get(world)
    reads = world.store.count("read")
    for _ in range(10):
        assert get(world).value == token.value
    assert world.store.count("read") == reads
    other = make_world(server, store=world.store.store, clock=clock)
    assert get(other).value == token.value
    clock.advance(61)
    assert get(world).value == token.value
    assert world.store.count("read") > reads
    assert count(server) == 1
    clock.advance(EXPIRED)
    new = get(world)
    assert new.value != token.value
    assert new.expires_in == pytest.approx(300, abs=1)
    assert get(other).value == new.value
    assert count(server) == 2


def test_l2_different_parameters_never_share_the_order_of_scopes_does(
    world: World, server: RotatingTokenServer
) -> None:
    different: list[dict[str, Any]] = [
        {},
        {"scope": "a b"},
        {"scope": "a"},
        {"resource": "https://a"},
        {"resource": ["https://a", "https://b"]},
        {"audience": "https://a"},
        {"extra": {"x": "1"}},
    ]
    values = [get(world, **parameters).value for parameters in different]
    assert len(set(values)) == len(different) == count(server)
    assert get(world, scope="b a").value == values[1]
    assert get(world, resource=["https://b", "https://a"]).value == values[4]
    assert count(server) == len(different)
    last = server.token_requests[4]
    assert last.form["resource"] == ["https://a", "https://b"]
    assert last.form["grant_type"] == ["client_credentials"]


def test_l3_with_the_store_down_the_process_gets_tokens_for_itself(
    world: World, server: RotatingTokenServer, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.store.down = True
    server.latency = 0.1
    found = together(16, lambda _: get(world).value)
    assert len(set(found)) == 1
    assert count(server) == 1
    clock.advance(61)
    assert get(world).value == found[0]
    clock.advance(EXPIRED)
    assert get(world).value != found[0]
    assert count(server) == 2
    assert len([one for one in caplog.records if one.levelname == "ERROR"]) == 1
    world.store.down = False
    clock.advance(61)
    shared = get(world).value
    assert shared == get(make_world(server, store=world.store.store, clock=clock)).value
    assert count(server) == 3


def test_l3_a_store_that_fails_in_the_middle_costs_one_more_request_at_most(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    world.stops.then("commit", lambda: setattr(world.store, "down", True))
    token = get(world).value
    assert server.lookup(token) is not None
    clock.advance(61)
    again = get(world).value
    assert count(server) <= 2
    world.store.down = False
    clock.advance(61)
    assert get(world).value in (token, again)


def test_clocks_far_from_the_present_are_no_problem_while_the_store_is_down(
    server: RotatingTokenServer,
) -> None:
    clock = FakeClock(1_000_000)
    world = make_world(server, clock=clock)
    world.store.down = True
    assert get(world).value
    clock.advance(EXPIRED)
    assert get(world).value
    assert count(server) == 2


def test_force_renewal_makes_a_new_token_for_everybody(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    # Nothing has to run out here, however slow the machine is.
    patient = EngineParameters()
    world = make_world(server, clock=clock, engine=patient)
    old = get(world).value
    new = get(world, force_renewal=True).value
    assert new != old
    assert get(world).value == new
    assert (
        get(make_world(server, store=world.store.store, clock=clock, engine=patient)).value == new
    )
    assert count(server) == 2


def test_l8_a_rejected_token_is_renewed_once_for_all(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    old = get(world).value
    clock.advance(5)
    server.latency = 0.1
    found = set(together(16, lambda _: get(world, rejected=old).value))
    assert len(found) == 1
    assert old not in found
    assert count(server) == 2
    # Refused as well: not again within 10 s.
    (new,) = found
    clock.advance(5)
    assert get(world, rejected=new).value == new
    assert count(server) == 2
    clock.advance(6)
    assert get(world, rejected=new).value != new


def test_forget_reaches_other_processes_within_the_local_lifetime(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    other = make_world(server, store=world.store.store, clock=clock)
    old = {scope: get(world, scope=scope).value for scope in ("a", "b")}
    assert get(other, scope="a").value == old["a"]
    client(world).forget()
    assert get(world, scope="a").value != old["a"]
    assert get(other, scope="a").value == old["a"]
    clock.advance(61)
    assert get(other, scope="a").value == get(world, scope="a").value
    assert get(other, scope="b").value != old["b"]
    assert count(server) == 4


def test_forget_with_the_store_down_forgets_in_this_process(
    world: World, server: RotatingTokenServer
) -> None:
    world.store.down = True
    old = get(world).value
    with pytest.raises(StoreError):
        client(world).forget()
    assert get(world).value != old
    assert count(server) == 2


def test_what_was_forgotten_does_not_come_back_after_a_month(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    server.lifetime = 29 * 86400
    client(world).forget()
    clock.advance(30 * 86400)
    old = get(world).value
    client(world).forget()
    clock.advance(2 * 86400)
    new = get(world).value
    assert new != old
    client(world).forget()
    assert get(world).value not in (old, new)


@pytest.mark.parametrize(
    "code", ["invalid_grant", "invalid_client", "invalid_scope", "login_required", "access_denied"]
)
def test_it_is_never_a_user_who_has_to_sign_in(
    world: World, server: RotatingTokenServer, code: str
) -> None:
    server.always(Reply(400, {"error": code}), "/token")
    for _ in range(3):
        with pytest.raises((TokenEndpointError, ServerUnavailable)) as raised:
            get(world)
        assert not isinstance(raised.value, LoginRequired)
        if isinstance(raised.value, TokenEndpointError):
            assert raised.value.error == code
    assert count(server) == 1


@pytest.mark.parametrize("answer", [Cut(), Reply(502), Reply(200, "<html>")], ids=str)
def test_a_lost_answer_is_no_doubt_where_nothing_is_spent(
    world: World, server: RotatingTokenServer, clock: FakeClock, answer: Any
) -> None:
    server.add(answer, path="/token")
    with pytest.raises((ServerUnavailable, InvalidTokenResponse)):
        get(world)
    clock.advance(1)
    assert get(world)
    assert count(server) == 2


def test_stale_tokens_are_served_while_the_endpoint_is_down(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    old = get(world).value
    clock.advance(260)
    server.always(Reply(503, {"error": "x"}), "/token")
    for _ in range(5):
        assert get(world).value == old
        clock.advance(5)
    clock.advance(60)
    with pytest.raises(ServerUnavailable):
        get(world)


def test_k2_a_clock_that_is_set_back_does_not_keep_a_token_for_ever(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    server.clock = clock
    get(world)
    clock.advance(-3600)
    server.clock = lambda: clock() + 3600  # the time that has really passed
    for _ in range(80):
        clock.advance(10)
        token = get(world).value
        assert server.lookup(token) is not None
    assert count(server) <= 6


def test_no_secret_shows(world: World, server: RotatingTokenServer) -> None:
    token = get(world).value
    assert token not in repr(client(world))
    assert token not in repr(get(world))


def test_a_record_that_does_not_open_is_made_anew(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    store = MemoryStore(clock=clock)
    first = make_world(server, store=store, clock=clock, engine=replace(FAST, slack=0.2))
    get(first)
    ((key, stored),) = [
        (key, stored) for key, stored in store.scan("", 10) if stored.sealed.strip()
    ]
    assert store.update(key, b"garbage", expected_version=stored.control.version) == "ok"
    other = make_world(server, store=store, clock=clock)
    assert get(other)
    assert count(server) == 2
