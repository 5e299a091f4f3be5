"""Schedules that a review found: each of them once lost a token, sent one, or held somebody up."""

import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from flask import Flask

from flask_atm.assembly import make_state
from flask_atm.errors import (
    LoginRequired,
    ServerUnavailable,
    StoreError,
    TokenEndpointError,
)
from flask_atm.grants.answers import retry_after
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.vault import KeptAnswer, Vault, record_key
from flask_atm.oauth.watchdog import Watchdog
from flask_atm.state import Hooks
from flask_atm.testing.clock import FakeClock
from flask_atm.tokens import TokenParameters
from tests.grants.support import grant_from
from tests.grants.tools import FAST, WAIT, World, make_world, refreshes, settings, together
from tests.servers import Reply, RotatingTokenServer

STALE, EXPIRED = 260.0, 1000.0


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


def sign_in_and_expire(world: World, server: RotatingTokenServer, clock: FakeClock) -> str:
    grant_id = world.sign_in(server.issue("alice"), sid="session")
    clock.advance(EXPIRED)
    return grant_id


def eventually(true: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if true():
            return True
        threading.Event().wait(0.01)
    return False


@pytest.fixture
def threads_that_fail() -> Iterator[None]:
    """Wait for the end of those that a test lets fail, or the next one is told."""
    yield
    for thread in threading.enumerate():
        if thread.name == "flask-atm-kept":
            thread.join(1)


# -- a sign-out during a refresh, and then something fails


def test_i1_after_a_sign_out_a_store_that_falls_silent_does_not_make_the_token_served(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    """The store said "gone", and fell silent before it was asked who else is signed in."""
    grant_id = sign_in_and_expire(world, server, clock)
    other = make_world(server, store=world.store.store, clock=clock)
    world.stops.then("commit", lambda: other.state.provider().tokens.end(grant_id))

    def silent() -> None:
        world.store.down = True

    world.store.before["find"] = silent
    for _ in range(3):
        with pytest.raises((LoginRequired, StoreError)):
            world.get(grant_id)
    assert world.told("token_refreshed") == 0
    del world.store.before["find"]
    world.store.down = False
    # What came too late is revoked all the same.
    (grant,) = server.grants.values()
    assert eventually(lambda: grant.refresh_token in server.revocations)
    with pytest.raises(LoginRequired):
        world.get(grant_id)


def test_i1_what_came_too_late_is_revoked_while_nothing_is_held(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock, ATM_BACK_CHANNEL={"max_concurrency": 1})
    grant_id = sign_in_and_expire(world, server, clock)
    tokens = world.state.provider().tokens
    world.stops.then("commit", lambda: tokens.end(grant_id))
    held: list[Any] = []

    def look(exchange: Any) -> None:
        with world.state.back_channel.place(time.monotonic()) as free:
            held.append(free)
        held.append(vars_of(tokens.engine.flights))
        Reply(200)(exchange)

    server.always(look, "/revoke")
    with pytest.raises(LoginRequired):
        world.get(grant_id)
    assert held == [True, []]


def vars_of(flights: Any) -> list[str]:
    return [key for process in flights._flights.values() for key in process]


@pytest.mark.usefixtures("threads_that_fail")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_i1_a_secret_that_cannot_be_had_for_the_revocation_is_asked_for_once(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    """In the thread that stores what the store did not take there is no application context."""
    calls: list[str] = []

    def secret() -> str:
        calls.append(threading.current_thread().name)
        if len(calls) > 1:
            raise RuntimeError("working outside of application context")
        return "secret"

    world = make_world(server, clock=clock, ATM_CLIENT_SECRET=secret)
    other = make_world(server, store=world.store.store, clock=clock)
    grant_id = sign_in_and_expire(world, server, clock)
    down = threading.Event()

    def silent() -> None:
        if not down.is_set():
            raise StoreError("down")

    world.store.before["commit"] = silent
    assert world.get(grant_id).value
    other.state.provider().tokens.end(grant_id)
    down.set()
    assert eventually(lambda: len(calls) == 2)
    for _ in range(3):
        with pytest.raises(LoginRequired):
            world.get(grant_id)
    assert not keeper_of(world)._answers
    assert calls[1:] == ["flask-atm-kept"]


# -- problem 1: "begin" was done, and its answer lost


@pytest.mark.parametrize("ahead", [STALE, EXPIRED])
def test_a9_a_begin_whose_answer_was_lost_is_taken_back(
    world: World, server: RotatingTokenServer, clock: FakeClock, ahead: float
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    old = world.get(grant_id).value
    clock.advance(ahead)
    world.store.lost["begin"] = 1
    if ahead == STALE:
        assert world.get(grant_id).value == old
    else:
        with pytest.raises(StoreError):
            world.get(grant_id)
    control = world.stored(grant_id).control
    assert (control.lease_owner, control.intent, control.doubt) == (None, None, False)
    assert world.get(grant_id).value != old
    assert len(refreshes(server)) == 1


# -- problem 4: what the server says of the client is said to everybody


@pytest.mark.parametrize("code", ["invalid_client", "unauthorized_client"])
def test_b12_everybody_is_told_what_is_wrong_with_the_client(
    world: World, server: RotatingTokenServer, clock: FakeClock, code: str
) -> None:
    users = [world.sign_in(server.issue(str(number)), sub=str(number)) for number in range(4)]
    clock.advance(EXPIRED)
    server.always(Reply(401, {"error": code}), "/token")
    errors = together(1, lambda number: world.get(users[number]))
    errors += together(15, lambda number: world.get(users[number % 4]))
    errors += together(4, lambda number: world.get(users[number], scope="other"))
    assert {(type(one), one.error, one.status) for one in errors} == {
        (TokenEndpointError, code, 401)
    }
    assert len({id(one) for one in errors}) == 20
    own = world.state.provider().client_tokens
    with pytest.raises(TokenEndpointError) as raised:
        own.get(TokenParameters())
    assert (raised.value.error, raised.value.provider) == (code, own.name)
    # The users' sign-ins are one registration, and so are the application's own tokens.
    assert len(refreshes(server)) == 1


def test_b12_a_breaker_that_opened_for_something_else_is_no_refusal_of_the_client(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    engine = replace(FAST, client_pause=0.05, breaker_pause=60.0)
    world = make_world(server, clock=clock, engine=engine)
    users = [world.sign_in(server.issue(str(number)), sub=str(number)) for number in range(5)]
    clock.advance(EXPIRED)
    server.add(Reply(401, {"error": "invalid_client"}), path="/token")
    with pytest.raises(TokenEndpointError):
        world.get(users[0])
    time.sleep(0.06)
    server.always(Reply(500), "/token")
    breaker = world.state.provider().tokens.engine.breaker
    for user in users[1:4]:
        breaker._until = 0.0
        with pytest.raises(ServerUnavailable):
            world.get(user)
    with pytest.raises(ServerUnavailable):
        world.get(users[4])
    assert len(refreshes(server)) == 4


# -- what is remembered holds nothing else


def test_j1_a_remembered_refusal_keeps_no_frames_alive(
    world: World, server: RotatingTokenServer
) -> None:
    grant_id = world.sign_in(server.issue("alice"))

    class Request:
        """Whatever the frames of the first caller hold."""

    def view() -> "weakref.ref[Request]":
        request = Request()
        for _ in range(2):
            try:
                world.get(grant_id, resource="https://api/b")
            except TokenEndpointError as error:
                assert error.error == "invalid_target"  # noqa: PT017
        return weakref.ref(request)

    seen = view()
    world.events.clear()
    gc.collect()
    assert seen() is None
    assert len(refreshes(server)) == 1


def test_j1_a_refused_client_keeps_no_frames_alive(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    server.always(Reply(401, {"error": "invalid_client"}), "/token")

    class Request:
        """Whatever the frames of the first caller hold."""

    def view() -> "weakref.ref[Request]":
        request = Request()
        for _ in range(2):
            with pytest.raises(TokenEndpointError):
                world.get(grant_id)
        return weakref.ref(request)

    seen = view()
    world.events.clear()
    gc.collect()
    assert seen() is None


def test_no_grant_id_shows_in_a_repr(world: World, server: RotatingTokenServer) -> None:
    """Whoever has it acts as the user."""
    shown: list[str] = []
    tokens = world.state.provider().tokens
    original = type(tokens.endpoint).prepare
    grant_id = world.sign_in(server.issue("alice"))

    def prepare(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        shown.append(repr(frame.f_locals["self"]))
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tokens.endpoint), "prepare", prepare)
        world.get(grant_id, force_renewal=True)
    assert shown
    assert grant_id.partition(".")[2] not in "".join(shown)


# -- a slow store


def test_a_slow_begin_does_not_date_the_token_into_the_future(
    server: RotatingTokenServer,
) -> None:
    """Or it would be taken for one of a clock that jumped, and be refreshed once more."""
    ahead = [0.0]

    def clock() -> float:
        return time.time() + ahead[0]

    engine = replace(FAST, send_window=3.0)
    world = make_world(server, clock=clock, engine=engine)
    grant_id = world.sign_in(server.issue("alice"))
    ahead[0] = EXPIRED
    world.store.before["begin"] = lambda: time.sleep(1.2)
    token = world.get(grant_id)
    assert world.stored(grant_id).grant.slots[""].obtained_at <= clock()
    assert token.expires_in <= 300.1
    assert world.get(grant_id).value == token.value
    assert len(refreshes(server)) == 1


# -- answers that the store did not take


def kept(store: Callable[[], None]) -> KeptAnswer:
    snapshot: Any = None
    return KeptAnswer(snapshot=snapshot, store=store, at=time.monotonic())


def keeper_of(world: World) -> Any:
    vault: Vault = world.state.provider().tokens.vault
    return vars(vault)["_keeper"]


@pytest.mark.usefixtures("threads_that_fail")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_rotated_token_is_kept_whatever_a_store_of_ones_own_raises(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    down = threading.Event()
    down.set()

    def commit() -> None:
        if down.is_set():
            raise ConnectionError("not a StoreError")

    world.store.before["commit"] = commit
    for _ in range(3):
        with pytest.raises(ConnectionError):
            world.get(grant_id)
    down.clear()
    token = world.get(grant_id).value
    assert server.lookup(token) is not None
    assert world.stored(grant_id).grant.slots[""].token.reveal() == token
    assert (len(refreshes(server)), server.replays) == (1, 0)


@pytest.mark.usefixtures("threads_that_fail")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_answer_that_cannot_be_stored_does_not_hold_up_the_others(world: World) -> None:
    keeper = keeper_of(world)
    stored: list[str] = []

    def poison() -> None:
        if len(stored) < 2:
            raise ValueError("a bug")
        stored.append("a")

    keeper.keep("a", kept(poison))
    for name in ("b", "c"):
        keeper.keep(name, kept(partial(stored.append, name)))
    assert eventually(lambda: sorted(stored) == ["a", "b", "c"])


def test_a_thread_that_cannot_be_started_costs_no_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_of(world)
    stored: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        keeper.keep("a", kept(partial(stored.append, "a")))
    assert keeper.get("a") is not None
    keeper.keep("b", kept(partial(stored.append, "b")))
    assert eventually(lambda: sorted(stored) == ["a", "b"])


def test_a15_two_first_answers_of_a_child_are_both_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both threads have seen that the process is a new one before either has acted upon it."""
    keeper = keeper_of(world)
    down = threading.Event()

    def silent() -> None:
        if not down.is_set():
            raise StoreError("down")

    looked, first_is_done = threading.Event(), threading.Event()

    def getpid() -> int:
        if threading.current_thread().name == "second" and not looked.is_set():
            looked.set()
            first_is_done.wait(0.3)
        return os.getpid()

    keeper._pid = -1
    monkeypatch.setattr("flask_atm.grants.vault.os", SimpleNamespace(getpid=getpid))
    second = threading.Thread(
        target=lambda: keeper.keep("2", kept(silent)), name="second", daemon=True
    )
    second.start()
    looked.wait(WAIT)
    keeper.keep("1", kept(silent))
    first_is_done.set()
    second.join()
    assert sorted(keeper._answers) == ["1", "2"]
    down.set()
    assert eventually(lambda: not keeper._answers)


# -- checks of ours that fail


def test_a_check_that_fails_by_itself_does_not_cost_the_rotated_token(
    world: World,
    server: RotatingTokenServer,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.decorate = lambda answer: answer | {"id_token": "canary.id.token"}
    grant_id = world.sign_in(server.issue("alice") | {"id_token": "a.b.c"})
    clock.advance(EXPIRED)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RecursionError("a bug")

    monkeypatch.setattr("flask_atm.oauth.id_token_checks.validate_refreshed", broken)
    with pytest.raises(RecursionError):
        world.get(grant_id)
    token = world.get(grant_id)
    assert (token.id_token, token.claims["sub"]) == ("a.b.c", "alice")
    assert not world.stored(grant_id).control.doubt
    assert len(refreshes(server)) == 1
    clock.advance(EXPIRED)
    server.decorate = lambda answer: answer
    assert world.get(grant_id).value != token.value
    assert server.replays == 0


# -- what belongs to the application runs before the lease is taken


def test_the_applications_session_is_asked_for_before_the_lease_is_taken(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    make_world(server)  # its metadata
    app = Flask("test", instance_path="/nonexistent")
    app.config.update(settings(server))
    owners: list[str | None] = []
    store = MemoryStore(clock=clock)
    grants: list[str] = []

    def session(name: str) -> requests.Session:
        if grants:
            stored = store.read(record_key(grants[0]))
            owners.append(stored.control.lease_owner if stored else None)
        return requests.Session()

    state = make_state(
        app, hooks=Hooks(), store=store, clock=clock, engine=FAST, http_session=session
    )
    grants.append(grant_from(state, server.issue("alice")))
    clock.advance(EXPIRED)
    assert state.provider().tokens.get(grants[0], TokenParameters()).value
    assert owners
    assert set(owners) == {None}


# -- the outbox


def test_i2_entries_that_have_to_wait_do_not_starve_the_others(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    """Without sid a newer sign-in of the same user keeps the older refresh token from being
    revoked, for as long as it lives: more of them than are looked at in one go."""
    tokens = world.state.provider().tokens
    for number in range(150):
        old = world.sign_in(server.issue(str(number)), sub=str(number))
        clock.advance(1)
        world.sign_in(server.issue(str(number)), sub=str(number))
        tokens.end(old)
    response = server.issue("bob")
    bob = world.sign_in(response, sub="bob")
    ended = tokens.end(bob, revoke_after=60)
    assert ended is not None
    assert tokens.outbox.drain(due=[ended.key]).revoked == 1
    assert server.revocations == [response["refresh_token"]]
    carol = server.issue("carol")
    tokens.end(world.sign_in(carol, sub="carol"))
    assert eventually(lambda: tokens.outbox.drain().revoked)
    assert carol["refresh_token"] in server.revocations


# -- sign-in


def test_a_sign_in_that_a_store_has_taken_twice_is_one(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    """The store repeats an operation by itself, when an answer was lost."""

    class Repeating(MemoryStore):
        def create(self, key: str, sealed: bytes, **rest: Any) -> bool:
            super().create(key, sealed, **rest)
            return super().create(key, sealed, **rest)

    world = make_world(server, store=Repeating(clock=clock), clock=clock)
    assert world.get(world.sign_in(server.issue("alice"))).value


def test_a_store_whose_clock_is_far_ahead_is_no_endless_loop(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    store = MemoryStore(clock=lambda: clock() + 400 * 86400)
    world = make_world(server, store=store, clock=clock)
    found = together(1, lambda _: world.state.provider().client_tokens.get(TokenParameters()))
    assert found[0].value


# -- numbers


@pytest.mark.parametrize(
    "value",
    [
        "Fri, 31 Dec 2021 23:59:59 +" + 30 * "9",
        "Fri, 31 Dec 99999999999999999999 23:59:59 GMT",
        "Fri, 31 Dec 2021 99999999999999999999:59:59 GMT",
    ],
)
def test_b11_a_date_that_no_calendar_has_is_no_retry_after(value: str) -> None:
    assert retry_after(value, now=0) is None


# -- the watchdog


def test_a_watchdog_that_could_not_start_starts_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Watched:
        def __init__(self, seconds: float) -> None:
            self.deadline = time.monotonic() + seconds
            self.late = threading.Event()

        def cut(self) -> None:
            self.late.set()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    watchdog = Watchdog()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            watchdog.begin(Watched(0.01))
    second = Watched(0.05)
    watchdog.begin(second)
    assert second.late.wait(WAIT)


# -- the breaker


@pytest.mark.parametrize("how", ["busy", "moved", "silent", "late"])
def test_an_attempt_that_sends_nothing_does_not_use_up_the_one_per_30_s(
    server: RotatingTokenServer, clock: FakeClock, how: str
) -> None:
    world = make_world(server, clock=clock, engine=replace(FAST, client_pause=60.0))
    alice, bob = (world.sign_in(server.issue(name), sub=name) for name in ("alice", "bob"))
    clock.advance(STALE)
    breaker = world.state.provider().tokens.engine.breaker
    breaker.refused_client(TokenEndpointError("invalid_client"))
    breaker._until = 0.0  # half a minute later
    version = world.stored(alice).control.version

    def other() -> None:
        world.store.store.begin(
            record_key(alice), owner="x", expected_version=version, lease=FAST.lease, intent="h"
        )
        if how == "moved":
            world.store.store.abort(record_key(alice), owner="x", clear_intent=True)

    if how in ("busy", "moved"):
        world.stops.then("begin", other)
    elif how == "silent":
        world.store.lost["begin"] = 1
    else:
        world.stops.then("write", lambda: time.sleep(FAST.send_window + 0.1))
    old = world.get(alice).value
    assert refreshes(server) == []
    assert world.get(bob).value != old
    assert breaker.left() == 0
    assert len(refreshes(server)) == 1
