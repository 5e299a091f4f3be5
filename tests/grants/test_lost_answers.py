"""What happens between the steps of a refresh: lost answers, other writers, sign-outs."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from flask_atm.errors import LoginRequired, ServerUnavailable, StoreError
from flask_atm.grants.record import token_hash
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.vault import record_key
from flask_atm.protocols import AtomicGrantStore
from flask_atm.testing.clock import FakeClock
from tests.grants.tools import FAST, WAIT, World, make_world, refreshes, together
from tests.servers import Cut, Reply, RotatingTokenServer
from tests.servers.faulty import Behaviour

STALE, EXPIRED = 260.0, 1000.0
#: Stores keep milliseconds.
LAPSE = FAST.lease + 0.01


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server() -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer() as running:
        yield running


@pytest.fixture
def world(server: RotatingTokenServer, clock: FakeClock, any_store: AtomicGrantStore) -> World:
    return make_world(server, store=any_store, clock=clock)


def sign_in_and_expire(world: World, server: RotatingTokenServer, clock: FakeClock) -> str:
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(EXPIRED)
    return grant_id


class Caller:
    """A call in a thread of its own."""

    def __init__(self, world: World, grant_id: str, **parameters: Any) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(world.get, grant_id, **parameters)

    def result(self) -> str:
        with self._pool:
            return self._future.result(WAIT).value


# -- the send window


def test_a7_whoever_is_stopped_before_the_write_sends_nothing(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    other = make_world(server, store=world.store.store, clock=clock)
    for point in ("begin", "begun", "send", "write"):
        before = len(refreshes(server))
        go = world.stops.close(point)
        caller = Caller(world, grant_id)
        world.stops.wait(point)
        clock.advance(FAST.lease + EXPIRED)
        token = other.get(grant_id).value
        threading.Event().wait(FAST.send_window + FAST.doubt_wait)
        go.set()
        assert caller.result() == token
        assert len(refreshes(server)) == before + 1
        clock.advance(EXPIRED)
    assert server.replays == 0


def test_a7_a_stale_answer_never_overwrites_a_newer_record(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    server.grace = 30
    grant_id = sign_in_and_expire(world, server, clock)
    other = make_world(server, store=world.store.store, clock=clock)
    go = world.stops.close("answered")
    caller = Caller(world, grant_id)
    world.stops.wait("answered")
    clock.advance(LAPSE)
    token = other.get(grant_id).value
    record = other.stored(grant_id)
    go.set()
    assert caller.result() == token
    assert other.stored(grant_id).grant == record.grant


@pytest.mark.parametrize("rotates_for_the_late_one", [False, True])
def test_a7_without_rotation_the_later_request_wins_too(
    world: World, server: RotatingTokenServer, clock: FakeClock, rotates_for_the_late_one: bool
) -> None:
    turns = iter([rotates_for_the_late_one, False])
    server.rotate = lambda: next(turns)
    server.grace = 0
    server.reuse = "allow"
    grant_id = sign_in_and_expire(world, server, clock)
    other = make_world(server, store=world.store.store, clock=clock)
    go = world.stops.close("answered")
    caller = Caller(world, grant_id)
    world.stops.wait("answered")
    clock.advance(LAPSE)
    server.decorate = lambda answer: {
        name: value for name, value in answer.items() if name != "refresh_token"
    }
    token = other.get(grant_id).value
    sent = world.stored(grant_id).grant.refresh_token
    go.set()
    assert caller.result() == token
    kept = world.stored(grant_id).grant
    assert kept.slots[""].token.reveal() == token
    # But a rotated refresh token is never lost.
    assert (kept.refresh_token != sent) is rotates_for_the_late_one


# -- lost answers


@pytest.mark.parametrize("how", ["cut", "bad gateway", "hang"])
def test_a6_after_a_lost_answer_nobody_with_a_valid_token_sends_again(
    world: World, server: RotatingTokenServer, clock: FakeClock, how: str
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    old = world.get(grant_id).value
    clock.advance(STALE)
    spoilt: Callable[[Reply], Behaviour] = {
        "cut": lambda reply: Cut(reply=reply),
        "bad gateway": lambda reply: Reply(502, "<html>"),
        "hang": lambda reply: Reply(200, {}, delay=2 * FAST.timeout),
    }[how]  # type: ignore[assignment]
    server.spoil(spoilt)
    for _ in range(3):
        assert world.get(grant_id).value == old
        assert world.get(grant_id, force_renewal=True).value == old
        clock.advance(5)
    assert len(refreshes(server)) == 1
    control = world.stored(grant_id).control
    assert (control.doubt, control.failures, control.lease_owner) == (True, 1, None)
    # 25 s later there is none: one attempt for all, and the server has no grace.
    clock.advance(30)
    results = together(16, lambda _: world.get(grant_id))
    assert {(type(one), one.reason) for one in results} == {(LoginRequired, "invalid_grant")}
    assert len(refreshes(server)) == 2
    assert (world.told("grant_revoked"), server.replays) == (1, 1)


def test_a5_with_grace_at_the_server_a_lost_answer_costs_nothing(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    server.grace = 30
    grant_id = sign_in_and_expire(world, server, clock)
    server.spoil(lambda reply: Cut(reply=reply))
    with pytest.raises(ServerUnavailable) as raised:
        world.get(grant_id)
    clock.advance(raised.value.retry_after)
    assert world.get(grant_id)
    assert len(refreshes(server)) == 2
    assert not world.stored(grant_id).control.doubt


def test_the_doubt_is_not_sent_before_retry_at_whatever_was_read_before(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    """B read the record before A began, and begins after A has failed."""
    grant_id = sign_in_and_expire(world, server, clock)
    other = make_world(server, store=world.store.store, clock=clock)
    server.spoil(lambda reply: Cut(reply=reply))
    go = other.stops.close("begin")
    late = Caller(other, grant_id)
    other.stops.wait("begin")
    with pytest.raises(ServerUnavailable):
        world.get(grant_id)
    go.set()
    with pytest.raises(ServerUnavailable):
        late.result()
    assert len(refreshes(server)) == 1


def test_a_token_that_got_invalid_grant_is_not_sent_again_whatever_was_read_before(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    other = make_world(server, store=world.store.store, clock=clock)
    server.kill()
    go = other.stops.close("begin")
    late = Caller(other, grant_id)
    other.stops.wait("begin")
    with pytest.raises(LoginRequired):
        world.get(grant_id)
    go.set()
    with pytest.raises(LoginRequired):
        late.result()
    assert len(refreshes(server)) == 1
    assert world.told("grant_revoked") + other.told("grant_revoked") == 1


def test_a22_the_doubt_survives_a_re_send_that_is_answered_503(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    server.add(Cut(), path="/token")
    server.add(Reply(503, {"error": "temporarily_unavailable"}), path="/token")
    server.add(Reply(429), path="/token")
    for attempt in range(1, 4):
        with pytest.raises(ServerUnavailable) as raised:
            world.get(grant_id)
        control = world.stored(grant_id).control
        assert (control.doubt, control.failures) == (True, attempt)
        clock.advance(raised.value.retry_after)
    # The server had not seen the first one: the token is still good.
    assert world.get(grant_id)
    assert not world.stored(grant_id).control.doubt


def test_a22_the_doubt_survives_a_begin_whose_reply_was_lost(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    server.spoil(lambda reply: Cut(reply=reply))
    with pytest.raises(ServerUnavailable) as raised:
        world.get(grant_id)
    clock.advance(raised.value.retry_after)
    world.store.lost["begin"] = 1
    with pytest.raises(StoreError):
        world.get(grant_id)
    assert len(refreshes(server)) == 1
    clock.advance(LAPSE)
    control = world.stored(grant_id).control
    assert control.doubt
    with pytest.raises(LoginRequired):
        world.get(grant_id)


def test_a9_a_lost_reply_to_begin_locks_nobody_out_for_longer_than_the_lease(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    world.store.lost["begin"] = 1
    with pytest.raises(StoreError):
        world.get(grant_id)
    assert refreshes(server) == []
    clock.advance(LAPSE)
    assert world.get(grant_id)
    assert len(refreshes(server)) == 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, ValueError])
@pytest.mark.parametrize(
    ("point", "doubt"), [("send", False), ("answered", True), ("commit", True)]
)
def test_a22_any_exception_after_the_write_leaves_the_doubt(
    any_store: AtomicGrantStore,
    server: RotatingTokenServer,
    clock: FakeClock,
    error: type[BaseException],
    point: str,
    doubt: bool,
) -> None:
    # Nothing has to run out here, however slow the machine is.
    patient = replace(FAST, timeout=WAIT, send_window=WAIT)
    world = make_world(server, store=any_store, clock=clock, engine=patient)
    grant_id = sign_in_and_expire(world, server, clock)

    def stop() -> None:
        raise error

    world.stops.then(point, stop)
    with pytest.raises(error):
        world.get(grant_id)
    control = world.stored(grant_id).control
    assert (control.lease_owner, control.doubt) == (None, doubt)
    assert (control.intent is not None) is doubt
    assert len(refreshes(server)) == doubt


def test_in_doubt_an_answer_that_somebody_still_holds_lands_first(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    other = make_world(server, store=world.store.store, clock=clock)
    go = world.stops.close("commit")
    first = Caller(world, grant_id)
    world.stops.wait("commit")
    clock.advance(LAPSE)
    look = other.stops.close("doubt")
    second = Caller(other, grant_id)
    other.stops.wait("doubt")
    go.set()
    token = first.result()
    look.set()
    assert second.result() == token
    assert len(refreshes(server)) == 1


# -- another writer


def test_a21_another_writer_is_refused_while_a_lease_is_held(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    go = world.stops.close("answered")
    caller = Caller(world, grant_id)
    world.stops.wait("answered")
    assert rewrite(world, grant_id) == "busy"
    clock.advance(LAPSE)
    assert rewrite(world, grant_id) == "busy"
    go.set()
    token = caller.result()
    assert world.stored(grant_id).grant.slots[""].token.reveal() == token


def rewrite(world: World, grant_id: str) -> str:
    """What a rotation of keys does, or a change of the claims."""
    snapshot = world.stored(grant_id)
    changed = replace(
        snapshot, grant=replace(snapshot.grant, claims={"sub": "alice", "changed": True})
    )
    version = snapshot.control.version
    return world.store.update(
        record_key(grant_id),
        world.seal(grant_id, changed, version=version + 1),
        expected_version=version,
    )


def test_a21_a_writer_between_read_and_begin_is_read_first(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    world.stops.then("begin", lambda: rewrite(world, grant_id))
    assert world.get(grant_id).claims["changed"]
    assert world.stored(grant_id).grant.claims["changed"]
    assert len(refreshes(server)) == 1


@pytest.mark.parametrize("sealed_anew", [False, True])
def test_a21_whatever_moved_the_version_the_rotated_token_goes_on_top(
    world: World, server: RotatingTokenServer, clock: FakeClock, sealed_anew: bool
) -> None:
    """Somebody took the lapsed lease over, and gave it back without sending anything."""
    response = server.issue("alice")
    grant_id = world.sign_in(response)
    clock.advance(EXPIRED)
    go = world.stops.close("commit")
    caller = Caller(world, grant_id)
    world.stops.wait("commit")
    clock.advance(LAPSE)
    key, store = record_key(grant_id), world.store.store
    begun = store.begin(
        key,
        owner="other",
        expected_version=world.stored(grant_id).control.version,
        lease=FAST.lease,
        intent=token_hash(response["refresh_token"]),
    )
    assert (begun.status, begun.doubt) == ("held", True)
    store.abort(key, owner="other", clear_intent=True)
    if sealed_anew:
        snapshot = world.stored(grant_id)
        changed = replace(snapshot, grant=replace(snapshot.grant, claims={"sub": "x", "new": 1}))
        version = snapshot.control.version
        sealed = world.seal(grant_id, changed, version=version + 1)
        assert store.commit(key, sealed, expected_version=version, commit_id="x") == "ok"
    go.set()
    token = caller.result()
    record = world.stored(grant_id)
    assert record.grant.slots[""].token.reveal() == token
    assert record.grant.refresh_token is not None
    assert record.grant.refresh_token.reveal() != response["refresh_token"]
    assert (record.control.doubt, record.control.intent) == (False, None)
    assert ("new" in record.grant.claims) is sealed_anew
    clock.advance(EXPIRED)
    assert world.get(grant_id).value != token
    assert server.replays == 0


# -- A8, A23: the store is away when the answer is there


def test_a8_a_commit_whose_reply_is_lost_is_made_once(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    before = world.stored(grant_id).control.version
    world.store.lost["commit"] = 2
    token = world.get(grant_id).value
    assert world.get(grant_id).value == token
    assert world.stored(grant_id).control.version == before + 1
    assert len(refreshes(server)) == 1


def test_a23_a_kept_answer_lands_before_anybody_sends_again(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    other = make_world(server, store=world.store.store, clock=clock)
    world.stops.then("commit", lambda: setattr(world.store, "down", True))
    other.store.down = True
    token = world.get(grant_id).value
    # Served from memory meanwhile, and nothing is sent.
    clock.advance(30)
    assert {one.value for one in together(16, lambda _: world.get(grant_id))} == {token}
    with pytest.raises(StoreError):
        other.get(grant_id)
    assert world.told("token_refreshed") == 1

    other.store.down = False
    returned = threading.Timer(0.03, lambda: setattr(world.store, "down", False))
    returned.start()
    results = together(128, lambda number: (world, other)[number % 2].get(grant_id))
    returned.join()
    assert {getattr(one, "value", one) for one in results} == {token}
    assert len(refreshes(server)) == 1
    assert server.replays == 0
    assert not other.stored(grant_id).control.doubt
    assert other.stored(grant_id).grant.slots[""].token.reveal() == token


# -- sign-out meanwhile


@pytest.mark.parametrize("point", ["begin", "begun", "send", "answered", "commit"])
def test_i1_a_sign_out_during_a_refresh_wins(
    world: World, server: RotatingTokenServer, clock: FakeClock, point: str
) -> None:
    response = server.issue("alice")
    grant_id = world.sign_in(response)
    clock.advance(EXPIRED)
    tokens = world.state.provider().tokens
    go = world.stops.close(point)
    caller = Caller(world, grant_id)
    world.stops.wait(point)
    assert tokens.end(grant_id) is not None
    go.set()
    with pytest.raises(LoginRequired) as raised:
        caller.result()
    assert raised.value.reason == "ended"
    assert world.told("token_refreshed") == 0
    stored = world.store.read(record_key(grant_id))
    assert stored is not None
    assert stored.control.tombstone
    with pytest.raises(LoginRequired):
        world.get(grant_id)
    (grant,) = server.grants.values()
    if point not in ("begin",):
        # What came too late is revoked at once, the old one by the outbox.
        assert server.revocations == ([grant.refresh_token] if refreshes(server) else [])
    tokens.outbox.drain()
    assert grant.dead
    assert response["refresh_token"] in server.revocations


def test_i1_a_second_sign_out_does_not_forget_what_is_to_be_revoked(
    world: World, server: RotatingTokenServer
) -> None:
    response = server.issue("alice")
    grant_id = world.sign_in(response)
    tokens = world.state.provider().tokens
    assert tokens.end(grant_id) is not None
    assert tokens.end(grant_id) is None
    assert tokens.end(grant_id, revoke=False) is None
    assert tokens.outbox.drain().revoked == 1
    assert server.revocations == [response["refresh_token"]]
    assert tokens.end(grant_id) is None


def test_i1_a_refresh_that_ends_between_read_and_delete_is_revoked_too(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    other = make_world(server, store=world.store.store, clock=clock)
    found: list[str] = []

    def refresh_once() -> None:
        if not found:
            found.append(other.get(grant_id).value)

    world.store.before["delete"] = refresh_once
    tokens = world.state.provider().tokens
    assert tokens.end(grant_id) is not None
    assert found
    tokens.outbox.drain()
    (grant,) = server.grants.values()
    assert server.revocations == [grant.refresh_token]
    with pytest.raises(LoginRequired):
        other.get(grant_id)


def test_i1_what_comes_too_late_is_not_revoked_under_a_newer_sign_in(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    """Some servers end the whole session with one refresh token."""
    grant_id = world.sign_in(server.issue("alice"), sid="session")
    clock.advance(EXPIRED)
    go = world.stops.close("commit")
    caller = Caller(world, grant_id)
    world.stops.wait("commit")
    clock.advance(1)
    world.sign_in(server.issue("alice"), sid="session")
    world.state.provider().tokens.end(grant_id)
    go.set()
    with pytest.raises(LoginRequired):
        caller.result()
    assert server.revocations == []


def test_i1_a_kept_answer_is_not_served_after_a_sign_out(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    tokens = world.state.provider().tokens
    down = threading.Event()

    def commit_fails() -> None:
        if down.is_set():
            raise StoreError("down")

    world.store.before["commit"] = commit_fails
    down.set()
    world.get(grant_id)
    assert tokens.end(grant_id) is not None
    world.store.down = True
    with pytest.raises(StoreError):
        world.get(grant_id)
    world.store.down = False
    down.clear()
    deadline = time.monotonic() + WAIT
    while not server.revocations and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert server.revocations
    with pytest.raises(LoginRequired):
        world.get(grant_id)


def test_i10_a_grant_that_the_server_has_ended_ends_once(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(STALE)
    server.kill()
    results = together(16, lambda _: world.get(grant_id))
    refused = [one for one in results if isinstance(one, LoginRequired)]
    assert refused
    assert {one.reason for one in refused} == {"invalid_grant"}
    for _ in range(3):
        # Although the access token has a while to go.
        with pytest.raises(LoginRequired):
            world.get(grant_id)
    assert world.state.provider().tokens.open(grant_id) is None
    assert world.stored(grant_id).is_dead
    assert len(refreshes(server)) == 1
    assert world.told("grant_revoked") == 1
    assert world.told("token_refresh_failed") == 1


def test_step_7_another_slot_is_refused_alone_the_first_time(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    old = world.get(grant_id).value
    invalid = Reply(400, {"error": "invalid_grant"})
    server.add(invalid, path="/token")
    for _ in range(2):
        with pytest.raises(LoginRequired) as raised:
            world.get(grant_id, scope="admin")
        assert raised.value.reason == "slot"
    assert world.get(grant_id).value == old
    assert not world.stored(grant_id).control.doubt
    assert len(refreshes(server)) == 1
    # From any slot the second time without a success between: it is the grant.
    server.add(invalid, path="/token")
    with pytest.raises(LoginRequired) as raised:
        world.get(grant_id, scope="other")
    assert raised.value.reason == "invalid_grant"
    with pytest.raises(LoginRequired):
        world.get(grant_id)


def test_a24_records_of_another_issuer_or_client_are_no_records(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    with RotatingTokenServer() as elsewhere:
        others = [
            make_world(server, store=world.store.store, clock=clock, ATM_CLIENT_ID="another"),
            make_world(elsewhere, store=world.store.store, clock=clock),
        ]
        for other in others:
            tokens = other.state.provider().tokens
            assert tokens.open(grant_id) is None
            with pytest.raises(LoginRequired) as raised:
                other.get(grant_id)
            assert raised.value.reason == "ended"
            assert tokens.outbox.drain().revoked == 0
        assert (elsewhere.token_requests, elsewhere.revocations) == ([], [])
    assert refreshes(server) == []
    # Pointed back, it is there again.
    assert world.get(grant_id)


# -- nobody waits for ever


def test_w_a_caller_waits_for_a_holder_that_was_killed_and_is_served(
    server: RotatingTokenServer,
) -> None:
    ahead = [0.0]
    store = MemoryStore(clock=lambda: time.time() + ahead[0])
    world = make_world(server, store=store, clock=lambda: time.time() + ahead[0])
    response = server.issue("alice")
    grant_id = world.sign_in(response)
    ahead[0] = EXPIRED
    store.begin(
        record_key(grant_id),
        owner="killed",
        expected_version=1,
        lease=FAST.lease,
        intent=token_hash(response["refresh_token"]),
    )
    started = time.monotonic()
    results = together(8, lambda _: world.get(grant_id))
    assert len({one.value for one in results}) == 1
    assert FAST.lease + FAST.doubt_wait <= time.monotonic() - started < FAST.wait + 1
    assert len(refreshes(server)) == 1
    # Polling is no busy loop: 10-50 ms, growing.
    assert world.store.count("read") < 200


def test_w_nobody_waits_for_longer_than_w(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    # The store's clock stands still, so this lease never lapses.
    world.store.store.begin(
        record_key(grant_id), owner="x", expected_version=1, lease=FAST.lease, intent="h"
    )
    started = time.monotonic()
    results = together(8, lambda _: world.get(grant_id))
    assert {(type(one), getattr(one, "retry_after", 0)) for one in results} == {
        (ServerUnavailable, 1)
    }
    assert FAST.wait - 0.1 < time.monotonic() - started < FAST.wait + 1
    assert refreshes(server) == []


def test_w_a_failure_ends_the_wait_of_everybody(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    server.spoil(lambda reply: Reply(200, {}, delay=9))
    started = time.monotonic()
    results = together(16, lambda _: world.get(grant_id))
    assert {type(one) for one in results} == {ServerUnavailable}
    assert time.monotonic() - started < FAST.timeout + 1
    assert len(refreshes(server)) == 1
    assert len({id(one) for one in results}) == 16


def test_w_a_store_that_takes_leases_but_no_answers_is_not_asked_in_a_busy_loop(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = sign_in_and_expire(world, server, clock)
    full = threading.Event()
    full.set()

    def refuse() -> None:
        if full.is_set():
            raise StoreError("no space left")

    world.store.before["commit"] = refuse
    token = world.get(grant_id).value
    assert world.get(grant_id).value == token
    clock.advance(LAPSE)
    vault = world.state.provider().tokens.vault
    (kept,) = vars(vars(vault)["_keeper"])["_answers"].values()
    aged = replace(kept, at=kept.at - EXPIRED)
    vars(vars(vault)["_keeper"])["_answers"][record_key(grant_id)] = aged
    with pytest.raises(ServerUnavailable):
        world.get(grant_id)
    assert world.store.count("begin") < 150
    assert len(refreshes(server)) == 1
    full.clear()
    assert world.get(grant_id).value
    assert server.replays == 0


def test_n8_a_fresh_token_is_one_read_and_a_refresh_two_steps_more(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    for ahead, steps in ((0.0, ["read"]), (STALE, ["read", "begin", "commit"])):
        clock.advance(ahead)
        world.store.mine.clear()
        world.get(grant_id)
        assert world.store.mine == steps
    clock.advance(EXPIRED)
    world.store.mine.clear()
    world.get(grant_id)
    assert world.store.mine == ["read", "begin", "commit"]
