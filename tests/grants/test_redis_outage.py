"""Redis is away for a while under load, or comes back with less than it had."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import redis
from flask import Flask

from flask_atm import ATM, current_user_token, requires_token
from flask_atm.errors import LoginRequired, StoreError
from flask_atm.grants.parameters import EngineParameters
from flask_atm.stores import RedisStore
from flask_atm.testing import sign_in
from flask_atm.tokens import TokenParameters
from tests.grants.outage import Load, Report
from tests.grants.support import Setup, grant_from
from tests.grants.test_redis_grants import QUICK
from tests.grants.tools import WAIT, World, make_world, refreshes, settings, together
from tests.servers import RotatingTokenServer
from tests.servers.redis_server import RedisServer

#: A tenth, but for what a busy host needs to answer at all: L = 4.5 s, W = 7.7 s.
TENTH = replace(
    EngineParameters().scaled(0.1),
    timeout=3.0,
    send_window=0.4,
    doubt_wait=0.5,
    store_operation=0.2,
)


@pytest.fixture
def server() -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer() as running:
        yield running


@dataclass(frozen=True, kw_only=True)
class Outage:
    """How large, and how long."""

    users: int
    processes: int
    threads: int
    engine: EngineParameters
    lifetime: float
    before: float
    away: float
    after: float


def go_through(
    outage: Outage,
    server: RotatingTokenServer,
    redis_server: RedisServer,
    *,
    go: Callable[[], object],
    come: Callable[[], object],
) -> tuple[Report, float, float]:
    """Let the store go away in the middle of several renewals, and come back."""
    server.lifetime, server.latency = outage.lifetime, 0.02
    connect, operation = outage.engine.store_connect, outage.engine.store_operation
    url = f"{redis_server.url}?socket_connect_timeout={connect}&socket_timeout={operation}"
    # Said here, because each process reads it and this server is in threads of this one.
    endpoints = {"ATM_TOKEN_ENDPOINT": server.token_endpoint, "ATM_SIGN_IN": False}
    setup = Setup(config=settings(server, url, **endpoints), engine=outage.engine)
    state = setup.state()
    grant_ids = [
        grant_from(state, server.issue(f"user-{number}"), sub=f"user-{number}")
        for number in range(outage.users)
    ]
    state.store.close()  # type: ignore[attr-defined]
    with Load(
        setup,
        grant_ids,
        processes=outage.processes,
        threads=outage.threads,
        wait=60 + outage.away,
    ) as load:
        time.sleep(outage.before)
        server.hold()
        server.wait_held(3)
        gone = time.monotonic()
        go()
        server.release()
        time.sleep(outage.away)
        come()
        back = time.monotonic()
        time.sleep(outage.after)
    report = load.report()
    _nobody_was_signed_out(report, server, outage.users)
    _nothing_was_lost(setup, grant_ids, server)
    assert report.refused_in_vain(gone, outage.engine.copy_age) == []
    # What could be served was served, and not everything could.
    away = report.outcomes(gone, back)
    assert away["ok"]
    assert away["StoreError"]
    return report, gone, back


def _nobody_was_signed_out(report: Report, server: RotatingTokenServer, users: int) -> None:
    assert set(report.outcomes()) <= {"ok", "StoreError", "ServerUnavailable"}
    tokens = vars(server)["_access_tokens"]
    assert {one.user for one in report.calls} == set(range(users))
    for one in report.calls:
        assert one.outcome != "ok" or tokens[one.token].subject == f"user-{one.user}"
    for last in report.last:
        assert len(last) == users
        assert all(last)


def _nothing_was_lost(setup: Setup, grant_ids: list[str], server: RotatingTokenServer) -> None:
    """Each refresh token was sent once, and the record has the one that is good."""
    assert Counter(refreshes(server)).most_common(1)[0][1] == 1
    assert server.replays == 0
    assert not any(grant.dead for grant in server.grants.values())
    state = setup.state()
    tokens = state.provider().tokens
    for grant_id in grant_ids:
        assert tokens.get(grant_id, TokenParameters(force_renewal=True)).refreshable
    state.store.close()  # type: ignore[attr-defined]
    assert server.replays == 0
    assert not any(grant.dead for grant in server.grants.values())


# -- A23, C2: away for longer than a lease, under load


@pytest.fixture
def safe_redis() -> Iterator[RedisServer]:
    """A server that has written to its disk what it says that it has."""
    with RedisServer("--appendfsync", "always", appendonly=True) as redis_server:
        yield redis_server


def killed(redis_server: RedisServer) -> tuple[Callable[[], object], Callable[[], object]]:
    return redis_server.kill, redis_server.start


def hanging(redis_server: RedisServer) -> tuple[Callable[[], object], Callable[[], object]]:
    return redis_server.pause, redis_server.resume


@pytest.mark.parametrize("how", [killed, hanging])
def test_c2_a23_redis_is_away_for_3_s_under_load_and_nobody_is_signed_out(
    server: RotatingTokenServer,
    safe_redis: RedisServer,
    how: Callable[[RedisServer], tuple[Callable[[], object], Callable[[], object]]],
) -> None:
    outage = Outage(
        users=40,
        processes=3,
        threads=6,
        engine=TENTH,
        lifetime=3,
        before=1.0,
        away=TENTH.lease + 0.4,
        after=TENTH.lease,
    )
    go, come = how(safe_redis)
    go_through(outage, server, safe_redis, go=go, come=come)


@pytest.mark.slow
@pytest.mark.parametrize("how", [killed, hanging])
def test_c2_a23_redis_is_away_for_30_s_under_load_with_the_real_times(
    server: RotatingTokenServer,
    safe_redis: RedisServer,
    how: Callable[[RedisServer], tuple[Callable[[], object], Callable[[], object]]],
) -> None:
    outage = Outage(
        users=200,
        processes=4,
        threads=8,
        engine=EngineParameters(),
        lifetime=20,
        before=25.0,
        away=30.0,
        after=30.0,
    )
    go, come = how(safe_redis)
    report, gone, back = go_through(outage, server, safe_redis, go=go, come=come)
    longest = max(one.ended - one.begun for one in report.calls)
    print(f"{how.__name__}: {len(report.calls)} calls, {server.refreshes} refreshes")
    print(f"  before {report.outcomes(before=gone)}")
    print(f"  away   {report.outcomes(gone, back)}")
    print(f"  after  {report.outcomes(after=back)}, converged after {report.converged(back):.2f} s")
    print(f"  the longest call took {longest:.1f} s")
    assert longest < outage.engine.wait + 1


# -- A23: 128 callers wait at the door when it comes back


def test_a23_the_kept_answer_lands_before_any_of_128_callers_sends_again(
    server: RotatingTokenServer, safe_redis: RedisServer
) -> None:
    """Redis is away for longer than the lease: when it comes back, the token is in doubt."""
    engine = replace(TENTH, timeout=0.6, doubt_wait=1.0)
    grant_id = _world(server, safe_redis, ahead=-1000).sign_in(server.issue("alice"))
    worlds = [_world(server, safe_redis, engine=engine) for _ in range(8)]
    begun = redis.Redis.from_url(safe_redis.url)
    server.hold()
    with ThreadPoolExecutor(129) as pool:
        refresher = pool.submit(worlds[0].get, grant_id)
        server.wait_held()
        lapses = time.monotonic() + engine.lease
        begun.close()
        safe_redis.kill()
        server.release()
        token = refresher.result(WAIT).value
        at_the_door = threading.Barrier(129)
        back = threading.Event()

        def until_served(number: int) -> str:
            world = worlds[number % 8]
            at_the_door.wait(WAIT)
            while True:
                try:
                    return world.get(grant_id).value
                except StoreError:
                    assert not back.wait(0.05) or time.monotonic() < give_up

        give_up = time.monotonic() + 6 * WAIT
        callers = [pool.submit(until_served, number) for number in range(128)]
        at_the_door.wait(WAIT)
        threading.Event().wait(max(0.0, lapses - time.monotonic()))
        safe_redis.start()
        back.set()
        assert {one.result(6 * WAIT) for one in callers} == {token}
    assert len(refreshes(server)) == 1
    assert worlds[1].get(grant_id, force_renewal=True).value != token
    assert (len(refreshes(server)), server.replays) == (2, 0)


def _world(
    server: RotatingTokenServer,
    redis_server: RedisServer,
    *,
    ahead: float = 0.0,
    engine: EngineParameters = QUICK,
) -> World:
    return make_world(
        server,
        store=RedisStore(redis_server.url, connect_timeout=0.2, timeout=0.5),
        clock=lambda: time.time() + ahead,
        engine=engine,
    )


# -- C3: it comes back empty


def _application(server: RotatingTokenServer, redis_server: RedisServer) -> Flask:
    app = Flask("test")
    app.config.update(settings(server, redis_server.url), SERVER_NAME="localhost")
    app.config["ATM_TOKEN_ENDPOINT"] = server.token_endpoint
    atm = ATM(app)
    mine = requires_token(lambda: current_user_token.value)
    app.add_url_rule("/mine", "mine", mine)
    app.add_url_rule("/ours", "ours", lambda: atm.get_client_token().value)
    return app


def test_c3_an_empty_redis_means_sign_in_again_and_client_tokens_go_on(
    server: RotatingTokenServer, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as redis_server:
        app, another = (_application(server, redis_server) for _ in range(2))
        users = [app.test_client() for _ in range(5)]
        for number, user in enumerate(users):
            sign_in(user, {"sub": f"user-{number}"})
            assert user.get("/mine").status_code == 200
        token = users[0].get("/ours").text
        assert another.test_client().get("/ours").text == token
        redis_server.kill()
        assert users[0].get("/mine").status_code == 200  # it was read a moment ago
        assert _application(server, redis_server).test_client().get("/ours").status_code == 200
        redis_server.start()
        for _ in range(2):
            assert [user.get("/mine").status_code for user in users] == [401] * 5
        anew = _application(server, redis_server).test_client().get("/ours")
        assert (anew.status_code, anew.text != token) == (200, True)
        lost = [one for one in caplog.records if "another store" in one.getMessage()]
        assert [one.levelname for one in lost] == ["ERROR"]
        sign_in(users[0])
        assert users[0].get("/mine").status_code == 200


# -- C4: the replica that takes over has missed the last write


@pytest.fixture
def replicated() -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary, and a replica of it that has everything."""
    with (
        RedisServer("--repl-diskless-sync-delay", "0") as primary,
        RedisServer() as replica,
    ):
        with redis.Redis.from_url(replica.url) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        catch_up(primary)
        yield primary, replica


def catch_up(primary: RedisServer) -> None:
    """Wait until the replica has what the primary has."""
    with redis.Redis.from_url(primary.url) as client:
        client.set("marker", time.monotonic_ns(), ex=60)
        assert client.execute_command("WAIT", 1, 20_000) == 1


def cut_off(replica: RedisServer) -> None:
    """Let the replica miss what comes now, and be the one that is asked later."""
    with redis.Redis.from_url(replica.url) as client:
        client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize("missed", ["begin and commit", "commit"])
def test_c4_a_replica_that_has_missed_the_last_write_costs_one_sign_in(
    server: RotatingTokenServer, replicated: tuple[RedisServer, RedisServer], missed: str
) -> None:
    primary, replica = replicated
    grant_id = _world(server, primary, ahead=-1000).sign_in(server.issue("alice"))
    other_id = _world(server, primary).sign_in(server.issue("bob"))
    world = _world(server, primary)
    catch_up(primary)

    def miss_the_commit() -> None:
        catch_up(primary)
        cut_off(replica)

    if missed == "commit":
        world.stops.then("begun", miss_the_commit)
    else:
        cut_off(replica)
    assert world.get(grant_id).value
    primary.kill()

    after = [_world(server, replica) for _ in range(4)]
    results = together(32, lambda number: after[number % 4].get(grant_id))
    assert {type(one) for one in results} == {LoginRequired}
    for one in after:
        with pytest.raises(LoginRequired):
            one.get(grant_id)
    assert (len(refreshes(server)), server.replays) == (2, 1)
    assert sum(one.told("grant_revoked") for one in after) == 1
    # Everybody else is where they were.
    assert after[0].get(other_id, force_renewal=True).value


def test_c4_a_token_that_is_still_good_is_used_and_nothing_is_sent(
    server: RotatingTokenServer, replicated: tuple[RedisServer, RedisServer]
) -> None:
    primary, replica = replicated
    world = _world(server, primary)
    grant_id = world.sign_in(server.issue("alice"))
    token = world.get(grant_id).value
    catch_up(primary)
    cut_off(replica)
    assert world.get(grant_id, force_renewal=True).value != token
    primary.kill()
    after = _world(server, replica)
    assert after.get(grant_id).value == token
    assert len(refreshes(server)) == 1


# -- C6: nothing ends before its grant, and nothing throws it away


def test_c6_what_a_sign_in_writes_ends_with_it_and_eviction_is_warned_of(
    server: RotatingTokenServer, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--maxmemory", "200mb", "--maxmemory-policy", "allkeys-lru")
    with RedisServer(*options) as redis_server:
        world = _world(server, redis_server)
        grant_id = world.sign_in(server.issue("alice"), sid="sid-1")
        world.get(grant_id, force_renewal=True)
        ends_at = world.stored(grant_id).control.ends_at
        with redis.Redis.from_url(redis_server.url) as client:
            ends = {key: client.pexpiretime(key) / 1000 for key in client.scan_iter()}
        assert len(ends) == 4  # the grant, two indexes, and the list of all
        assert all(end == pytest.approx(ends_at, abs=0.01) for end in ends.values())
        world.state.provider().tokens.end(grant_id)
        with redis.Redis.from_url(redis_server.url) as client:
            ends = {key: client.pexpiretime(key) / 1000 for key in client.scan_iter()}
        assert all(end == pytest.approx(ends_at, abs=0.01) for end in ends.values())
    said = [one.getMessage() for one in caplog.records if "maxmemory-policy" in one.getMessage()]
    assert len(said) == 1
    assert "allkeys-lru" in said[0]
    assert "noeviction" in said[0]
