"""The end of many grants at once: I5 and I7, on every store that has batches, and on one that has
none."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flask_atm.endings import end_grants, end_session
from flask_atm.errors import LoginRequired
from flask_atm.globals import current_user_token
from flask_atm.grants.answers import Tokens
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.stores import MemoryStore, SQLiteStore
from flask_atm.grants.user_tokens import NewGrant
from flask_atm.grants.vault import new_grant_id, record_key
from flask_atm.meaning import meaning
from flask_atm.oauth.logout_token import LogoutToken
from flask_atm.protocols import AtomicGrantStore, BatchedGrantStore, Doomed
from flask_atm.signals import user_logged_out
from flask_atm.state import STATE_KEY, State
from flask_atm.testing import FakeClock
from flask_atm.tokens import Secret, TokenParameters
from tests.grants.processes import run_everywhere
from tests.grants.support import SECRET_KEY, Setup
from tests.grants.tools import WatchedStore
from tests.servers.postgres_server import PostgresServer
from tests.servers.redis_server import RedisServer

MANY = 10_000
SERVERS = {"redis": "redis_url", "sql": "postgres_url"}
STORES = ("memory", "sqlite", "redis", "sql")


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with RedisServer() as server:
        yield server.url


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with PostgresServer() as server:
        yield server.url()


@pytest.fixture
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Name a store of each kind by its URL."""

    def url(kind: str) -> str:
        if kind in SERVERS:
            found: str = request.getfixturevalue(SERVERS[kind])
            return found
        return f"sqlite:///{tmp_path / 'grants.sqlite3'}" if kind == "sqlite" else kind

    return url


def setup_of(store: str, **more: Any) -> Setup:
    return Setup(
        config={
            "SECRET_KEY": SECRET_KEY,
            "ATM_ISSUER": "https://id.example",
            "ATM_CLIENT_ID": "app",
            "ATM_CLIENT_SECRET": "secret",
            "ATM_STORE": store,
            # What one test leaves behind in a server is not there for the next one.
            "ATM_STORE_PREFIX": f"atm{secrets.token_hex(4)}",
            **more,
        }
    )


def put(state: State, *, subject: str = "alice", lifetime: float = 300, **claims: Any) -> str:
    """Store a grant as large as they are."""
    tokens = Tokens(
        access_token=Secret("a" * 900),
        token_type="Bearer",
        lifetime=lifetime,
        refresh_token=Secret("r" * 60),
        id_token=Secret("i" * 900),
    )
    now = state.clock()
    new = NewGrant(
        tokens=tokens,
        claims={"sub": subject, "iat": now, "name": "Alice Adams", **claims},
        scope=("openid",),
        requested_at=now,
    )
    return state.provider().tokens.create(new)


def order(state: State, *, jti: str = "1", **named: str) -> LogoutToken:
    named = named or {"subject": "alice"}
    return LogoutToken(token_id=jti, issued_at=state.clock(), **named)


def filled(state: State, number: int) -> list[str]:
    """Store many grants of one subject, each of a session of its own."""
    keys = []
    tokens, template = state.provider().tokens, put(state, sid="0")
    grant = tokens.vault.read_stored(record_key(template))
    assert grant is not None
    for _ in range(number - 1):
        key = record_key(new_grant_id("oidc"))
        sealed = tokens.vault.seal(key, grant.grant, version=1)
        index = tokens.index(grant.grant)
        state.store.create(key, sealed, ends_at=grant.control.ends_at, index=index)
        keys.append(key)
    return [record_key(template), *keys]


# -- I7


def slowdown() -> float:
    """How much longer things take than they would if nobody else was at work on this machine."""
    wall, mine = time.perf_counter(), time.process_time()
    while time.process_time() - mine < 0.1:
        sum(range(1000))
    return max(1.0, (time.perf_counter() - wall) / (time.process_time() - mine))


@pytest.mark.timed
@pytest.mark.parametrize("kind", STORES)
def test_i7_10000_sessions_of_one_subject_end_in_2_seconds(
    kind: str, urls: Callable[[str], str]
) -> None:
    took: list[float] = []
    while len(took) < 3 and min(took, default=9.0) >= 2.0:
        state = setup_of(urls(kind)).state()
        filled(state, MANY)
        others = slowdown()
        begun = time.perf_counter()
        assert end_session(state, state.provider(), order(state)) == MANY
        took.append((time.perf_counter() - begun) / max(others, slowdown()))
        # All of them are still to be revoked, and none is left to sign out.
        assert len(state.store.find(state.provider().tokens.outbox.entries[0], MANY + 1)) == MANY
        assert end_session(state, state.provider(), order(state)) == 0
    assert min(took) < 2.0, took


class Sizes(MemoryStore):
    """Knows how much it was asked for at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def read_many(self, keys: Any) -> Any:
        self.sizes.append(len(keys))
        return super().read_many(keys)

    def delete_many(self, doomed: Any) -> list[bool]:
        self.sizes.append(len(doomed))
        return super().delete_many(doomed)

    def find(self, index: str, limit: int = 100) -> list[str]:
        found = super().find(index, limit)
        self.sizes.append(len(found))
        return found


def test_i7_batches_are_bounded() -> None:
    store = Sizes()
    state = setup_of("memory").state(store=store)
    filled(state, 1800)
    store.sizes.clear()
    assert end_session(state, state.provider(), order(state)) == 1800
    assert max(store.sizes) == 500


class Timed(SQLiteStore):
    """Notes how long each transaction has kept others out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.locked: list[float] = []

    def _write(self, step: Any) -> Any:
        begun = time.perf_counter()
        try:
            return super()._write(step)
        finally:
            self.locked.append(time.perf_counter() - begun)


@pytest.mark.timed
def test_i7_nobody_is_locked_out_for_50_ms(tmp_path: Path) -> None:
    worst = []
    for turn in range(3):  # other processes of this machine may be at work
        store = Timed(tmp_path / f"{turn}.sqlite3")
        state = setup_of("sqlite").state(store=store)
        filled(state, 3000)
        store.locked.clear()
        assert end_session(state, state.provider(), order(state)) == 3000
        assert len(store.locked) > 20
        worst.append(sorted(store.locked)[-2])
    assert min(worst) < 0.05, worst


# -- which of them


@pytest.mark.parametrize("kind", STORES)
def test_those_that_stay_do_not_hide_the_others(kind: str, urls: Callable[[str], str]) -> None:
    state = setup_of(urls(kind)).state()
    now = state.clock()
    # More than one batch of sign-ins that are younger than the token.
    younger = [put(state, iat=now + 500) for _ in range(600)]
    older = [put(state) for _ in range(700)]
    assert end_session(state, state.provider(), order(state)) == 700
    tokens = state.provider().tokens
    assert [tokens.open(one) for one in older[:20]] == [None] * 20
    assert None not in [tokens.open(one) for one in younger]


@pytest.mark.parametrize("kind", STORES)
def test_grants_end_by_their_keys(kind: str, urls: Callable[[str], str]) -> None:
    state = setup_of(urls(kind)).state()
    grants, stays = [put(state) for _ in range(3)], put(state)
    told: list[Any] = []

    def listen(app: Any, **details: Any) -> None:
        told.append(details["claims"]["sub"])

    keys = [*map(record_key, grants), "none", "store id"]
    state.store_id()
    with user_logged_out.connected_to(listen, sender=state.app):
        assert end_grants(state, state.provider(), keys) == 3
        assert end_grants(state, state.provider(), keys) == 0
    assert told == ["alice"] * 3
    assert state.provider().tokens.open(stays) is not None
    assert state.store.read("store id") is not None


def test_a_store_without_batches_is_asked_one_by_one() -> None:
    store = WatchedStore(MemoryStore())
    assert not isinstance(store, BatchedGrantStore)
    state = setup_of("memory").state(store=store)
    for _ in range(7):
        put(state)
    store.calls.clear()
    assert end_session(state, state.provider(), order(state)) == 7
    assert store.count("delete") == 7
    assert store.count("find") == 2


class Renewing(MemoryStore):
    """Somebody renews a grant between each look and each removal."""

    turns = 0

    def delete_many(self, doomed: Any) -> list[bool]:
        for one in doomed:
            stored = self.read(one.key)
            if stored is not None and not stored.control.tombstone and self.turns < 9:
                self.turns += 1
                version = stored.control.version
                self.begin(one.key, owner="x", expected_version=version, lease=9, intent="h")
                self.abort(one.key, owner="x", clear_intent=True)
        return super().delete_many(doomed)


def test_what_is_renewed_meanwhile_ends_all_the_same() -> None:
    store = Renewing()
    state = setup_of("memory").state(store=store)
    grant_id = put(state)
    assert end_session(state, state.provider(), order(state)) == 1
    assert store.turns == 4
    assert state.provider().tokens.open(grant_id) is None


def test_a_grant_that_no_key_of_the_ring_opens_ends_too() -> None:
    """Its key may come back into the ring, but its user must not come back with it."""
    store = MemoryStore()
    here = setup_of("memory").state(store=store)
    tokens = here.provider().tokens
    grant_id = put(here)
    key = record_key(grant_id)
    stored = store.read(key)
    assert stored is not None
    foreign = KeyRing([b"another secret of thirty-two bytes"])
    sealed = foreign.seal_json({"a": 1}, purpose="grant", record=key)
    assert store.update(key, sealed, expected_version=1) == "ok"
    broken = put(here)
    changed = tokens.ring.seal_json({"a": 1}, purpose="another", record=record_key(broken))
    assert store.update(record_key(broken), changed, expected_version=1) == "ok"
    assert end_grants(here, here.provider(), [key, record_key(broken)]) == 0
    assert store.read(key) is not None
    assert end_session(here, here.provider(), order(here)) == 0
    # What another provider of the same registration has sealed looks like the second one.
    assert (store.read(key), store.read(record_key(broken)) is None) == (None, False)


def test_entries_of_former_keys_are_found() -> None:
    store = MemoryStore()
    old, new = "an older secret of thirty-two bytes!", "a newer secret of thirty-two bytes!!"
    before = setup_of("memory", SECRET_KEY=old).state(store=store)
    grant_id = put(before)
    after = setup_of("memory", SECRET_KEY=new, SECRET_KEY_FALLBACKS=[old]).state(store=store)
    assert after.provider().tokens.open(grant_id) is not None
    assert end_session(after, after.provider(), order(after)) == 1
    assert after.provider().tokens.open(grant_id) is None


@pytest.mark.parametrize("kind", STORES)
def test_marks_are_kept_for_ten_minutes(kind: str, urls: Callable[[str], str]) -> None:
    state = setup_of(urls(kind)).state()
    assert end_session(state, state.provider(), order(state)) == 0
    marks = state.provider().tokens.marks
    assert marks is not None
    (key,) = {key for entry in marks._entries("sub", "alice") for key in state.store.find(entry)}
    stored = state.store.read(key)
    assert stored is not None
    assert stored.control.ends_at - stored.now >= 600


def test_a_mark_that_nobody_can_read_keeps_nobody_out() -> None:
    state = setup_of("memory").state()
    marks = state.provider().tokens.marks
    assert marks is not None
    end = state.clock() + 100
    state.store.create("logout:x", b"junk", ends_at=end, index=marks._entries("sub", "alice"))
    assert state.provider().tokens.open(put(state)) is not None


# -- I5


@dataclass(frozen=True, kw_only=True)
class UseUntilRefused:
    """Use a token all the time, in one long context, until somebody ends the sign-in."""

    grant_id: str
    folder: str
    processes: int

    def __call__(self, state: State, number: int) -> tuple[str, float]:
        state.app.extensions[STATE_KEY] = state
        folder = Path(self.folder)
        with state.app.app_context(), meaning(grant_id=self.grant_id):
            assert current_user_token.value
            (folder / f"{number}").touch()
            if number == 0:
                return self.end(state, folder)
            last = 0.0
            give_up = time.time() + 60
            while time.time() < give_up:
                begun = time.time()
                try:
                    assert str(current_user_token.value)
                except LoginRequired:
                    return "refused", last
                last = begun
        raise AssertionError("nobody has ended it")

    def end(self, state: State, folder: Path) -> tuple[str, float]:
        give_up = time.time() + 60
        while len(list(folder.iterdir())) < self.processes and time.time() < give_up:
            threading.Event().wait(0.01)
        assert end_session(state, state.provider(), order(state)) == 1
        return "ended", time.time()


@pytest.mark.timed
@pytest.mark.parametrize("kind", ["sqlite", "redis", "sql"])
def test_i5_8_processes_refuse_within_1_second(
    kind: str, urls: Callable[[str], str], tmp_path: Path
) -> None:
    refuse_within_1_second(setup_of(urls(kind)), tmp_path)


@pytest.mark.timed
@pytest.mark.parametrize("kind", ["sqlite", "redis", "sql"])
def test_i6_8_processes_with_copies_in_the_session_refuse_within_1_second(
    kind: str, urls: Callable[[str], str], tmp_path: Path
) -> None:
    refuse_within_1_second(setup_of("session", ATM_PAIRED_STORE=urls(kind)), tmp_path)


def refuse_within_1_second(setup: Setup, tmp_path: Path) -> None:
    grant_id = put(setup.state())
    folder = tmp_path / "ready"
    folder.mkdir()
    job = UseUntilRefused(grant_id=grant_id, folder=str(folder), processes=8)
    results = run_everywhere(setup, job, processes=8, threads=1)
    words = [result[0] for result in results]
    assert sorted(words) == ["ended"] + ["refused"] * 7, results
    (ended_at,) = [at for word, at in results if word == "ended"]
    # When the last use began that was still served.
    assert max(at for word, at in results if word == "refused") <= ended_at + 1.0


# -- one record of a batch


def test_a_batch_says_of_each_what_became_of_it(urls: Callable[[str], str]) -> None:
    for kind in STORES:
        state = setup_of(urls(kind)).state()
        store = state.store
        assert isinstance(store, BatchedGrantStore)
        plain: AtomicGrantStore = state.store
        end = state.clock() + 100
        plain.create("a", b"", ends_at=end)
        assert store.delete_many([Doomed(key="a"), Doomed(key="b")]) == [True, False]


def test_tokens_of_an_ended_grant_are_not_given(urls: Callable[[str], str]) -> None:
    clock = FakeClock()
    state = setup_of("memory").state(store=MemoryStore(clock=clock), clock=clock)
    grant_id = put(state)
    assert end_session(state, state.provider(), order(state)) == 1
    with pytest.raises(LoginRequired):
        state.provider().tokens.get(grant_id, TokenParameters())
