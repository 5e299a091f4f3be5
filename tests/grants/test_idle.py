"""I9: the end of a grant, whoever uses it, and of one that nobody uses. By the store's clock."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from flask_atm.config import Config
from flask_atm.errors import ConfigurationError, LoginRequired, ServerUnavailable
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.vault import record_key
from flask_atm.protocols import AtomicGrantStore
from flask_atm.signals import user_logged_out
from flask_atm.testing import FakeClock
from tests.grants.tools import World, make_world, tokens
from tests.servers import FaultyServer, Reply

IDLE = 1200.0
LONG = {"expires_in": 14 * 86400}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_700_000_000.0)  # the stores keep whole milliseconds


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as faulty:
        yield faulty


@pytest.fixture
def world(server: FaultyServer, clock: FakeClock, any_store: AtomicGrantStore) -> World:
    return make_world(server, store=any_store, clock=clock, ATM_GRANT_IDLE_TIMEOUT=IDLE)


def is_open(world: World, grant_id: str) -> bool:
    return world.state.provider().tokens.open(grant_id) is not None


def used_at(world: World, grant_id: str) -> float:
    return world.stored(grant_id).grant.used_at


def told(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def listen(app: Any, **details: Any) -> None:
        found.append(details)

    user_logged_out.connect(listen, sender=world.state.app, weak=False)
    return found


def test_i9_a_grant_that_nobody_uses_ends(world: World, clock: FakeClock) -> None:
    events = told(world)
    grant_id = world.sign_in(tokens(**LONG))
    clock.advance(IDLE - 0.1)
    assert is_open(world, grant_id)
    clock.advance(IDLE)
    assert not is_open(world, grant_id)
    assert not is_open(world, grant_id)
    assert [(one["provider"], one["grant_id"]) for one in events] == [("oidc", grant_id)]
    assert events[0]["claims"]["sub"] == "alice"


def test_i9_a_token_is_refused_for_a_grant_that_nobody_used(world: World, clock: FakeClock) -> None:
    grant_id = world.sign_in(tokens(**LONG))
    clock.advance(IDLE)
    for _ in range(2):
        with pytest.raises(LoginRequired) as caught:
            world.get(grant_id)
        assert caught.value.reason == "ended"


def test_i9_its_refresh_token_is_revoked(
    world: World, clock: FakeClock, server: FaultyServer
) -> None:
    server.always(Reply(body={}), "/revoke")
    grant_id = world.sign_in(tokens(**LONG))
    clock.advance(IDLE)
    assert not is_open(world, grant_id)
    assert world.state.provider().tokens.outbox.drain().revoked == 1
    (sent,) = [one for one in server.requests if one.path == "/revoke"]
    assert sent.parameter("token") == "refresh-0"


def test_i9_refresh_tokens_stay_where_they_are_not_to_be_revoked(
    server: FaultyServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock, ATM_GRANT_IDLE_TIMEOUT=IDLE, ATM_REVOKE_ON_LOGOUT=False)
    grant_id = world.sign_in(tokens(**LONG))
    clock.advance(IDLE)
    assert not is_open(world, grant_id)
    assert world.state.provider().tokens.outbox.drain().revoked == 0


def test_i9_every_use_counts(world: World, clock: FakeClock) -> None:
    grant_id = world.sign_in(tokens(**LONG))
    for turn in range(40):
        clock.advance(0.9 * IDLE)
        if turn % 2:
            assert is_open(world, grant_id)
        else:
            assert world.get(grant_id).value == "access-0"


def test_i9_the_absolute_end_holds_even_if_tokens_are_refreshed(
    server: FaultyServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock, ATM_GRANT_LIFETIME=3600, ATM_GRANT_IDLE_TIMEOUT=IDLE)
    begun = clock()
    grant_id = world.sign_in(tokens())
    number = 0
    while clock() < begun + 3600 - 400:
        number += 1
        server.always(Reply(body=tokens(number)), "/token")
        clock.advance(400)
        assert world.get(grant_id).value == f"access-{number}"
    assert number == 8
    clock.set(begun + 3600 - 0.1)
    assert is_open(world, grant_id)
    clock.set(begun + 3600)
    assert not is_open(world, grant_id)
    with pytest.raises(LoginRequired) as caught:
        world.get(grant_id)
    assert caught.value.reason == "ended"


def test_i9_nothing_ends_by_itself_without_the_setting(
    server: FaultyServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock)
    grant_id = world.sign_in(tokens(**LONG))
    clock.advance(13 * 86400)
    assert is_open(world, grant_id)
    assert world.store.count("update") == 0


# -- what it costs


def test_n8_one_read_and_a_write_for_each_twentieth_of_the_time(
    world: World, clock: FakeClock
) -> None:
    grant_id = world.sign_in(tokens(**LONG))
    world.store.calls.clear()
    for _ in range(60):
        assert world.get(grant_id).value == "access-0"
        assert is_open(world, grant_id)
    assert world.store.mine == ["read"] * 120
    clock.advance(IDLE / 20 - 0.125)
    assert is_open(world, grant_id)
    assert world.store.count("update") == 0
    clock.advance(0.25)
    world.store.calls.clear()
    for _ in range(9):
        assert is_open(world, grant_id)
    assert world.store.mine == ["read", "update", *["read"] * 8]
    assert used_at(world, grant_id) == clock()


def test_a_refresh_is_a_use_and_needs_no_write_of_its_own(
    world: World, clock: FakeClock, server: FaultyServer
) -> None:
    grant_id = world.sign_in(tokens())
    clock.advance(IDLE / 20 - 1)
    server.always(Reply(body=tokens(1, **LONG)), "/token")
    world.store.calls.clear()
    assert world.get(grant_id, rejected="access-0").value == "access-1"
    assert "update" not in world.store.mine
    assert abs(used_at(world, grant_id) - clock()) < 1.0


def test_a_token_that_is_due_is_refreshed_upon_the_use_that_was_written(
    world: World, clock: FakeClock, server: FaultyServer
) -> None:
    grant_id = world.sign_in(tokens())
    clock.advance(400)
    server.always(Reply(body=tokens(1)), "/token")
    world.store.calls.clear()
    assert world.get(grant_id).value == "access-1"
    assert world.store.mine == ["read", "update", "begin", "commit"]


# -- whose clock, and what is not a use


def test_the_clock_is_that_of_the_store(server: FaultyServer) -> None:
    """The application is half an hour behind: a sign-in does not end at once."""
    there = FakeClock()
    here = FakeClock(there() - 1800)
    world = make_world(
        server,
        clock=here,
        store=MemoryStore(clock=there),
        ATM_GRANT_IDLE_TIMEOUT=IDLE,
    )
    grant_id = world.sign_in(tokens(**LONG))
    assert used_at(world, grant_id) == there()
    assert is_open(world, grant_id)
    there.advance(IDLE)
    assert not is_open(world, grant_id)


def test_a_clock_that_jumps_back_ends_nothing(world: World, clock: FakeClock) -> None:
    grant_id = world.sign_in(tokens(**LONG))
    clock.advance(-3600)
    assert is_open(world, grant_id)
    assert used_at(world, grant_id) == clock()
    clock.advance(IDLE)
    assert not is_open(world, grant_id)


def test_overviews_are_no_use(world: World, clock: FakeClock) -> None:
    grant_id = world.sign_in(tokens(**LONG))
    vault = world.state.provider().tokens.vault
    for _ in range(20):
        clock.advance(IDLE / 20)
        stored = world.store.read(record_key(grant_id))
        assert stored is not None
        assert vault.recognise(record_key(grant_id), stored) is not None
        assert vault.holds(record_key(grant_id))
    assert not is_open(world, grant_id)


def test_a_grant_from_before_the_setting_was_used_when_it_was_renewed(
    server: FaultyServer, clock: FakeClock
) -> None:
    store = MemoryStore(clock=clock)
    before = make_world(server, clock=clock, store=store)
    renewed, forgotten = before.sign_in(tokens()), before.sign_in(tokens(**LONG))
    clock.advance(2 * IDLE)
    server.always(Reply(body=tokens(1, **LONG)), "/token")
    before.get(renewed)
    clock.advance(IDLE / 2)
    after = make_world(server, clock=clock, store=store, ATM_GRANT_IDLE_TIMEOUT=IDLE)
    assert is_open(after, renewed)
    assert not is_open(after, forgotten)


# -- leases, doubt, other processes, a store that is silent


def test_while_somebody_refreshes_nothing_is_written_and_nothing_ends(
    world: World, clock: FakeClock
) -> None:
    grant_id = world.sign_in(tokens(**LONG))
    clock.advance(IDLE - 1)
    key = record_key(grant_id)
    version = world.stored(grant_id).control.version
    world.store.begin(key, owner="x", expected_version=version, lease=600, intent="h")
    clock.advance(2)
    world.store.calls.clear()
    assert is_open(world, grant_id)
    assert world.store.mine == ["read"]
    clock.advance(700)  # the refresh was lost: that is doubt
    assert is_open(world, grant_id)
    assert world.store.count("update") == 0


def test_i9_a_doubt_does_not_keep_a_grant_that_nobody_uses(
    world: World, clock: FakeClock, server: FaultyServer
) -> None:
    """Nobody can have used it after its last token had expired: each try leaves its trace."""
    grant_id = world.sign_in(tokens(expires_in=600))
    key = record_key(grant_id)
    clock.advance(500)
    version = world.stored(grant_id).control.version
    world.store.begin(key, owner="x", expected_version=version, lease=60, intent="h")
    clock.advance(100 + IDLE - 1)
    assert is_open(world, grant_id)
    # Somebody tries, and the provider does not answer: that is a use, too.
    server.always(Reply(status=502), "/token")
    with pytest.raises(ServerUnavailable):
        world.get(grant_id)
    clock.advance(IDLE - 1)
    assert is_open(world, grant_id)
    clock.advance(200)
    assert not is_open(world, grant_id)
    stored = world.store.store.read(key)
    assert stored is None or stored.control.tombstone


def test_two_that_find_it_unused_end_it_once(server: FaultyServer, clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    worlds = [
        make_world(server, clock=clock, store=store, ATM_GRANT_IDLE_TIMEOUT=IDLE) for _ in range(2)
    ]
    events = [told(world) for world in worlds]
    grant_id = worlds[0].sign_in(tokens(**LONG))
    clock.advance(IDLE)
    worlds[0].store.before["delete"] = lambda: is_open(worlds[1], grant_id)
    assert not is_open(worlds[0], grant_id)
    assert sorted(map(len, events)) == [0, 1]


def test_who_uses_it_at_this_moment_keeps_it(server: FaultyServer, clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    world = make_world(server, clock=clock, store=store, ATM_GRANT_IDLE_TIMEOUT=IDLE)
    grant_id = world.sign_in(tokens(**LONG))
    key = record_key(grant_id)
    clock.advance(IDLE)
    snapshot = world.stored(grant_id)

    def use() -> None:
        sealed = world.seal(grant_id, snapshot, version=snapshot.control.version + 1)
        store.update(key, sealed, expected_version=snapshot.control.version)

    world.store.before["delete"] = use
    assert not is_open(world, grant_id)  # to this one it looked unused
    assert store.read(key) is not None
    stored = store.read(key)
    assert stored is not None
    assert not stored.control.tombstone


def test_a_use_that_another_has_written_is_not_written_again(
    world: World, clock: FakeClock
) -> None:
    grant_id = world.sign_in(tokens(**LONG))
    clock.advance(IDLE / 2)

    def another() -> None:
        world.store.before.clear()
        assert is_open(world, grant_id)

    world.store.before["update"] = another
    assert is_open(world, grant_id)
    assert used_at(world, grant_id) == clock()
    assert world.store.count("update") == 3  # one of the sign-in, and of these one too late


def test_a_store_that_takes_no_writes_costs_no_request(
    world: World, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    grant_id = world.sign_in(tokens(**LONG))
    clock.advance(IDLE / 2)
    world.store.lost["update"] = 99
    world.store.calls.clear()
    with caplog.at_level(logging.DEBUG, "flask_atm.store"):
        assert is_open(world, grant_id)
    assert "not written down" in caplog.text
    # Nor is it asked again at once, time-out by time-out.
    clock.advance(IDLE / 4)
    assert is_open(world, grant_id)
    assert world.store.mine == ["read", "update", "read"]


def test_the_time_is_a_number_of_seconds() -> None:
    with pytest.raises(ConfigurationError, match="GRANT_IDLE_TIMEOUT"):
        Config.load({"ATM_GRANT_IDLE_TIMEOUT": -1}, debug=True, testing=True)
