"""D, A24: what copies of grants are for, and what they must never do."""

import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flask_atm.errors import LoginRequired, StoreError
from flask_atm.grants.batches import delete_many
from flask_atm.grants.copies import PairName
from flask_atm.grants.stores.paired import leaving_tombstones
from flask_atm.grants.vault import record_key
from flask_atm.oauth.logout_token import LogoutToken
from flask_atm.protocols import AtomicGrantStore, BatchedGrantStore, Doomed
from flask_atm.stores import MemoryStore, PairedStore, SQLiteStore
from flask_atm.testing import FakeClock, StoreContract
from flask_atm.tokens import TokenParameters
from tests.grants.support import Setup
from tests.grants.test_plain_stores import DictStore
from tests.grants.tools import FAST, Stops, WatchedStore, World, refreshes, settings
from tests.grants.tools import metadata as metadata_of
from tests.servers import Reply, RotatingTokenServer

EXPIRED = 1000.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer(clock=clock) as running:
        yield running


@pytest.fixture
def plain() -> DictStore:
    return DictStore()


def make_world(
    server: RotatingTokenServer,
    clock: FakeClock,
    plain: object,
    atomic: AtomicGrantStore | None = None,
    **more: Any,
) -> World:
    """Make an application with a plain store and its pair."""
    server.always(Reply(body={"keys": []}), "/jwks")
    server.always(Reply(body=metadata_of(server)), "/.well-known/openid-configuration")
    watched = WatchedStore(atomic or MemoryStore(clock=clock))
    setup = Setup(config=settings(server, **more), engine=FAST)
    stops = Stops()
    state = setup.state(
        store=PairedStore(plain, watched),  # type: ignore[arg-type]
        clock=clock,
        checkpoint=stops,
    )
    return World(state=state, store=watched, stops=stops)


def version_of(world: World, grant_id: str) -> tuple[int, bool]:
    stored = world.store.store.read(record_key(grant_id))
    assert stored is not None
    return stored.control.sealed_version, stored.control.doubt


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == level]


# -- in step with the pair


def test_every_change_is_copied(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    world = make_world(server, clock, plain)
    grant_id = world.sign_in(server.issue("alice"))
    first = plain.kept[record_key(grant_id)]
    clock.advance(EXPIRED)
    world.get(grant_id)
    second = plain.kept[record_key(grant_id)]
    assert first != second
    world.get(grant_id)
    assert plain.kept[record_key(grant_id)] == second


def test_a_fresh_token_costs_one_read_and_one_load(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    loads: list[str] = []

    class Counting(DictStore):
        def load(self, key: str) -> bytes | None:
            loads.append(key)
            return super().load(key)

    world = make_world(server, clock, Counting())
    grant_id = world.sign_in(server.issue("alice"))
    world.get(grant_id)
    world.store.calls.clear()
    loads.clear()
    world.get(grant_id)
    assert world.store.mine == ["read"]
    assert loads == [record_key(grant_id)]


def test_the_record_counts_whatever_the_copy_says(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    world = make_world(server, clock, plain)
    grant_id = world.sign_in(server.issue("alice"))
    key = record_key(grant_id)
    old = plain.kept[key]
    clock.advance(EXPIRED)
    renewed = world.get(grant_id).value
    new = plain.kept[key]
    for value in (old, b"", b"nonsense", old[:50]):
        plain.kept[key] = value
        assert world.get(grant_id).value == renewed
        assert plain.kept[key] != value
    plain.kept[key] = new
    world.get(grant_id)
    assert plain.kept[key] == new
    assert len(refreshes(server)) == 1


def test_client_tokens_and_marks_are_never_copied(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    world = make_world(server, clock, plain, ATM_CLIENTS={"reports": {"provider": "oidc"}})
    assert world.state.client("reports").get(TokenParameters()).value
    world.state.store_id()
    assert plain.kept == {}
    assert world.store.count("create") >= 1


# -- the pair has lost something


def test_what_was_lost_is_taken_over_in_doubt_and_its_refresh_token_spared(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    world = make_world(server, clock, plain)
    grant_id = world.sign_in(server.issue("alice"), sid="s1")
    token = world.get(grant_id).value
    lost = make_world(server, clock, plain)
    clock.advance(280)  # inside the leeway: without doubt it would be renewed now
    assert lost.get(grant_id).value == token
    assert version_of(lost, grant_id) == (1, True)
    assert refreshes(server) == []
    # A logout at the provider finds it, as before.
    tokens = lost.state.provider().tokens
    for entry in (("sub", "alice"), ("sid", "s1")):
        found = [k for name in tokens.entries(*entry) for k in lost.store.find(name)]
        assert found == [record_key(grant_id)]
    clock.advance(EXPIRED)
    assert lost.get(grant_id).value != token
    assert version_of(lost, grant_id) == (2, False)
    assert len(refreshes(server)) == 1


def test_a_store_that_was_restored_gets_the_later_copy_in_doubt(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore, tmp_path: Path
) -> None:
    path, backup = tmp_path / "grants.sqlite3", tmp_path / "backup"
    store = SQLiteStore(path, clock=clock)
    world = make_world(server, clock, plain, store)
    grant_id = world.sign_in(server.issue("alice"))
    store.close()
    shutil.copy(path, backup)
    clock.advance(EXPIRED)
    renewed = world.get(grant_id).value
    store.close()
    for name in tmp_path.glob("grants.sqlite3-*"):
        name.unlink()
    shutil.copy(backup, tmp_path / "new")
    (tmp_path / "new").replace(path)
    # What the record has now was spent, and would end the grant.
    again = make_world(server, clock, plain, SQLiteStore(path, clock=clock))
    assert again.get(grant_id).value == renewed
    assert version_of(again, grant_id) == (2, True)
    # It is found by the entries that the record has.
    assert again.stored(grant_id).grant.indexed_by == again.state.ring.key_ids[0]
    clock.advance(EXPIRED)
    assert again.get(grant_id).value != renewed
    assert len(set(refreshes(server))) == len(refreshes(server)) == 2


def test_a_later_copy_counts_also_where_attempts_have_failed_since_the_restore(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    atomic = MemoryStore(clock=clock)
    world = make_world(server, clock, plain)
    grant_id = world.sign_in(server.issue("alice"))
    key = record_key(grant_id)
    backup = world.store.store.read(key)
    assert backup is not None
    clock.advance(EXPIRED)
    renewed = world.get(grant_id).value
    atomic.create(key, backup.sealed, ends_at=backup.control.ends_at)
    for version in (1, 2, 3):
        atomic.begin(key, owner="x", expected_version=version, lease=9.0, intent=None)
        atomic.abort(key, owner="x", clear_intent=True)
    restored = make_world(server, clock, plain, atomic)
    assert restored.get(grant_id).value == renewed
    assert version_of(restored, grant_id) == (5, True)


def test_a_copy_that_is_later_because_somebody_has_just_renewed_makes_no_doubt(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    before_load: list[Callable[[], object]] = []

    class Slow(DictStore):
        def load(self, key: str) -> bytes | None:
            if before_load:
                before_load.pop()()
            return super().load(key)

    plain, atomic = Slow(), MemoryStore(clock=clock)
    world, other = (make_world(server, clock, plain, atomic) for _ in range(2))
    grant_id = world.sign_in(server.issue("alice"))
    clock.advance(EXPIRED)
    before_load.append(lambda: other.get(grant_id))
    snapshot = world.state.provider().tokens.open(grant_id)
    assert snapshot is not None
    assert snapshot.control.version == 2
    assert version_of(world, grant_id) == (2, False)
    assert len(refreshes(server)) == 1


def test_a_pair_that_neither_takes_a_copy_nor_says_why_is_a_store_error(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    class Stubborn(MemoryStore):
        def create(self, key: str, sealed: bytes, **rest: Any) -> bool:
            return super().create(key, sealed, **rest) if key == "store id" else False

    grant_id = make_world(server, clock, plain).sign_in(server.issue("alice"))
    world = make_world(server, clock, plain, Stubborn(clock=clock))
    with pytest.raises(StoreError, match="changes all the time"):
        world.get(grant_id)


def test_k3_a_copy_that_has_ended_by_the_clock_of_the_pair_is_none(
    server: RotatingTokenServer, plain: DictStore
) -> None:
    """This host is ten minutes behind: to it the copy has not ended yet."""
    there = FakeClock()
    here = FakeClock(there() - 600)
    grant_id = make_world(server, here, plain, MemoryStore(clock=there)).sign_in(
        server.issue("alice")
    )
    copy = plain.kept[record_key(grant_id)]
    for clock in (here, there):
        clock.advance(14 * 86400 - 300)
    lost = make_world(server, here, plain, MemoryStore(clock=there))
    with pytest.raises(LoginRequired):
        lost.get(grant_id)
    assert lost.store.store.read(record_key(grant_id)) is None
    assert refreshes(server) == []
    # A little sooner it was one for both.
    for clock in (here, there):
        clock.advance(-400)
    plain.kept[record_key(grant_id)] = copy
    assert make_world(server, here, plain, MemoryStore(clock=there)).get(grant_id).value


def test_a_copy_that_has_ended_writes_nothing(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    clock.set(1_700_000_000.0006)  # between two of the milliseconds that a copy knows
    grant_id = make_world(server, clock, plain).sign_in(server.issue("alice"))
    lost = make_world(server, clock, plain)
    clock.advance(14 * 86400)
    with pytest.raises(LoginRequired):
        lost.get(grant_id)
    assert lost.store.mine == ["read"]


def test_d4_a_copy_of_another_pair_is_taken_over_and_said_once(
    server: RotatingTokenServer,
    clock: FakeClock,
    plain: DictStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = (make_world(server, clock, plain) for _ in range(2))
    ids = [one.sign_in(server.issue("alice")) for _ in range(3)]
    for _ in range(2):
        for grant_id in ids:
            assert two.get(grant_id).value == one.get(grant_id).value
    assert [version_of(two, grant_id) for grant_id in ids] == [(1, True)] * 3
    errors = messages(caplog, logging.ERROR)
    assert len([text for text in errors if "set ATM_PAIRED_STORE to redis://" in text]) == 2
    assert len(errors) == 2  # one by each of the two


def test_a_record_that_was_lost_alone_is_a_warning(
    server: RotatingTokenServer,
    clock: FakeClock,
    plain: DictStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = make_world(server, clock, plain)
    grant_id = world.sign_in(server.issue("alice"))
    world.store.store.delete(record_key(grant_id))
    world.get(grant_id)
    assert messages(caplog, logging.ERROR) == []
    assert [text for text in messages(caplog, logging.WARNING) if "evicts records" in text]


def test_the_name_of_the_pair_is_read_again_before_anybody_is_blamed() -> None:
    names = iter(["old", "new"])
    pair = PairName(lambda: next(names))
    assert (pair(), pair()) == ("old", "old")
    assert pair.again() == "new"
    assert pair() == "new"


def test_a_process_that_knows_an_old_name_of_the_pair_blames_nobody(
    server: RotatingTokenServer,
    clock: FakeClock,
    plain: DictStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    atomic = MemoryStore(clock=clock)
    world = make_world(server, clock, plain, atomic)
    grant_id = world.sign_in(server.issue("alice"))
    atomic.delete("store id")
    del plain.kept[record_key(grant_id)]
    make_world(server, clock, plain, atomic).get(grant_id)
    world.get(grant_id)
    assert messages(caplog, logging.ERROR) == []


def test_d8_a_copy_of_a_former_key_is_sealed_anew_while_that_key_opens_it(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    old, new = "0ld-" + "a1b2c3d4" * 6, "n3w-" + "e5f6a7b8" * 6
    atomic = MemoryStore(clock=clock)
    world = make_world(server, clock, plain, atomic, ATM_ENCRYPTION_KEYS=[old])
    grant_id = world.sign_in(server.issue("alice"))
    key = record_key(grant_id)
    both = make_world(server, clock, plain, atomic, ATM_ENCRYPTION_KEYS=[new, old])
    assert not both.state.ring.is_current(plain.kept[key])
    both.get(grant_id)
    assert both.state.ring.is_current(plain.kept[key])
    alone = make_world(server, clock, plain, ATM_ENCRYPTION_KEYS=[new])
    assert alone.get(grant_id).value


def test_a24_a_copy_of_another_client_id_is_none(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    grant_id = make_world(server, clock, plain).sign_in(server.issue("alice"))
    clock.advance(EXPIRED)
    pointed = make_world(server, clock, plain, ATM_CLIENT_ID="another")
    with pytest.raises(LoginRequired):
        pointed.get(grant_id)
    assert pointed.store.store.read(record_key(grant_id)) is None
    assert refreshes(server) == []
    assert make_world(server, clock, plain).get(grant_id)


def test_d7_a_copy_of_another_application_is_none(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    grant_id = make_world(server, clock, plain).sign_in(server.issue("alice"))
    other = make_world(server, clock, plain, SECRET_KEY="another key of another application!!")
    with pytest.raises(LoginRequired):
        other.get(grant_id)


def test_a_copy_whose_session_the_provider_has_ended_lately_is_not_taken_over(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    world = make_world(server, clock, plain)
    grant_id = world.sign_in(server.issue("alice"), sid="s1")
    copy = plain.kept[record_key(grant_id)]
    lost = make_world(server, clock, plain)
    marks = lost.state.provider().tokens.marks
    assert marks is not None
    token = LogoutToken(token_id="1", issued_at=clock(), subject=None, session_id="s1")
    marks.put(token, now=clock())
    for _ in range(2):
        with pytest.raises(LoginRequired):
            lost.get(grant_id)
        # Nor later, when nobody remembers the logout any more.
        clock.advance(3600)
        plain.kept[record_key(grant_id)] = copy


def test_i9_the_use_of_a_grant_is_copied_with_it(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    """So that who was there a moment ago is still signed in after the pair was lost."""
    idle: dict[str, Any] = {"ATM_GRANT_IDLE_TIMEOUT": 200}
    grant_id = (world := make_world(server, clock, plain, **idle)).sign_in(server.issue("alice"))
    for _ in range(2):
        clock.advance(150)
        assert world.state.provider().tokens.open(grant_id) is not None
    clock.advance(150)
    lost = make_world(server, clock, plain, **idle)
    assert lost.state.provider().tokens.open(grant_id) is not None


@pytest.mark.parametrize("restored", [False, True], ids=["lost", "restored"])
def test_i9_a_copy_that_nobody_used_for_too_long_is_not_taken_over(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore, restored: bool
) -> None:
    """In doubt the use of a grant is not written down, and so would not be missed either."""
    idle: dict[str, Any] = {"ATM_GRANT_IDLE_TIMEOUT": 1200}
    world, atomic = make_world(server, clock, plain, **idle), MemoryStore(clock=clock)
    used, unused = (world.sign_in(server.issue("alice")) for _ in range(2))
    keys = [record_key(grant_id) for grant_id in (used, unused)]
    backup = [world.store.store.read(key) for key in keys]
    clock.advance(1100)
    for grant_id in (used, unused):
        world.get(grant_id)
    clock.advance(1100)
    world.get(used)
    clock.advance(150)
    for key, stored in zip(keys, backup, strict=True):
        if restored and stored is not None:
            atomic.create(key, stored.sealed, ends_at=stored.control.ends_at, version=2)
    sent = len(refreshes(server))
    lost = make_world(server, clock, plain, atomic, **idle)
    with pytest.raises(LoginRequired):
        lost.get(unused)
    assert len(refreshes(server)) == sent
    assert lost.get(used).value
    assert version_of(lost, used)[1]


# -- tombstones


@pytest.mark.parametrize("refresh_token", [True, False])
def test_an_end_leaves_a_tombstone_also_after_the_outbox_was_drained(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore, refresh_token: bool
) -> None:
    world = make_world(server, clock, plain)
    response = server.issue("alice")
    if not refresh_token:
        del response["refresh_token"]
    grant_id = world.sign_in(response)
    key = record_key(grant_id)
    copy = plain.kept[key]
    tokens = world.state.provider().tokens
    assert tokens.end(grant_id) is not None
    assert tokens.outbox.drain(due=[key]).revoked == refresh_token
    plain.kept[key] = copy
    assert tokens.open(grant_id) is None
    assert key not in plain.kept
    stored = world.store.store.read(key)
    assert stored is not None
    assert stored.control.tombstone
    assert stored.sealed == b""
    assert tokens.outbox.drain(due=[key]).revoked == 0
    assert tokens.end(grant_id) is None


def test_without_copies_nothing_is_left(server: RotatingTokenServer, clock: FakeClock) -> None:
    server.always(Reply(body={"keys": []}), "/jwks")
    server.always(Reply(body=metadata_of(server)), "/.well-known/openid-configuration")
    store = WatchedStore(MemoryStore(clock=clock))
    state = Setup(config=settings(server), engine=FAST).state(store=store, clock=clock)
    world = World(state=state, store=store, stops=Stops())
    grant_id = world.sign_in(server.issue("alice"))
    state.provider().tokens.end(grant_id)
    state.provider().tokens.outbox.drain(due=[record_key(grant_id)])
    assert store.store.read(record_key(grant_id)) is None


def test_removals_in_one_go_leave_tombstones_too(clock: FakeClock) -> None:
    inner = MemoryStore(clock=clock)
    store = leaving_tombstones(inner)
    assert isinstance(store, BatchedGrantStore)
    assert not isinstance(leaving_tombstones(WatchedStore(inner)), BatchedGrantStore)
    for key in "ab":
        store.create(key, b"x", ends_at=clock() + 10)
    assert store.delete_many([Doomed(key="a"), Doomed(key="b", keep=b"kept")]) == [True, True]
    stored = store.read_many(["a", "b"])
    assert [one.sealed for one in stored if one and one.control.tombstone] == [b"", b"kept"]
    clock.advance(11)
    assert store.read("a") is None


# -- the plain store is silent


class Silent(DictStore):
    """A store that does not answer, in the way that it is told."""

    error: Exception | None = None

    def load(self, key: str) -> bytes | None:
        self._fail()
        return super().load(key)

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        self._fail()
        super().save(key, sealed, lifetime=lifetime)

    def delete(self, key: str) -> None:
        self._fail()
        super().delete(key)

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [StoreError("away"), ConnectionError("away"), TimeoutError()])
def test_a_plain_store_that_is_silent_costs_a_line_a_minute(
    server: RotatingTokenServer,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    plain = Silent()
    world = make_world(server, clock, plain)
    grant_id = world.sign_in(server.issue("alice"))
    plain.error = error
    assert world.get(grant_id).value
    clock.advance(EXPIRED)
    assert world.get(grant_id).value
    other = world.sign_in(server.issue("bob"))
    assert world.state.provider().tokens.end(other) is not None
    assert len([one for one in messages(caplog, logging.WARNING) if "plain store" in one]) == 1
    plain.error = None
    world.get(grant_id)
    assert world.get(grant_id).value
    world.store.store.delete(record_key(grant_id))
    assert world.get(grant_id).value


def test_a_mistake_of_a_plain_store_is_not_hidden(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    plain = Silent()
    world = make_world(server, clock, plain)
    grant_id = world.sign_in(server.issue("alice"))
    plain.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        world.get(grant_id)


def test_c1_the_pair_is_silent_and_no_copy_stands_in_for_it(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    grant_id = make_world(server, clock, plain).sign_in(server.issue("alice"))
    world = make_world(server, clock, plain)
    world.store.down = True
    with pytest.raises(StoreError):
        world.get(grant_id)


# -- what is kept


def test_d10_a_dump_of_the_copies_shows_nothing(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    world = make_world(server, clock, plain)
    response = server.issue("alice")
    grant_id = world.sign_in(response, email="alice@example.com", name="Alice Liddell")
    dump = b"".join(key.encode() + value for key, value in plain.kept.items())
    secrets = [response["access_token"], response["refresh_token"], grant_id, "alice", "Liddell"]
    assert not [one for one in secrets if one.encode() in dump]
    assert grant_id.partition(".")[2].encode() not in dump
    for value in plain.kept.values():
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError)):
            pickle.loads(value)  # noqa: S301


def test_j3_the_same_grant_is_sealed_differently_each_time(
    server: RotatingTokenServer, clock: FakeClock, plain: DictStore
) -> None:
    world = make_world(server, clock, plain)
    grant_id = world.sign_in(server.issue("alice"))
    key = record_key(grant_id)
    first = plain.kept.pop(key)
    world.get(grant_id)
    assert plain.kept[key] != first
    assert len(plain.kept[key]) == len(first)


# -- the pair keeps the contract


class TestThePairOfAPlainStore(StoreContract):
    """C12: what decides beside a plain store has the steps of any atomic store.

    Only what is left of a removed record is something else: a tombstone, until its end.
    """

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "pair.sqlite3"

    @pytest.fixture
    def store(self, path: Path, clock: FakeClock) -> AtomicGrantStore:
        return leaving_tombstones(SQLiteStore(path, clock=clock, timeout=5))

    @pytest.fixture
    def open_store(self, path: Path) -> Callable[[], AtomicGrantStore]:
        return partial(pair_at, path)

    def test_delete_removes(self, store: AtomicGrantStore, clock: FakeClock) -> None:  # type: ignore[override]
        store.create("a", b"grant", ends_at=clock() + 600, index=["user"])
        assert store.delete("a")
        assert not store.delete("a")
        assert buried(store) == {"a": b""}
        assert store.find("user") == []
        assert not store.create("a", b"copy", ends_at=clock() + 600, doubt=True, version=9)
        assert store.adopt("a", b"copy", expected_version=2, version=9) == "gone"
        clock.advance(600)
        assert store.read("a") is None

    def test_a_tombstone_can_be_removed(self, store: AtomicGrantStore, clock: FakeClock) -> None:  # type: ignore[override]
        store.create("a", b"", ends_at=clock() + 600)
        store.delete("a", keep=b"outbox", index=["outbox"])
        assert not store.delete("a")
        assert buried(store) == {"a": b""}
        assert store.find("outbox") == []

    def test_many_are_removed_each_by_itself(  # type: ignore[override]
        self, store: AtomicGrantStore, clock: FakeClock
    ) -> None:
        for key in "abc":
            store.create(key, b"1", ends_at=clock() + 600, index=["user"])
        store.commit("c", b"2", expected_version=1, commit_id="c")
        doomed = [
            Doomed(key="a", keep=b"outbox", index=["outbox"]),
            Doomed(key="b"),
            Doomed(key="c", expected_version=1),
            Doomed(key="none"),
        ]
        assert delete_many(store, doomed) == [True, True, False, False]
        assert buried(store) == {"a": b"outbox", "b": b""}
        assert (store.find("user"), store.find("outbox")) == (["c"], ["a"])


def pair_at(path: Path) -> AtomicGrantStore:
    return leaving_tombstones(SQLiteStore(path, timeout=30))


def buried(store: AtomicGrantStore) -> dict[str, bytes]:
    return {key: one.sealed for key, one in store.scan("", 9) if one.control.tombstone}
