"""A: one refresh, whoever asks, and nobody gets what is another's."""

import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from flask_atm.errors import (
    InsufficientScope,
    LoginRequired,
    ServerUnavailable,
    TokenEndpointError,
)
from flask_atm.grants.control import Begun
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.single_flight import ProcessLock
from flask_atm.grants.stores import SQLiteStore
from flask_atm.grants.vault import record_key
from flask_atm.protocols import AtomicGrantStore
from flask_atm.signals import token_refreshed
from flask_atm.state import State
from flask_atm.testing.clock import FakeClock
from flask_atm.tokens import TokenParameters, UserToken
from tests.grants.processes import run_everywhere
from tests.grants.support import grant_from
from tests.grants.tools import (
    WAIT,
    WatchedSetup,
    WatchedStore,
    World,
    make_world,
    refreshes,
    settings,
    together,
)
from tests.servers import Reply, RotatingTokenServer
from tests.servers.rotating import INVALID_GRANT

#: A lifetime of 300 s ends the freshness between 54 and 60 s before the end.
STALE, EXPIRED = 260.0, 1000.0
#: The real times, where nothing has to run out: a crowd on a slow machine takes its time.
PATIENT = EngineParameters()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer() as running:
        yield running


def values(results: list[Any]) -> set[str]:
    """The tokens that came; an error shows itself."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return {result.value for result in results}


# -- A1 within a process, A2


@pytest.mark.parametrize("reuse", ["kill", "sibling"])
def test_a1_a13_32_threads_with_an_expired_token_make_one_refresh(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore, reuse: Any
) -> None:
    server.reuse = reuse
    world = make_world(server, store=any_store, clock=clock, engine=PATIENT)
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(EXPIRED)
    server.latency = 0.2
    (token,) = values(together(32, lambda _: world.get(grant_id)))
    assert server.lookup(token) is not None
    assert (len(refreshes(server)), server.replays) == (1, 0)
    assert world.told("token_refreshed") == 1


def test_a2_while_the_answer_is_held_all_other_threads_have_returned(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore
) -> None:
    world = make_world(server, store=any_store, clock=clock, engine=PATIENT)
    grant_id = world.sign_in(server.issue("alice"))
    old = world.get(grant_id).value
    clock.advance(STALE)
    server.hold()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(world.get, grant_id)
        server.wait_held()
        reads: list[list[str]] = []

        def call(_: int) -> UserToken:
            token = world.get(grant_id)
            reads.append(list(world.store.mine))
            return token

        assert values(together(32, call)) == {old}
        assert reads == [["read"]] * 32
        assert not leader.done()
        server.release()
        assert leader.result(WAIT).value != old
    assert len(refreshes(server)) == 1


def test_a2_a_token_that_runs_out_during_the_attempt_is_renewed_all_the_same(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore
) -> None:
    """Nobody renews it, so there is nobody to wait for: `try later` would be wrong."""
    world = make_world(server, store=any_store, clock=clock, engine=PATIENT)
    grant_id = world.sign_in(server.issue("alice"))
    old = world.get(grant_id).value
    clock.advance(STALE)

    def somebody_else_writes_and_time_passes() -> None:
        key, before = record_key(grant_id), world.stored(grant_id)
        version = before.control.version
        sealed = world.seal(grant_id, before, version=version + 1)
        assert world.store.store.update(key, sealed, expected_version=version) == "ok"
        clock.advance(EXPIRED)

    world.stops.then("begin", somebody_else_writes_and_time_passes)
    assert world.get(grant_id).value != old
    assert len(refreshes(server)) == 1


def test_a2_an_attempt_that_fails_while_the_token_runs_out_says_why(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock, engine=PATIENT)
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(STALE)
    server.add(Reply(503, {"error": "temporarily_unavailable"}), path="/token")
    world.stops.then("answered", lambda: clock.advance(45))
    with pytest.raises(ServerUnavailable):
        world.get(grant_id)
    assert len(refreshes(server)) == 1


@dataclass(frozen=True, kw_only=True)
class CallAndTell:
    """Get the token, and tell the server that it came."""

    grant_id: str
    url: str

    def __call__(self, state: State, number: int) -> tuple[str, list[str]]:
        token = state.provider().tokens.get(self.grant_id, TokenParameters())
        store = state.store
        assert isinstance(store, WatchedStore)
        steps = list(store.mine)
        with requests.Session() as session:
            session.trust_env = False
            session.get(f"{self.url}/returned", timeout=30)
        return token.value, steps


def test_a2_while_the_answer_is_held_all_other_processes_have_returned(
    server: RotatingTokenServer, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'grants.sqlite3'}"
    setup = WatchedSetup(config=settings(server, store=store))
    response = server.issue("alice")
    grant_id = grant_from(setup.state(), response)
    later = WatchedSetup(config=setup.config, ahead=STALE)
    server.hold()
    job = CallAndTell(grant_id=grant_id, url=server.url)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_everywhere, later, job, processes=4, threads=8)
        server.wait_held(timeout=60)
        server.wait_for(31, path="/returned", timeout=60)
        assert len(refreshes(server)) == 1
        server.release()
        results = running.result(60)
    others = [steps for token, steps in results if token == response["access_token"]]
    # Whoever read before the lease was taken finds it busy, and does not wait for it.
    assert {tuple(steps) for steps in others} <= {("read",), ("read", "begin")}
    assert len(others) == 31
    assert len(refreshes(server)) == 1


def test_a2_nobody_with_a_valid_token_waits_for_a_place_at_the_endpoint(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock, engine=PATIENT, ATM_BACK_CHANNEL={"max_concurrency": 1})
    alice, bob = (world.sign_in(server.issue(name), sub=name) for name in ("alice", "bob"))
    old = world.get(bob).value
    clock.advance(STALE)
    server.hold()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(world.get, alice)
        server.wait_held()
        assert world.get(bob).value == old
        assert not leader.done()
        server.release()
        leader.result(WAIT)
    assert len(refreshes(server)) == 1
    assert world.get(bob).value != old


# -- what a refresh leaves out


@pytest.mark.parametrize("kind", ["left out", "the same", "null", "empty", "sometimes"])
def test_a10_a_refresh_token_that_is_not_rotated_is_kept(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore, kind: str
) -> None:
    world = make_world(server, store=any_store, clock=clock, engine=PATIENT)
    response = server.issue("alice")
    grant_id = world.sign_in(response)
    first = response["refresh_token"]
    members = {"the same": {"refresh_token": first}, "null": {"refresh_token": None}}
    if kind == "sometimes":
        turns = iter([False, True, False, False, True])
        server.rotate = lambda: next(turns)
    else:
        server.rotate = False
        more = {"empty": {"refresh_token": ""}, **members}.get(kind, {})
        server.decorate = lambda answer: answer | more
    for _ in range(5):
        clock.advance(EXPIRED)
        assert world.get(grant_id).refreshable
        assert world.stored(grant_id).grant.refresh_token is not None
    sent = refreshes(server)
    assert len(set(sent)) == (2 if kind == "sometimes" else 1)
    assert sent[0] == first
    assert server.replays == 0


# -- A12


def test_a12_a_resource_that_was_not_granted_is_refused_locally(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore
) -> None:
    world = make_world(
        server, store=any_store, clock=clock, engine=PATIENT, ATM_RESOURCE="https://api/a"
    )
    grant_id = world.sign_in(server.issue("alice", resources=["https://api/a"]))
    with pytest.raises(InsufficientScope, match="ATM_RESOURCE"):
        world.get(grant_id, resource="https://api/b")
    assert refreshes(server) == []
    clock.advance(EXPIRED)
    assert world.get(grant_id)


def test_a12_what_the_server_refuses_is_tried_once_and_other_slots_keep_working(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore
) -> None:
    world = make_world(server, store=any_store, clock=clock, engine=PATIENT)
    grant_id = world.sign_in(server.issue("alice"))
    old = world.get(grant_id).value
    for _ in range(3):
        with pytest.raises(TokenEndpointError, match="'invalid_target'") as raised:
            world.get(grant_id, resource="https://api/b")
        assert str(raised.value) == "The token endpoint answered 'invalid_target'."
        assert (raised.value.error, raised.value.status) == ("invalid_target", 400)
    assert len(refreshes(server)) == 1
    assert world.get(grant_id).value == old
    clock.advance(EXPIRED)
    # The refresh token is in doubt, but there is no other way, and this server did not spend it.
    assert world.get(grant_id).value != old
    assert not world.stored(grant_id).control.doubt
    assert world.told("token_refresh_failed") == 1


def test_a12_a_server_that_spends_the_token_ends_in_one_clean_login_required(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore
) -> None:
    world = make_world(server, store=any_store, clock=clock, engine=PATIENT)
    grant_id = world.sign_in(server.issue("alice"))
    with pytest.raises(TokenEndpointError):
        world.get(grant_id, resource="https://api/b")
    server.kill()
    clock.advance(EXPIRED)
    results = together(16, lambda _: world.get(grant_id))
    assert {(type(one), one.reason) for one in results} == {(LoginRequired, "invalid_grant")}
    assert len(refreshes(server)) == 2
    assert world.told("grant_revoked") == 1


# -- A14


class LocklessStore(WatchedStore):
    """Two clusters that share the records, but no lock."""

    def begin(self, key: str, *, owner: str, **rest: Any) -> Begun:
        stored = self.read(key)
        assert stored is not None
        return Begun(status="held", version=stored.control.version, now=stored.now)


def test_a14_the_loser_of_a_race_returns_the_winners_token(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore
) -> None:
    shared = LocklessStore(any_store)
    winner, loser = (make_world(server, store=shared, clock=clock) for _ in range(2))
    grant_id = winner.sign_in(server.issue("alice"))
    clock.advance(EXPIRED)
    go = loser.stops.close("send")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(loser.get, grant_id)
        loser.stops.wait("send")
        token = winner.get(grant_id).value
        record = winner.stored(grant_id)
        # The winner's token has been used for a refresh by now, and this server is forgiving.
        server.reuse = "allow"
        server.add(INVALID_GRANT, path="/token")
        go.set()
        assert late.result(WAIT).value == token
    assert winner.stored(grant_id).grant == record.grant
    assert winner.stored(grant_id).control == record.control
    assert (loser.told("grant_revoked"), loser.told("token_refresh_failed")) == (0, 0)


# -- A15

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Child:
    """A forked process that does one thing and tells what came of it."""

    def __init__(self, job: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                result = job()
            except BaseException as error:
                result = repr(error)
            os.write(writer, pickle.dumps(result))
            os._exit(0)
        os.close(writer)

    def result(self) -> Any:
        with os.fdopen(self._reader, "rb") as reader:
            data = reader.read()
        os.waitpid(self.pid, 0)
        return pickle.loads(data)  # noqa: S301 - our own child


def sqlite_world(server: RotatingTokenServer, clock: FakeClock, tmp_path: Path) -> World:
    store = SQLiteStore(tmp_path / "grants.sqlite3", clock=clock, timeout=5)
    return make_world(server, store=store, clock=clock)


@needs_fork
@forks
def test_a15_four_workers_forked_after_use_make_one_refresh(
    server: RotatingTokenServer, clock: FakeClock, tmp_path: Path
) -> None:
    world = sqlite_world(server, clock, tmp_path)
    grant_id = world.sign_in(server.issue("alice"))
    world.get(grant_id, force_renewal=True)
    before = world.store.owners[0]
    clock.advance(EXPIRED)
    server.latency = 0.2

    def work() -> tuple[set[str], list[str]]:
        found = values(together(8, lambda _: world.get(grant_id)))
        return found, world.store.owners[1:]

    children = [Child(work) for _ in range(4)]
    results = [child.result() for child in children]
    assert len({token for found, _ in results for token in found}) == 1
    assert len(refreshes(server)) == 2
    owners = [owner for _, made in results for owner in made]
    assert len({before, *owners}) == len(owners) + 1


@needs_fork
@forks
def test_a15_a_child_forked_while_a_thread_leads_a_flight_waits_for_nothing_of_it(
    server: RotatingTokenServer, clock: FakeClock, tmp_path: Path
) -> None:
    world = sqlite_world(server, clock, tmp_path)
    alice, bob = (world.sign_in(server.issue(name), sub=name) for name in ("alice", "bob"))
    clock.advance(EXPIRED)
    go = world.stops.close("send")
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(world.get, alice)
        world.stops.wait("send")
        child = Child(lambda: (world.get(bob).value, world.get(alice).value))
        server.wait_for(1, path="/token")
        go.set()
        token = leader.result(WAIT).value
    assert child.result() == (world.get(bob).value, token)
    assert len(refreshes(server)) == 2


@needs_fork
@forks
def test_a15_a_lock_that_a_thread_of_the_parent_holds_is_free_in_the_child() -> None:
    lock = ProcessLock()
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            release.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(WAIT)

    def take() -> str:
        with lock:
            return "taken"

    child = Child(take)
    assert child.result() == "taken"
    release.set()
    thread.join()


@needs_fork
@forks
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc")
def test_a15_children_share_no_connection_to_the_store_and_no_socket(
    server: RotatingTokenServer, clock: FakeClock, tmp_path: Path
) -> None:
    world = sqlite_world(server, clock, tmp_path)
    grant_id = world.sign_in(server.issue("alice"))
    endpoint = world.state.provider().endpoint
    # An idle connection to the server stays in the pool.
    assert endpoint.revoke("nobody's")

    def files() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum("grants.sqlite3" in os.readlink(link) for link in links if link.exists())

    def work() -> tuple[int, int]:
        before = files()
        world.get(grant_id)
        endpoint.revoke("nobody's")
        return before, files()

    children = [Child(work) for _ in range(2)]
    for before, after in [child.result() for child in children]:
        assert before == 0 < after
    endpoint.revoke("nobody's")
    connections = [one.connection for one in server.requests if one.path == "/revoke"]
    assert len(connections) == 4
    # The parent goes on with its own; each child has opened another.
    assert connections[0] == connections[-1]
    assert len(set(connections)) == 3


# -- A17, A20


def test_a17_50_users_in_one_thread_pool_get_their_own_tokens_only(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore
) -> None:
    server.lifetime = 10**6
    server.decorate = lambda answer: answer | {"expires_in": 300}
    world = make_world(server, store=any_store, clock=clock, engine=PATIENT)
    users = [f"user{number}" for number in range(50)]
    grants = {
        user: world.sign_in(server.issue(user) | {"expires_in": 300}, sub=user) for user in users
    }
    calls = users * 200
    random.Random(17).shuffle(calls)

    def call(number: int) -> bool:
        if number % 2500 == 2499:
            clock.advance(EXPIRED)
        user = calls[number]
        token = world.get(grants[user])
        known = server.lookup(token.value)
        return known is not None and known.subject == user == token.claims["sub"]

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(call, range(len(calls)))) == {True}
    assert server.replays == 0
    assert 50 <= len(refreshes(server)) <= 50 * 4


def test_a20_a_lifetime_of_20_s_with_a_leeway_of_60_s_means_a_refresh_per_15_s(
    server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore
) -> None:
    server.lifetime, server.clock = 20, clock
    world = make_world(server, store=any_store, clock=clock, engine=PATIENT)
    grant_id = world.sign_in(server.issue("alice"))
    moments = [0.0]
    for step in range(1, 481):
        clock.advance(0.25)
        before = len(refreshes(server))
        assert server.lookup(world.get(grant_id).value) is not None
        if len(refreshes(server)) > before:
            moments.append(step / 4)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert min(gaps) >= 15
    assert len(gaps) >= 6


# -- signals


def test_signals_are_sent_when_neither_lease_nor_flight_is_held(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock, engine=PATIENT)
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(EXPIRED)
    seen: list[tuple[str | None, str]] = []

    def look(sender: object, grant_id: str, **details: Any) -> None:
        control = world.stored(grant_id).control
        # With the flight held this would wait for itself.
        with ThreadPoolExecutor(1) as pool:
            token = pool.submit(world.get, grant_id).result(WAIT)
        seen.append((control.lease_owner, token.value))

    with token_refreshed.connected_to(look, sender=world.state.app):
        token = world.get(grant_id)
    assert seen == [(None, token.value)]
