"""C, D, J: what is read and sealed, and what happens while the store is silent."""

import json
import logging
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flask_atm.errors import ATMError, LoginRequired, StoreError
from flask_atm.grants.record import Grant
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.stores import SQLiteStore
from flask_atm.grants.vault import Vault, new_grant_id, record_key
from flask_atm.testing.clock import FakeClock
from tests.grants.tools import FAST, World, make_world, refreshes, settings
from tests.servers import Cut, Reply, RotatingTokenServer

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


def change(world: World, grant_id: str, sealed: bytes) -> None:
    """Put other bytes into a record."""
    key = record_key(grant_id)
    stored = world.store.store.read(key)
    assert stored is not None
    assert world.store.store.update(key, sealed, expected_version=stored.control.version) == "ok"


def sealed_of(world: World, grant_id: str) -> bytes:
    stored = world.store.store.read(record_key(grant_id))
    assert stored is not None
    return stored.sealed


# -- C1: the store is silent


def test_c1_a_copy_of_5_s_serves_and_no_refresh_token_is_sent(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    world = make_world(server, clock=clock)
    fresh, stale, expired, unread = (world.sign_in(server.issue("alice")) for _ in range(4))
    for grant_id in (fresh, stale, expired):
        world.get(grant_id)
    vault = world.state.provider().tokens.vault
    world.store.down = True
    assert world.get(fresh).value
    with pytest.raises(StoreError):
        world.get(unread)
    world.store.down = False
    clock.advance(STALE)
    assert vault.read(record_key(stale)) is not None
    world.store.down = True
    assert world.get(stale).value
    world.store.down = False
    clock.advance(EXPIRED)
    assert vault.read(record_key(expired)) is not None
    world.store.down = True
    with pytest.raises(StoreError):
        world.get(expired)
    assert refreshes(server) == []
    vault_copies: dict[str, Any] = vars(vault)["_copies"]
    for key, (stored, at) in list(vault_copies.items()):
        vault_copies[key] = (stored, at - 5.01)
    for grant_id in (fresh, stale, expired):
        with pytest.raises(StoreError):
            world.get(grant_id)
    assert refreshes(server) == []


def test_c1_a_store_that_hangs_is_asked_once_where_a_copy_will_do(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    """Each question may take seconds, so nobody asks for a lease who has a token."""
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(STALE)
    assert world.state.provider().tokens.open(grant_id) is not None
    world.store.down = True
    world.store.mine.clear()
    assert world.get(grant_id).value
    assert world.store.mine == ["read"]
    world.store.down = False
    token = world.get(grant_id).value
    assert refreshes(server) != []
    assert world.get(grant_id).value == token


def test_c1_a_token_that_came_a_moment_ago_is_served(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    """What was committed counts as read: nobody has to look once more before the store goes."""
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(EXPIRED)
    token = world.get(grant_id).value
    world.store.down = True
    assert world.get(grant_id).value == token
    assert len(refreshes(server)) == 1


def test_c1_what_was_read_before_a_renewal_is_not_kept_after_it(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(EXPIRED)
    vault = world.state.provider().tokens.vault
    late = world.store.store.read(record_key(grant_id))
    token = world.get(grant_id).value
    vault._remember(record_key(grant_id), late)
    world.store.down = True
    assert world.get(grant_id).value == token


def test_c1_of_too_many_copies_the_oldest_go(world: World, server: RotatingTokenServer) -> None:
    response = server.issue("alice")
    first, *_, last = (world.sign_in(response) for _ in range(600))
    vault = world.state.provider().tokens.vault
    for _ in range(2):
        for key, _ in world.store.scan("", 600):
            vault.read(key)
        assert 400 < len(vars(vault)["_copies"]) <= 512
    for grant_id in (first, last):
        assert world.get(grant_id).value
    for grant_id in [world.sign_in(response) for _ in range(300)]:
        world.get(grant_id)
    world.store.down = True
    for grant_id in (first, last):
        assert world.get(grant_id).value


def test_a_store_that_is_away_is_not_complained_of_at_every_call(
    world: World, server: RotatingTokenServer, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    grant_ids = [world.sign_in(server.issue("alice")) for _ in range(20)]
    clock.advance(EXPIRED)
    for grant_id in grant_ids:
        world.store.down = False
        world.stops.then("begin", lambda: setattr(world.store, "down", True))
        with pytest.raises(StoreError):
            world.get(grant_id)
    said = [one for one in caplog.records if "could not be given back" in one.getMessage()]
    assert [one.levelname for one in said] == ["WARNING"]


def test_c1_a_signed_out_user_has_no_copy(world: World, server: RotatingTokenServer) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    world.get(grant_id)
    world.state.provider().tokens.end(grant_id)
    world.store.down = True
    with pytest.raises(StoreError):
        world.get(grant_id)


def test_c1_a_refresh_is_begun_before_the_token_is_spent(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(EXPIRED)
    world.stops.then("begin", lambda: setattr(world.store, "down", True))
    with pytest.raises(StoreError):
        world.get(grant_id)
    world.store.down = False
    assert refreshes(server) == []
    assert world.get(grant_id)


# -- kept answers at exit


def test_m6_kept_answers_are_stored_at_exit(
    server: RotatingTokenServer, tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "grants.sqlite3"
    parent = make_world(server, store=SQLiteStore(path), clock=clock)
    grant_id = parent.sign_in(server.issue("alice"))
    script = """
        import json, sys, threading, time
        from flask_atm.grants.stores import SQLiteStore
        from flask_atm.tokens import TokenParameters
        from tests.grants.support import Setup
        from tests.grants.tools import FAST, WatchedStore

        config, path, grant_id = json.loads(sys.argv[1])
        store = WatchedStore(SQLiteStore(path, clock=lambda: time.time() + 1000))
        store.before["commit"] = lambda: setattr(store, "down", not back.is_set())
        back = threading.Event()
        state = Setup(config=config, ahead=1000.0, engine=FAST).state(store=store)
        print(state.provider().tokens.get(grant_id, TokenParameters()).value, flush=True)
        # The program ends here; the store comes back a while later.
        threading.Timer(0.3, back.set).start()
        """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(script),
            json.dumps([settings(server), str(path), grant_id]),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    later = make_world(server, store=SQLiteStore(path), clock=clock)
    stored = later.stored(grant_id)
    assert stored.grant.slots[""].token.reveal() == done.stdout.strip()
    assert not stored.control.doubt
    assert "lost" not in done.stderr


# -- C11, D7, D8, M5: what does not open


def test_c11_what_does_not_open_is_no_record_and_stays(
    world: World, server: RotatingTokenServer, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    vault = world.state.provider().tokens.vault
    ring = world.state.ring
    provider = vars(vault)["_provider"]
    grants = [world.sign_in(server.issue("alice")) for _ in range(7)]
    good = sealed_of(world, grants[0])
    snapshot = world.stored(grants[6])
    other_schema = {**snapshot.grant.as_json(), "schema": 2}
    bad = [
        good[:-1],
        good[:20],
        b"",
        good[:-1] + bytes([good[-1] ^ 1]),
        good,  # of another record
        KeyRing([b"x" * 32]).seal_json({}, purpose="grant", record=record_key(grants[5])),
        ring.seal_json(
            other_schema,
            purpose="grant",
            record=record_key(grants[6]),
            bound=f"{provider}\x002\x001",
        ),
    ]
    for grant_id, sealed in zip(grants, bad, strict=True):
        change(world, grant_id, sealed)
        with pytest.raises(LoginRequired) as raised:
            world.get(grant_id)
        assert raised.value.reason == "ended"
        assert sealed_of(world, grant_id) == sealed
    assert refreshes(server) == []
    errors = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "ATM_ENCRYPTION_KEYS" in errors[0].getMessage()
    assert all(grant_id not in caplog.text for grant_id in grants)


def test_c11_d8_a_key_that_is_put_back_opens_what_it_had_sealed(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    new: dict[str, Any] = {"SECRET_KEY": "n" * 40}
    without = make_world(server, store=world.store.store, clock=clock, **new)
    with pytest.raises(LoginRequired):
        without.get(grant_id)
    old = world.state.app.config["SECRET_KEY"]
    both = make_world(
        server, store=world.store.store, clock=clock, **new, SECRET_KEY_FALLBACKS=[old]
    )
    assert both.get(grant_id)
    with pytest.raises(LoginRequired):
        without.get(grant_id)
    # What is written is sealed with the first key.
    both.get(grant_id, force_renewal=True)
    assert without.get(grant_id)
    with pytest.raises(LoginRequired):
        world.get(grant_id)


def test_j5_the_outbox_of_a_former_key_is_drained(
    world: World, server: RotatingTokenServer, clock: FakeClock
) -> None:
    world.state.provider().tokens.end(world.sign_in(server.issue("alice")))
    old = world.state.app.config["SECRET_KEY"]
    later = make_world(
        server,
        store=world.store.store,
        clock=clock,
        SECRET_KEY="n" * 40,
        SECRET_KEY_FALLBACKS=[old],
    )
    assert later.state.provider().tokens.outbox.drain().revoked == 1
    assert len(server.revocations) == 1


def test_m5_members_of_a_newer_version_are_written_back(
    world: World, server: RotatingTokenServer
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    snapshot = world.stored(grant_id)
    value = {**snapshot.grant.as_json(), "added later": [1]}
    newer = replace(snapshot, grant=Grant.from_json(json.loads(json.dumps(value))))
    change(world, grant_id, world.seal(grant_id, newer, version=2))
    world.get(grant_id, force_renewal=True)
    assert world.stored(grant_id).grant.other["added later"] == [1]


def test_m5_members_of_a_newer_version_in_a_slot_are_written_back(
    world: World, server: RotatingTokenServer
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    snapshot = world.stored(grant_id)
    value = snapshot.grant.as_json()
    value["slots"] = {name: {**slot, "added later": [1]} for name, slot in value["slots"].items()}
    newer = replace(snapshot, grant=Grant.from_json(json.loads(json.dumps(value))))
    change(world, grant_id, world.seal(grant_id, newer, version=2))
    world.get(grant_id, audience="another")
    slots = world.stored(grant_id).grant.as_json()["slots"]
    assert [slot.get("added later") for slot in slots.values()] == [[1], None]


def test_m5_as_many_new_members_as_old_ones_are_missing_are_kept_too() -> None:
    value = Grant(provider="oidc", issuer="i", client_id="c").as_json()
    for name in ("issued_at", "used_at", "indexed_by"):
        del value[name]
    newer = {**value, "later": 1, "still later": 2, "last": 3}
    assert Grant.from_json(newer).other == {"later": 1, "still later": 2, "last": 3}


# -- J: sealing


def test_j2_ciphertexts_of_two_users_cannot_be_swapped(
    world: World, server: RotatingTokenServer
) -> None:
    alice, bob = (world.sign_in(server.issue(name), sub=name) for name in ("alice", "bob"))
    of_alice, of_bob = sealed_of(world, alice), sealed_of(world, bob)
    change(world, alice, of_bob)
    change(world, bob, of_alice)
    for grant_id in (alice, bob):
        with pytest.raises(LoginRequired):
            world.get(grant_id)


def test_j2_an_older_version_of_a_record_cannot_be_put_back(
    world: World, server: RotatingTokenServer
) -> None:
    grant_id = world.sign_in(server.issue("alice"))
    before = sealed_of(world, grant_id)
    world.get(grant_id, force_renewal=True)
    change(world, grant_id, before)
    with pytest.raises(LoginRequired):
        world.get(grant_id)


def test_j3_purpose_record_provider_version_and_schema_are_bound(world: World) -> None:
    store, ring = world.store, world.state.ring
    arguments: dict[str, Any] = {"parameters": FAST, "is_ours": lambda grant: True}
    vault = Vault(store, ring, provider="a", **arguments)
    grant = Grant(provider="a", issuer="i", client_id="c")
    sealed = vault.seal("k", grant, version=1)
    store.create("k", sealed, ends_at=world.state.clock() + 99)
    assert vault.read_stored("k") is not None
    assert Vault(store, ring, provider="b", **arguments).read_stored("k") is None
    assert vault.seal("k", grant, version=1) != sealed
    text = json.dumps(grant.as_json(), separators=(",", ":")).encode()
    for purpose, record, bound in (
        ("outbox", "k", "a\x001\x001"),
        ("grant", "l", "a\x001\x001"),
        ("grant", "k", "a\x002\x001"),
        ("grant", "k", "a\x001\x002"),
    ):
        version = store.read("k")
        assert version is not None
        forged = ring.seal(text, purpose=purpose, record=record, bound=bound)
        store.delete("k")
        store.create("k", forged, ends_at=world.state.clock() + 99)
        assert vault.read_stored("k") is None


def test_j1_d10_nothing_readable_in_the_store_logs_errors_and_tracebacks(
    server: RotatingTokenServer,
    clock: FakeClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.client_secret = "canary client secret"
    world = make_world(
        server,
        store=SQLiteStore(tmp_path / "grants.sqlite3", clock=clock),
        clock=clock,
        ATM_CLIENT_SECRET=server.client_secret,
    )
    server.refresh_token_size = 64
    response = server.issue("alice")
    grant_id = world.sign_in(response)
    seen = [response["access_token"], response["refresh_token"], server.client_secret]
    shown: list[str] = []

    def attempt(**arguments: Any) -> None:
        clock.advance(EXPIRED)
        try:
            seen.append(world.get(grant_id, **arguments).value)
        except ATMError as error:
            told = traceback.TracebackException.from_exception(error, capture_locals=True)
            ours = [one for one in told.stack if "/flask_atm/" in one.filename]
            assert ours
            shown.extend([repr(error), str(error), *(repr(one.locals) for one in ours)])

    attempt()
    world.get(grant_id, force_renewal=True)
    for behaviour in (
        Reply(503, {"error": "x"}),
        Reply(400, {"error": "invalid_scope", "error_description": f"bad {seen[1]}"}),
        Reply(401, {"error": "invalid_client"}),
        Cut(),
        Reply(200),
        Reply(400, {"error": "invalid_grant"}),
    ):
        server.add(behaviour, path="/token")
        attempt(resource="https://api")
        clock.advance(EXPIRED)
        world.state.provider().tokens.engine.breaker.succeeded()
        attempt()
    world.store.down = True
    attempt()
    world.store.down = False
    (grant,) = server.grants.values()
    seen += [grant.refresh_token or "", grant.access_token or ""]
    assert shown
    world.state.provider().tokens.end(grant_id)
    files = b"".join(path.read_bytes() for path in tmp_path.glob("grants.sqlite3*"))
    for secret in set(seen):
        assert secret not in caplog.text
        assert secret.encode() not in files
        assert not [text for text in shown if secret in text]
    assert grant_id.encode() not in files
    assert grant_id not in caplog.text


@pytest.mark.parametrize("what", ["no metadata", "no endpoint", "the application's secret fails"])
def test_j1_what_fails_before_the_request_shows_no_refresh_token(
    world: World, server: RotatingTokenServer, clock: FakeClock, what: str
) -> None:
    response = server.issue("alice")
    grant_id = world.sign_in(response)
    clock.advance(EXPIRED)

    def fail() -> str:
        raise KeyError("the vault of secrets")

    more: dict[str, Any] = {"ATM_CLIENT_SECRET": fail} if "secret" in what else {}
    other = make_world(server, store=world.store.store, clock=clock, **more)
    if what == "no metadata":
        server.stop_listening()
    elif what == "no endpoint":
        document = {"issuer": server.url, "jwks_uri": f"{server.url}/jwks"}
        server.always(Reply(body=document), "/.well-known/openid-configuration")
    with pytest.raises((ATMError, KeyError)) as raised:
        other.get(grant_id)
    told = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
    ours = [repr(one.locals) for one in told.stack if "/flask_atm/" in one.filename]
    assert ours
    assert not [text for text in ours if response["refresh_token"] in text]
    control = world.stored(grant_id).control
    assert (control.intent, control.lease_owner, control.doubt) == (None, None, False)


def test_grant_ids_are_256_random_bits_and_name_the_provider() -> None:
    ids = {new_grant_id("p") for _ in range(100)}
    assert len(ids) == 100
    assert {one.partition(".")[0] for one in ids} == {"p"}
    assert {len(one) for one in ids} == {2 + 43}
    assert all(record_key(one).isalnum() and one not in record_key(one) for one in ids)
