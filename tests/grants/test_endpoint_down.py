"""B: what the token endpoint does to us, through the engine."""

import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from flask_atm.assembly import make_state
from flask_atm.errors import (
    InsufficientScope,
    InvalidTokenResponse,
    LoginRequired,
    ServerUnavailable,
    TokenEndpointError,
)
from flask_atm.grants.stores import MemoryStore
from flask_atm.state import Hooks
from flask_atm.testing.clock import FakeClock
from flask_atm.tokens import TokenParameters
from tests.grants.support import grant_from
from tests.grants.tools import FAST, World, make_world, settings, together, tokens
from tests.servers import CloseIdle, Cut, FaultyServer, Hang, Reply, redirect
from tests.servers.faulty import Behaviour

#: The real back-off, and a breaker that hides nothing from the count.
PATIENT = replace(FAST, backoff=2.0, breaker_pause=1e-6)
EXPIRED = 1000.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        running.always(Reply(body=tokens(1)), "/token")
        yield running


@pytest.fixture
def world(server: FaultyServer, clock: FakeClock) -> World:
    return make_world(server, clock=clock)


def token_requests(server: FaultyServer) -> int:
    return sum(request.path == "/token" for request in server.requests)


def three_processes(server: FaultyServer, clock: FakeClock) -> list[World]:
    store = MemoryStore(clock=clock)
    return [
        make_world(server, store=store, clock=clock, engine=PATIENT, ATM_USER_TOKEN_LEEWAY=3600)
        for _ in range(3)
    ]


# -- B1


@pytest.mark.parametrize(
    "down",
    [
        Reply(429),
        Reply(503, {"error": "temporarily_unavailable"}),
        Reply(503, "<html>", {"Retry-After": "1"}),
        "refused",
    ],
    ids=["429", "503 with an error", "503 with Retry-After", "refused"],
)
def test_b1a_down_for_10_min_while_the_token_is_valid_for_9_is_not_noticed(
    server: FaultyServer, clock: FakeClock, down: Behaviour | str
) -> None:
    worlds = three_processes(server, clock)
    # A fifth of the lifetime is the leeway: 9 min less up to a tenth.
    grant_id = worlds[0].sign_in(tokens(0, expires_in=2700))
    clock.advance(2700 - 540)
    for world in worlds:
        world.state.provider().id_tokens.warm()
    if callable(down):
        server.always(down, "/token")
    else:
        server.stop_listening()
    for second in range(540):
        assert random.choice(worlds).get(grant_id).value == "access-0", second
        clock.advance(1)
    attempts = sum(world.told("token_refresh_failed") for world in worlds)
    assert 5 <= attempts <= 15
    for _ in range(60):
        with pytest.raises(ServerUnavailable):
            random.choice(worlds).get(grant_id)
        clock.advance(1)
    assert sum(world.told("token_refresh_failed") for world in worlds) <= 16
    if not callable(down):
        server.listen()
    server.always(Reply(body=tokens(1)), "/token")
    clock.advance(120)
    assert worlds[1].get(grant_id).value == "access-1"
    assert {request.parameter("refresh_token") for request in server.requests} <= {
        None,
        "refresh-0",
    }


@pytest.mark.parametrize(
    "down",
    [
        Hang(),
        Cut(),
        Cut(reset=True),
        Cut("body"),
        Reply(500),
        Reply(502, "<html>Bad Gateway"),
        Reply(503, "upstream connect error"),
        Reply(503),
        Reply(302, "", {"Location": "/sorry"}),
        Reply(200),
        Reply(200, "<html>Sorry"),
    ],
    ids=str,
)
def test_b1b_an_answer_that_may_be_lost_means_one_attempt_while_the_token_is_valid(
    server: FaultyServer, clock: FakeClock, down: Behaviour
) -> None:
    worlds = three_processes(server, clock)
    grant_id = worlds[0].sign_in(tokens(0, expires_in=2700))
    clock.advance(2700 - 480)
    server.always(down, "/token")
    for _ in range(480):
        assert random.choice(worlds).get(grant_id).value == "access-0"
        clock.advance(1)
    assert token_requests(server) == 1
    assert worlds[0].stored(grant_id).control.doubt
    # B2: now it has expired.
    errors: list[Exception] = []
    for _ in range(3):
        try:
            random.choice(worlds).get(grant_id)
        except (ServerUnavailable, InvalidTokenResponse) as error:
            errors.append(error)
        clock.advance(1)
    assert len(errors) == 3
    assert 2 <= token_requests(server) <= 3
    server.always(Reply(body=tokens(1)), "/token")
    clock.advance(16)
    assert worlds[1].get(grant_id).value == "access-1"


# -- B2


@pytest.mark.parametrize(
    "down", [Reply(503, {"error": "x"}), Reply(429), Reply(502), Cut()], ids=str
)
def test_b2_expired_and_down_is_503_with_retry_after_and_ends_within_one_step(
    world: World, server: FaultyServer, clock: FakeClock, down: Behaviour
) -> None:
    grant_id = world.sign_in(tokens(0))
    clock.advance(EXPIRED)
    server.always(down, "/token")
    for _ in range(4):
        with pytest.raises(ServerUnavailable) as raised:
            world.get(grant_id)
        response = raised.value.get_response()
        assert response.status_code == 503
        assert response.headers["Retry-After"] == str(raised.value.retry_after)
        clock.advance(raised.value.retry_after)
        assert world.state.provider().tokens.open(grant_id) is not None
    server.always(Reply(body=tokens(1)), "/token")
    clock.advance(1.6)
    # The breaker is by the monotonic clock.
    while world.state.provider().tokens.engine.breaker.left():
        pass
    assert world.get(grant_id).value == "access-1"


def test_b2_the_breaker_fails_the_expired_at_once_and_serves_the_stale(
    server: FaultyServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock, engine=replace(FAST, breaker_pause=60))
    users = [world.sign_in(tokens(0), sub=str(number)) for number in range(6)]
    clock.advance(260)
    server.always(Reply(500), "/token")
    for user in users:
        assert world.get(user).value == "access-0"
    assert token_requests(server) == 3
    clock.advance(60)
    for user in users:
        with pytest.raises(ServerUnavailable) as raised:
            world.get(user)
        assert 50 < raised.value.retry_after <= 60
    assert token_requests(server) == 3


# -- B3, B5


def test_b3_429_is_never_stored_as_a_token(
    world: World, server: FaultyServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(tokens(0))
    before = world.stored(grant_id).grant
    for body in ({"message": "too many requests"}, tokens(9), "<html>"):
        clock.advance(EXPIRED)
        server.always(Reply(429, body), "/token")
        with pytest.raises(ServerUnavailable):
            world.get(grant_id)
        assert world.stored(grant_id).grant == before


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_b5_redirects_of_the_token_and_revocation_endpoints_are_not_followed(
    world: World, server: FaultyServer, clock: FakeClock, status: int
) -> None:
    grant_id = world.sign_in(tokens(0))
    clock.advance(EXPIRED)
    with FaultyServer() as elsewhere:
        for path in ("/token", "/revoke"):
            server.always(redirect(status, f"{elsewhere.url}{path}"), path)
        with pytest.raises(ServerUnavailable):
            world.get(grant_id)
        user_tokens = world.state.provider().tokens
        user_tokens.end(grant_id)
        assert user_tokens.outbox.drain().revoked == 0
        assert elsewhere.requests == []
    server.always(Reply(200), "/revoke")
    assert user_tokens.outbox.drain().revoked == 1


# -- B7, B8, B14: connections


def test_b7_every_refresh_uses_a_connection_of_its_own(
    world: World, server: FaultyServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(tokens(0))
    for number in range(1, 4):
        # It would close on a second request.
        server.always(CloseIdle(Reply(body=tokens(number))), "/token")
        clock.advance(EXPIRED)
        assert world.get(grant_id).value == f"access-{number}"
    used = [request.connection for request in server.requests if request.path == "/token"]
    assert len(set(used)) == 3


@pytest.mark.parametrize("broken", [Cut(), Reply(502), Reply(503, {"error": "x"})], ids=str)
def test_b8_retries_of_the_applications_session_are_not_inherited(
    server: FaultyServer, clock: FakeClock, broken: Behaviour
) -> None:
    make_world(server)  # its metadata
    retry = Retry(3, status_forcelist=[502, 503], allowed_methods=None, backoff_factor=0.01)
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=retry))
    app = Flask("test", instance_path="/nonexistent")
    app.config.update(settings(server))
    state = make_state(
        app, hooks=Hooks(), clock=clock, engine=FAST, http_session=lambda name: session
    )
    grant_id = grant_from(state, tokens(0))
    clock.advance(EXPIRED)
    server.always(broken, "/token")
    with pytest.raises(ServerUnavailable):
        state.provider().tokens.get(grant_id, TokenParameters())
    assert token_requests(server) == 1
    session.close()


def test_b14_netrc_and_proxies_of_the_environment_change_nothing_at_loopback(
    server: FaultyServer, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login thief password canary\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with FaultyServer() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        world = make_world(server, clock=clock)
        grant_id = world.sign_in(tokens(0))
        clock.advance(EXPIRED)
        assert world.get(grant_id).value == "access-1"
        assert proxy.requests == []
    (request,) = [one for one in server.requests if one.path == "/token"]
    assert request.header("Authorization") == requests.auth._basic_auth_str("app", "secret")


# -- B9, B10, B11: odd answers


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        (..., 300),
        ("3600", 3600),
        (3600.5, 3600.5),
        (0, 300),
        (-5, 300),
        (1e12, 30 * 86400),
        (None, 300),
        ("abc", 300),
    ],
    ids=str,
)
def test_b9_any_expires_in_keeps_the_rotated_refresh_token(
    world: World, server: FaultyServer, clock: FakeClock, expires_in: Any, lifetime: float
) -> None:
    grant_id = world.sign_in(tokens(0))
    clock.advance(EXPIRED)
    body = tokens(1, expires_in=expires_in)
    if expires_in is ...:
        del body["expires_in"]
    server.always(Reply(body=body), "/token")
    token = world.get(grant_id)
    assert token.expires_in == pytest.approx(lifetime, abs=1)
    grant = world.stored(grant_id).grant
    assert grant.refresh_token is not None
    assert grant.refresh_token.reveal() == "refresh-1"
    assert world.get(grant_id).value == token.value
    assert token_requests(server) == 1


def test_b9_without_an_access_token_the_rotated_refresh_token_is_kept(
    world: World, server: FaultyServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(tokens(0))
    clock.advance(EXPIRED)
    server.add(Reply(body={"refresh_token": "refresh-1", "token_type": "N_A"}), path="/token")
    for _ in range(2):
        with pytest.raises(InvalidTokenResponse):
            world.get(grant_id)
    assert token_requests(server) == 1
    server.always(Reply(body=tokens(2)), "/token")
    assert world.get(grant_id, scope="other").value == "access-2"
    sent = [one.parameter("refresh_token") for one in server.requests if one.path == "/token"]
    assert sent == ["refresh-0", "refresh-1"]


def test_b10_the_slot_records_what_was_granted(
    world: World, server: FaultyServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(tokens(0, scope="openid read"))
    server.always(Reply(body=tokens(1, scope="read extra", token_type="bEARER")), "/token")
    token = world.get(grant_id, scope="read openid profile email offline_access")
    assert (token.scope, token.token_type) == ("read extra", "Bearer")
    assert token.authorization == "Bearer access-1"
    with pytest.raises(InsufficientScope, match="'write'") as raised:
        world.get(grant_id, scope="read write openid")
    assert raised.value.scope == "write"
    # Asked for once; the slot knows.
    with pytest.raises(InsufficientScope):
        world.get(grant_id, scope="openid write read")
    assert token_requests(server) == 2
    server.always(Reply(body=tokens(2, scope="https://api.example/renamed")), "/token")
    clock.advance(EXPIRED)
    assert world.get(grant_id).scope == "https://api.example/renamed"
    server.always(Reply(body=tokens(3)), "/token")
    assert world.get(grant_id, scope="admin").scope == "admin"


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("0", 0.05, 0.1),
        ("86400", 300, 300),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300, 300),
        ("soon", 0.05, 0.1),
        ("-7", 0.05, 0.1),
        ("20", 20, 20),
    ],
)
def test_b11_retry_after_is_clamped_and_shared_by_all_processes(
    server: FaultyServer, clock: FakeClock, value: str, least: float, most: float
) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_world(server, store=store, clock=clock) for _ in range(2))
    grant_id = one.sign_in(tokens(0))
    clock.advance(EXPIRED)
    server.always(Reply(503, {"error": "busy"}, {"Retry-After": value}), "/token")
    with pytest.raises(ServerUnavailable):
        one.get(grant_id)
    with pytest.raises(ServerUnavailable) as raised:
        two.get(grant_id)
    assert token_requests(server) == 1
    pause = one.stored(grant_id).control.retry_at - clock()
    assert least - 0.01 <= pause <= most + 0.01
    assert raised.value.retry_after == max(1, -(-pause // 1))


# -- B12


@pytest.mark.parametrize("code", ["invalid_client", "unauthorized_client"])
def test_b12_a_refused_client_signs_nobody_out(
    world: World, server: FaultyServer, clock: FakeClock, code: str, caplog: Any
) -> None:
    users = [world.sign_in(tokens(0), sub=str(number)) for number in range(8)]
    clock.advance(EXPIRED)
    server.always(Reply(401, {"error": code}), "/token")
    with pytest.raises(TokenEndpointError, match=code):
        world.get(users[0])
    results = together(16, lambda number: world.get(users[number % 8]))
    assert {(type(one), one.error) for one in results} == {(TokenEndpointError, code)}
    assert token_requests(server) == 1
    for user in users:
        snapshot = world.stored(user)
        assert (snapshot.is_dead, snapshot.control.doubt) == (False, False)
        assert snapshot.control.intent is None
    errors = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "ATM_CLIENT_SECRET" in errors[0].getMessage()


def test_an_error_that_wants_the_user_keeps_the_grant(
    world: World, server: FaultyServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(tokens(0))
    clock.advance(EXPIRED)
    server.always(Reply(400, {"error": "consent_required"}), "/token")
    for _ in range(2):
        with pytest.raises(LoginRequired) as raised:
            world.get(grant_id)
        assert raised.value.reason == "consent_required"
    assert token_requests(server) == 1
    assert not world.stored(grant_id).control.doubt
    assert world.state.provider().tokens.open(grant_id) is not None


@pytest.mark.parametrize("answer", [Reply(400), Reply(403, "<html>")], ids=str)
def test_a_refusal_without_a_word_is_believed_the_second_time(
    world: World, server: FaultyServer, clock: FakeClock, answer: Behaviour
) -> None:
    grant_id = world.sign_in(tokens(0))
    clock.advance(EXPIRED)
    server.always(answer, "/token")
    with pytest.raises(ServerUnavailable) as raised:
        world.get(grant_id)
    clock.advance(raised.value.retry_after)
    with pytest.raises(LoginRequired) as ended:
        world.get(grant_id)
    assert ended.value.reason == "invalid_grant"
    assert token_requests(server) == 2
