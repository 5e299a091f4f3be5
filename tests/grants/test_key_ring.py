"""The key ring over every store: what is sealed anew, what stays, and what can be dropped."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flask_atm.endings import end_grants
from flask_atm.errors import LoginRequired
from flask_atm.grants import indexes
from flask_atm.grants.control import Stored
from flask_atm.grants.key_use import KeyUse, key_use
from flask_atm.grants.record import Grant, Snapshot
from flask_atm.grants.rotation import Progress, Rotation
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.stores import MemoryStore, RedisStore, SQLiteStore
from flask_atm.grants.vault import record_key
from flask_atm.protocols import AtomicGrantStore
from flask_atm.stores import SQLStore
from flask_atm.tokens import TokenParameters
from tests.grants.tools import World, make_world
from tests.servers import RotatingTokenServer
from tests.servers.redis_server import RedisServer

A, B, C = "a1" * 20, "b2" * 20, "c3" * 20


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with RedisServer() as server:
        yield server.url


@pytest.fixture
def server() -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer() as running:
        yield running


@pytest.fixture(params=["memory", "sqlite", "redis", "sql", "postgresql"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, redis_url: str
) -> Iterator[AtomicGrantStore]:
    match request.param:
        case "memory":
            yield MemoryStore()
            return
        case "sqlite":
            made: Any = SQLiteStore(tmp_path / "grants.sqlite3", timeout=10)
        case "redis":
            made = RedisStore(redis_url, prefix=tmp_path.name, timeout=10)
        case "postgresql":
            postgres = request.getfixturevalue("empty_postgres")
            made = SQLStore(postgres.url(), timeout=10)
        case _:
            made = SQLStore(f"sqlite+pysqlite:///{tmp_path / 'sql.sqlite3'}", timeout=10)
    yield made
    made.close()


class Site:
    """An application whose key ring changes, over one store."""

    def __init__(self, server: RotatingTokenServer, store: AtomicGrantStore) -> None:
        self.server = server
        self.store = store

    def ring(self, *keys: str, **more: Any) -> World:
        """Give a process with these keys, the one that seals first."""
        keys_of = list(keys)
        return make_world(self.server, store=self.store, ATM_ENCRYPTION_KEYS=keys_of, **more)

    def sign_in(self, world: World, subject: str = "alice", **claims: Any) -> str:
        return world.sign_in(self.server.issue(subject), sub=subject, **claims)

    def stored(self, grant_id: str) -> Stored:
        stored = self.store.read(record_key(grant_id))
        assert stored is not None
        return stored

    def put(self, grant_id: str, sealed: bytes) -> None:
        """Put other bytes into a record."""
        version = self.stored(grant_id).control.version
        key = record_key(grant_id)
        assert self.store.update(key, sealed, expected_version=version) == "ok"


@pytest.fixture
def site(server: RotatingTokenServer, store: AtomicGrantStore) -> Site:
    return Site(server, store)


def rotation(world: World) -> Rotation:
    state = world.state
    provider = state.provider()
    return Rotation(
        store=world.store,
        ring=state.ring,
        tokens=[provider.tokens],
        passing=[provider.client_tokens.engine.vault],
    )


def rotate(world: World) -> Progress:
    return list(rotation(world).run())[-1]


def uses(world: World) -> list[KeyUse]:
    provider = world.state.provider()
    passing = [provider.client_tokens.engine.vault]
    return key_use(world.store, world.state.ring, [provider.tokens.vault], passing)


def found(world: World, subject: str) -> list[str]:
    """Give the grants that the index finds."""
    entries = world.state.provider().tokens.entries("sub", subject)
    return [key for entry in entries for key in world.store.find(entry)]


# -- three keys


def test_j5_the_first_of_three_keys_seals_and_all_open(site: Site) -> None:
    grants = [site.sign_in(site.ring(key)) for key in (A, B, C)]
    world = site.ring(A, B, C)
    for grant_id in grants:
        assert world.get(grant_id).value
    first = site.ring(A).state.ring
    assert [first.is_current(site.stored(one).sealed) for one in grants] == [True, False, False]


def test_j5_d8_what_is_written_is_sealed_with_the_first_key(site: Site) -> None:
    grant_id = site.sign_in(site.ring(C))
    both = site.ring(A, B, C)
    both.get(grant_id, force_renewal=True)
    assert both.state.ring.is_current(site.stored(grant_id).sealed)
    assert site.ring(A).get(grant_id).value
    with pytest.raises(LoginRequired):
        site.ring(C).get(grant_id)


def test_d8_without_the_old_key_nobody_is_signed_in_and_with_it_again_they_are(site: Site) -> None:
    grant_id = site.sign_in(site.ring(A))
    with pytest.raises(LoginRequired):
        site.ring(B).get(grant_id)
    assert site.ring(B, A).get(grant_id).value


# -- rotation


def test_j5_rotate_seals_and_indexes_everything_with_the_first_key(site: Site) -> None:
    old = site.ring(A)
    grants = [site.sign_in(old, "alice", sid="s1"), site.sign_in(old, "bob")]
    site.sign_in(old, "carol")
    end_grants(old.state, old.state.provider(), found(old, "carol"))
    both = site.ring(B, A)
    assert rotate(both) == Progress(
        after=max(key for key, _ in site.store.scan("", 100)),
        sealed_anew=2,
        outbox=1,
        current=1,
    )
    assert [use.grants for use in uses(both)] == [2, 0]
    assert [use.indexed for use in uses(both)] == [2, 0]
    # The old key can be dropped: users are signed in, found, and what has ended is revoked.
    new = site.ring(B)
    for grant_id in grants:
        assert new.get(grant_id).value
        assert new.get(grant_id, force_renewal=True).value
    assert found(new, "alice") == [record_key(grants[0])]
    assert found(new, "bob") == [record_key(grants[1])]
    by_session = new.state.provider().tokens.entries("sid", "s1")
    assert new.store.find(by_session[0]) == [record_key(grants[0])]
    assert new.state.provider().tokens.outbox.drain().revoked == 1
    assert len(site.server.revocations) == 1


def test_j5_a_grant_that_a_refresh_has_sealed_anew_is_still_indexed_anew(site: Site) -> None:
    grant_id = site.sign_in(site.ring(A))
    both = site.ring(B, A)
    both.get(grant_id, force_renewal=True)
    assert [(use.grants, use.indexed) for use in uses(both)] == [(1, 0), (0, 1)]
    assert rotate(both).sealed_anew == 1
    assert found(site.ring(B), "alice") == [record_key(grant_id)]
    assert rotate(both) == Progress(after=record_key(grant_id), current=1)


def ended(site: Site, *keys: str) -> str:
    """Give the key of a grant that has ended, and has still to be revoked."""
    world = site.ring(*keys)
    grant_id = site.sign_in(world)
    assert world.state.provider().tokens.end(grant_id) is not None
    return record_key(grant_id)


@pytest.mark.parametrize("left", [None, b""], ids=["removed", "tombstone"])
def test_j5_what_is_revoked_meanwhile_is_not_put_into_the_outbox_again(
    site: Site, left: bytes | None
) -> None:
    key = ended(site, A)
    both = site.ring(B, A)
    # As the stores beside plain ones have it, a tombstone stays until the end of the grant.
    both.store.before["delete"] = lambda: site.store.delete(key, keep=left)
    assert rotate(both).outbox == 0
    stored = site.store.read(key)
    assert (None if stored is None else stored.sealed) == left
    assert both.state.provider().tokens.outbox.drain().revoked == 0


def test_j5_an_entry_of_the_outbox_that_does_not_open_stays_and_is_counted_as_left(
    site: Site,
) -> None:
    keys = [ended(site, A) for _ in range(2)]
    outboxes = indexes.outboxes(site.ring(A).state.ring, site.server.url, "app")
    site.store.delete(keys[0], keep=b"\0" * 60, index=outboxes)
    progress = rotate(site.ring(B, A))
    assert (progress.outbox, progress.unreadable, progress.left) == (1, 1, 1)
    stored = site.store.read(keys[0])
    assert stored is not None
    assert stored.sealed == b"\0" * 60


def test_j5_a_grant_of_a_provider_that_nobody_named_may_be_found_by_the_older_key(
    site: Site,
) -> None:
    site.sign_in(site.ring(B, A))
    for keys, current, unreadable in (((B, A), 0, 1), ((B,), 1, 0)):
        state = site.ring(*keys).state
        unnamed = Rotation(store=site.store, ring=state.ring, tokens=[])
        progress = list(unnamed.run())[-1]
        assert (progress.current, progress.unreadable) == (current, unreadable)


def test_j5_rotate_goes_on_where_it_was_stopped(site: Site) -> None:
    old = site.ring(A)
    for number in range(250):
        site.sign_in(old, f"user {number}")
    both = site.ring(B, A)
    first = next(rotation(both).run())
    assert first.sealed_anew == 100
    assert [use.grants for use in uses(both)] == [100, 150]
    again = rotate(both)
    assert (again.sealed_anew, again.current, again.left) == (150, 100, 0)
    assert rotate(both).current == 250
    # From the middle on only what comes after is looked at.
    assert list(rotation(both).run(after=first.after))[-1].current == 150


def test_j5_memory_is_bounded_by_a_page(site: Site) -> None:
    old = site.ring(A)
    for number in range(120):
        site.sign_in(old, f"user {number}")
    pages: list[int] = []
    both = site.ring(B, A)
    scan = both.store.scan

    def counted(after: str, limit: int) -> list[tuple[str, Stored]]:
        pages.append(limit)
        return scan(after, limit)

    vars(both.store)["scan"] = counted
    assert list(rotation(both).run())[-1].sealed_anew == 120
    assert set(pages) == {100}


def test_j5_grants_that_are_refreshed_or_in_doubt_are_left_and_counted(site: Site) -> None:
    old = site.ring(A)
    leased, doubtful, free = (site.sign_in(old, name) for name in ("alice", "bob", "carol"))
    for grant_id, owner in ((leased, "x"), (doubtful, "y")):
        site.store.begin(
            record_key(grant_id), owner=owner, expected_version=1, lease=60, intent="h"
        )
    site.store.abort(record_key(doubtful), owner="y", clear_intent=False)
    both = site.ring(B, A)
    progress = rotate(both)
    assert (progress.sealed_anew, progress.busy, progress.left) == (1, 2, 2)
    assert site.ring(B).get(free).value
    assert [(use.grants, use.indexed) for use in uses(both)] == [(1, 1), (2, 2)]
    # Their refresh token, and the doubt about it, are as they were.
    assert old.stored(doubtful).control.doubt
    site.store.abort(record_key(leased), owner="x", clear_intent=True)
    assert rotate(both).sealed_anew == 1


def test_j5_a_record_that_changes_meanwhile_is_read_again(site: Site) -> None:
    grant_id = site.sign_in(site.ring(A))
    both = site.ring(B, A)
    other = site.ring(A)

    def renew() -> None:
        del both.store.before["update"]
        other.get(grant_id, force_renewal=True)

    both.store.before["update"] = renew
    token = other.get(grant_id).value
    assert rotate(both).sealed_anew == 1
    assert site.ring(B).get(grant_id).value != token


def test_j5_a_sign_out_meanwhile_wins(site: Site) -> None:
    grant_id = site.sign_in(site.ring(A))
    both = site.ring(B, A)

    def sign_out() -> None:
        del both.store.before["update"]
        site.ring(A).state.provider().tokens.end(grant_id)

    both.store.before["update"] = sign_out
    progress = rotate(both)
    assert (progress.sealed_anew, progress.current) == (0, 1)
    with pytest.raises(LoginRequired):
        both.get(grant_id)
    assert rotate(both).outbox == 1


def test_j5_what_is_revoked_meanwhile_is_not_brought_back(site: Site) -> None:
    old = site.ring(A)
    old.state.provider().tokens.end(site.sign_in(old))
    both = site.ring(B, A)

    def drain() -> None:
        del both.store.before["delete"]
        assert old.state.provider().tokens.outbox.drain().revoked == 1

    both.store.before["delete"] = drain
    rotate(both)
    assert site.ring(B).state.provider().tokens.outbox.drain().revoked == 0
    assert len(site.server.revocations) == 1


def test_j5_client_tokens_and_marks_are_left_alone(site: Site) -> None:
    old = site.ring(A)
    old.state.provider().client_tokens.get(TokenParameters())
    old.state.store_id()
    both = site.ring(B, A)
    progress = rotate(both)
    assert (progress.sealed_anew, progress.left) == (0, 0)
    assert [use.passing for use in uses(both)] == [0, 1]
    assert [use.unreadable for use in uses(both)] == [0, 0]


def test_j5_back_to_the_old_order(site: Site) -> None:
    grant_id = site.sign_in(site.ring(A))
    rotate(site.ring(B, A))
    rotate(site.ring(A, B))
    old = site.ring(A)
    assert old.get(grant_id).value
    assert found(old, "alice") == [record_key(grant_id)]


def test_j5_a_key_that_was_dropped_too_early_can_be_put_back(site: Site) -> None:
    grant_id = site.sign_in(site.ring(A))
    without = site.ring(B)
    assert rotate(without) == Progress(after=record_key(grant_id), unreadable=1)
    (seals, missing) = uses(without)
    assert (seals.role, missing.role, missing.unreadable) == ("seals", "missing", 1)
    assert missing.key_id == KeyRing([A.encode()]).key_ids[0]
    assert rotate(site.ring(B, A)).sealed_anew == 1
    assert without.get(grant_id).value


# -- what does not open, and what only a newer version knows


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "strange key", "another schema"])
def test_c11_what_does_not_open_is_no_record_and_is_kept_and_counted(
    site: Site, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = site.ring(A)
    bad, other = site.sign_in(world), site.sign_in(world, "bob")
    good = site.stored(bad).sealed
    vault, key = world.state.provider().tokens.vault, record_key(bad)
    newer: dict[str, Any] = {**world.stored(bad).grant.as_json(), "schema": 2}
    sealed = {
        "changed": good[:-1] + bytes([good[-1] ^ 1]),
        "cut": good[:20],
        "empty": b"",
        "strange key": KeyRing([b"x" * 32]).seal(b"{}", purpose="grant", record=key),
        "another schema": world.state.ring.seal_json(
            newer, purpose="grant", record=key, bound="oidc\x002\x001"
        ),
    }[damage]
    site.put(bad, sealed)
    for _ in range(3):
        with pytest.raises(LoginRequired):
            world.get(bad)
    errors = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == 1
    assert site.stored(bad).sealed == sealed
    assert rotate(site.ring(B, A)).sealed_anew == 1
    assert site.stored(bad).sealed == sealed
    assert site.ring(B).get(other).value
    assert vault.recognise(key, site.stored(bad)) is None
    expected = 0 if damage == "empty" else 1
    assert sum(use.unreadable for use in uses(site.ring(B, A))) == expected


def test_c11_keys_that_nobody_knows_are_told_apart_up_to_a_number(site: Site) -> None:
    world = site.ring(A)
    for number in range(30):
        sealed = bytes([number]) * 40
        site.store.create(f"{number:064}", sealed, ends_at=world.state.clock() + 99)
    rows = uses(world)
    assert len(rows) == 18
    assert (rows[-1].key_id, rows[-1].role, rows[-1].unreadable) == ("others", "missing", 14)


def test_m5_members_of_a_newer_version_are_written_back(site: Site) -> None:
    world = site.ring(A)
    grant_id = site.sign_in(world)
    newer = {**world.stored(grant_id).grant.as_json(), "added later": {"x": [1]}}
    vault = world.state.provider().tokens.vault
    grant = Grant.from_json(newer)
    site.put(grant_id, vault.seal(record_key(grant_id), grant, version=2))
    world.get(grant_id, force_renewal=True)
    assert world.stored(grant_id).grant.other == {"added later": {"x": [1]}}
    both = site.ring(B, A)
    assert rotate(both).sealed_anew == 1
    assert both.stored(grant_id).grant.other == {"added later": {"x": [1]}}


def test_m5_a_record_of_before_the_index_was_written_down_is_indexed_anew(site: Site) -> None:
    world = site.ring(A)
    grant_id = site.sign_in(world)
    snapshot: Snapshot = world.stored(grant_id)
    before = replace(snapshot.grant, indexed_by=None)
    site.put(grant_id, world.seal(grant_id, replace(snapshot, grant=before), version=2))
    both = site.ring(B, A)
    assert [(use.grants, use.indexed) for use in uses(both)] == [(0, 0), (1, 1)]
    assert rotate(both).sealed_anew == 1
    assert found(site.ring(B), "alice") == [record_key(grant_id)]


def test_j2_ciphertexts_of_two_users_cannot_be_swapped(site: Site) -> None:
    world = site.ring(A)
    alice, bob = site.sign_in(world, "alice"), site.sign_in(world, "bob")
    of_alice, of_bob = site.stored(alice).sealed, site.stored(bob).sealed
    site.put(alice, of_bob)
    site.put(bob, of_alice)
    for grant_id in (alice, bob):
        with pytest.raises(LoginRequired):
            world.get(grant_id)


def test_j3_two_records_with_the_same_grant_look_different(site: Site) -> None:
    world = site.ring(A)
    response = site.server.issue("alice")
    grants = [world.sign_in(response) for _ in range(2)]
    first, second = (site.stored(one).sealed for one in grants)
    assert first[:4] == second[:4]
    assert first[4:16] != second[4:16]
    assert not set(_pieces(first[16:])) & set(_pieces(second[16:]))


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + 8] for start in range(len(data) - 8)]


@pytest.mark.parametrize("inside", [b"[" * 100_000, b"\x80\x04}.", b'"text"', b"{}", b"nul"])
def test_j6_what_is_inside_is_versioned_json_and_nothing_else(site: Site, inside: bytes) -> None:
    world = site.ring(A)
    grant_id = site.sign_in(world)
    place = {"purpose": "grant", "record": record_key(grant_id), "bound": "oidc\x002\x001"}
    site.put(grant_id, world.state.ring.seal(inside, **place))
    with pytest.raises(LoginRequired):
        world.get(grant_id)
    assert rotate(site.ring(B, A)).unreadable == 1
