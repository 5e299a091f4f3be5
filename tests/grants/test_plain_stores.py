"""The contract of plain stores, and that caches pickle nothing of ours and keep what is theirs."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cachelib
import pytest
import redis
from flask import Flask, g
from flask.testing import FlaskClient
from flask_caching import Cache

from flask_atm.browser_session import SESSION_KEY, remember
from flask_atm.errors import ConfigurationError, StoreError
from flask_atm.grants.stores.caching import _Plain
from flask_atm.grants.stores.session import Handle
from flask_atm.grants.vault import record_key
from flask_atm.protocols import GrantStore
from flask_atm.stores import CacheStore, SessionStore
from flask_atm.testing.plain_contract import PairedSite, PlainStoreContract
from tests.servers.redis_server import RedisServer

KEY = "0123456789abcdef" * 4


class DictStore:
    """What an application may write."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def load(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        self.kept[key] = sealed

    def delete(self, key: str) -> None:
        self.kept.pop(key, None)


class TestDictStore(PlainStoreContract):
    @pytest.fixture
    def store(self) -> GrantStore:
        return DictStore()


class Remembers(DictStore):
    """Gives something back before anything was saved."""

    def load(self, key: str) -> bytes | None:
        return self.kept.get(key, b"")


class Strips(DictStore):
    """Takes the bytes for a line of text."""

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        self.kept[key] = sealed.strip()


class KeepsTheFirst(DictStore):
    """Inserts, and never updates."""

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        self.kept.setdefault(key, sealed)


class HasOneKey(DictStore):
    """Mixes its keys up."""

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        self.kept = {**dict.fromkeys(self.kept, sealed), key: sealed}


class DeletesNothing(DictStore):
    """Keeps what nobody asks for any more."""

    def delete(self, key: str) -> None:
        assert key


class MissesWhatIsNotThere(DictStore):
    """Raises what a dictionary raises."""

    def delete(self, key: str) -> None:
        del self.kept[key]


class CountsIn32Bits(DictStore):
    """Takes a long time for one that is over."""

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        if lifetime < 2**31:
            super().save(key, sealed, lifetime=lifetime)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Remembers, "nothing_is_there_at_first"),
        (Strips, "arbitrary_bytes_come_back"),
        (KeepsTheFirst, "the_last_save_counts"),
        (HasOneKey, "keys_do_not_mix"),
        (DeletesNothing, "keys_do_not_mix"),
        (MissesWhatIsNotThere, "what_is_not_there_is_deleted_too"),
        (CountsIn32Bits, "any_lifetime_is_taken"),
    ],
)
def test_c12_every_wrong_plain_store_fails_its_line(kind: type[DictStore], line: str) -> None:
    check = getattr(PlainStoreContract(), f"test_{line}")
    keys = record_key("one"), record_key("two")
    with pytest.raises((AssertionError, KeyError)):
        check(kind(), keys)
    check(DictStore(), keys)


class TestSessionStore(PlainStoreContract):
    """In requests of a browser that has two grants."""

    @pytest.fixture
    def keys(self) -> tuple[str, str]:
        return record_key("one.secret"), record_key("two.secret")

    @pytest.fixture
    def store(self) -> GrantStore:
        return SessionStore()

    @pytest.fixture(autouse=True)
    def _request(self, request: pytest.FixtureRequest) -> Iterator[None]:
        if "site" in request.fixturenames:
            yield
            return
        app = Flask("browser")
        app.secret_key = "x" * 32
        with app.test_request_context():
            for provider in ("one", "two"):
                remember(provider, "store", f"{provider}.secret")
            yield

    def copy_of(self, site: PairedSite, client: FlaskClient, grant_id: str) -> bytes | None:
        with client.session_transaction() as session:
            present = dict(session)
        with site.app.test_request_context() as context:
            context.session.update(present)
            return SessionStore().load(record_key(grant_id))

    def put_copy(
        self, site: PairedSite, client: FlaskClient, grant_id: str, sealed: bytes | None
    ) -> None:
        with client.session_transaction() as session, site.app.test_request_context() as context:
            context.session.update(session)
            store, key = SessionStore(), record_key(grant_id)
            if sealed is None:
                store.delete(key)
            else:
                store.save(key, sealed, lifetime=1.0)
            session[SESSION_KEY] = context.session[SESSION_KEY]


class TestSimpleCache(PlainStoreContract):
    @pytest.fixture
    def store(self) -> GrantStore:
        return CacheStore(cachelib.SimpleCache())


class TestFileSystemCache(PlainStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> GrantStore:
        return CacheStore(cachelib.FileSystemCache(str(tmp_path / "cache")))

    def test_one_beside_the_cache_of_the_application(self, tmp_path: Path) -> None:
        """Its count of files is read by both, its values stay what they are."""
        theirs = cachelib.FileSystemCache(str(tmp_path / "shared"), threshold=3)
        store = CacheStore(theirs)
        theirs.set("page", {"html": "<p>"})
        store.save(KEY, b"sealed", lifetime=60)
        assert theirs.get("page") == {"html": "<p>"}
        assert theirs._file_count == 2
        for number in range(20):
            theirs.set(str(number), number)
            store.save(f"{number:064x}", b"sealed", lifetime=60)
        assert len(list(theirs._list_dir())) <= 5
        assert {theirs.get(str(number)) for number in range(20)} - {None} <= set(range(20))
        assert store.load(f"{19:064x}") == b"sealed"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


class TestRedisCache(PlainStoreContract):
    @pytest.fixture
    def client(self, server: RedisServer) -> Iterator[Any]:
        client = redis.Redis.from_url(server.url)
        client.flushall()
        yield client
        client.close()

    @pytest.fixture
    def store(self, client: Any) -> GrantStore:
        return CacheStore(cachelib.RedisCache(host=client))

    def test_what_redis_has_is_ours_alone(self, store: GrantStore, client: Any) -> None:
        store.save(KEY, b"sealed", lifetime=60)
        assert client.keys() == [f"flask_atm:{KEY}".encode()]
        assert client.get(f"flask_atm:{KEY}") == b"flask-atm 1\0sealed"
        assert 50 < client.ttl(f"flask_atm:{KEY}") <= 60

    def test_a_server_that_is_gone_is_a_store_error(self) -> None:
        with RedisServer() as running:
            client = redis.Redis.from_url(running.url, retry=None)
            store = CacheStore(cachelib.RedisCache(host=client))
            store.save(KEY, b"sealed", lifetime=60)
        with pytest.raises(StoreError, match="does not answer"):
            store.load(KEY)
        with pytest.raises(StoreError, match="does not answer"):
            store.save(KEY, b"", lifetime=60)
        with pytest.raises(StoreError, match="does not answer"):
            store.delete(KEY)
        client.close()


class TestFlaskCaching(PlainStoreContract):
    """A cache of its own, by settings."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> GrantStore:
        settings = {"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": str(tmp_path / "c")}
        return CacheStore.from_settings(Flask("x"), settings, prefix="mine")


# -- the cache of the application


class Explosive:
    """A value that shows when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_the_cache_of_the_application_stays_as_it_is() -> None:
    app = Flask("shared")
    cache = Cache(app, config={"CACHE_TYPE": "SimpleCache"})
    before = cache.cache.serializer
    store = CacheStore(cache).of(app)
    with app.app_context():
        cache.set("theirs", {"a": 1})
        store.save(KEY, b"ours", lifetime=60)
        assert cache.get("theirs") == {"a": 1}
        assert cache.cache.serializer is before
        cache.clear()
    assert store.load(KEY) is None


def test_without_an_atm_the_cache_of_the_context_is_used() -> None:
    app = Flask("alone")
    cache = Cache(app, config={"CACHE_TYPE": "SimpleCache"})
    store = CacheStore(cache)
    with app.app_context():
        store.save(KEY, b"ours", lifetime=60)
        assert store.load(KEY) == b"ours"
        assert not store.is_shared
    assert CacheStore(cache).of(app).load(KEY) == b"ours"


def test_an_own_cache_leaves_nothing_in_the_application() -> None:
    app = Flask("own")
    CacheStore.from_settings(app, {"CACHE_TYPE": "SimpleCache"}, prefix="p")
    assert "cache" not in app.extensions
    theirs = Cache(app, config={"CACHE_TYPE": "SimpleCache"})
    tags = dict(vars(app.jinja_env))
    CacheStore.from_settings(app, {"CACHE_TYPE": "SimpleCache"}, prefix="p")
    assert list(app.extensions["cache"]) == [theirs]
    assert dict(vars(app.jinja_env)) == tags


def test_nothing_is_unpickled_whoever_has_put_it_there(tmp_path: Path) -> None:
    bomb = pickle.dumps(Explosive(tmp_path / "exploded"))
    simple = cachelib.SimpleCache()
    store = CacheStore(simple)
    store.save(KEY, b"sealed", lifetime=60)
    name = next(iter(simple._cache))
    simple._cache[name] = (0, bomb)
    assert store.load(KEY) is None
    files = cachelib.FileSystemCache(str(tmp_path / "files"))
    store = CacheStore(files)
    store.save(KEY, b"sealed", lifetime=60)
    file = Path(files._get_filename(f"flask_atm:{KEY}"))
    file.write_bytes(file.read_bytes()[:4] + bomb)
    assert store.load(KEY) is None
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["simple", "files"])
def test_no_value_of_ours_is_a_pickle(kind: str, tmp_path: Path) -> None:
    store, stored = _one_of(kind, tmp_path)
    store.save(KEY, b"sealed", lifetime=60)
    assert stored() == [b"flask-atm 1\0sealed"]


def _one_of(kind: str, tmp_path: Path) -> tuple[CacheStore, Any]:
    if kind == "simple":
        simple = cachelib.SimpleCache()
        return CacheStore(simple), lambda: [value for _, value in simple._cache.values()]
    files = cachelib.FileSystemCache(str(tmp_path))
    return CacheStore(files), lambda: [Path(f).read_bytes()[4:] for f in files._list_dir()]


@pytest.mark.parametrize("number", [0, 1, 255, 256, 65_535, 65_536, 2_000_000_000])
def test_numbers_of_files_are_read_whoever_wrote_them(number: int) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        if protocol >= 2:
            assert _Plain().loads(pickle.dumps(number, protocol)) == number
    assert _Plain().loads(_Plain().dumps(number)) == number
    assert pickle.loads(_Plain().dumps(number)) == number  # noqa: S301


class Client:
    """A client of Memcached, as their interface is: bytes are left alone."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def set(self, key: str, value: bytes, timeout: int) -> bool:
        assert type(value) is bytes
        self.kept[key] = value
        return len(value) < 1000

    def delete(self, key: str) -> bool:
        return self.kept.pop(key, None) is not None


def test_memcached_gets_bytes_which_its_clients_do_not_pickle() -> None:
    client = Client()
    store = CacheStore(cachelib.MemcachedCache(client), prefix="p")
    store.save(KEY, b"sealed", lifetime=60)
    assert client.kept == {f"p:{KEY}": b"flask-atm 1\0sealed"}
    assert store.load(KEY) == b"sealed"
    with pytest.raises(StoreError, match="does not take"):
        store.save(KEY, b"x" * 1000, lifetime=60)
    client.kept[f"p:{KEY}"] = b"of somebody else"
    assert store.load(KEY) is None
    assert store.is_shared
    assert not CacheStore(cachelib.SimpleCache()).is_shared


class Pickles(cachelib.BaseCache):
    """A cache that nobody knows how it stores."""

    def set(self, key: str, value: Any, timeout: Any = None) -> bool:
        return True


@pytest.mark.parametrize(
    ("cache", "cure"),
    [
        (cachelib.NullCache(), "keeps nothing.*another CACHE_TYPE"),
        (cachelib.BaseCache(), "keeps nothing"),
        (Pickles(), "use another CACHE_TYPE"),
        ({}, "takes a cache of cachelib or Flask-Caching, not dict"),
    ],
    ids=["null", "base", "unknown", "dict"],
)
def test_a_cache_that_is_of_no_use_is_refused_with_its_cure(cache: object, cure: str) -> None:
    with pytest.raises(ConfigurationError, match=cure):
        CacheStore(cache)


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"CACHE_TYPE": "NullCache"}, "keeps nothing"),
        ({"CACHE_TYPE": "NoSuchCache"}, "make no cache"),
        ({"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "/proc/none"}, "make no cache"),
    ],
    ids=str,
)
def test_settings_that_make_no_cache_are_refused(settings: dict[str, Any], cure: str) -> None:
    with pytest.raises(ConfigurationError, match=cure):
        CacheStore.from_settings(Flask("x"), settings, prefix="p")


@pytest.mark.parametrize("url", ["redis://:canary/rest@host:6379/0", "redis://:rest@host:canary"])
def test_j1_settings_that_make_no_cache_do_not_show_their_secrets(url: str) -> None:
    settings = {"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": url}
    with pytest.raises(ConfigurationError, match="special characters") as caught:
        CacheStore.from_settings(Flask("x"), settings, prefix="p")
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_cache_without_an_application_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"cache.init_app\(app\) before atm.init_app"):
        CacheStore(Cache()).of(Flask("x"))


# -- the session


@pytest.mark.parametrize("value", [None, 1, "", "a", "a.", "a.b.c.d", ["a.b"], "..", "a.\ud800"])
def test_what_is_no_handle_is_none(value: object) -> None:
    assert Handle.parse(value) is None


def test_outside_a_request_the_session_has_nothing() -> None:
    store = SessionStore()
    assert store.load(KEY) is None
    store.save(KEY, b"sealed", lifetime=60)
    store.delete(KEY)
    app = Flask("x")
    app.secret_key = "x" * 32
    with app.test_request_context():
        store.save(KEY, b"sealed", lifetime=60)
        assert store.load(KEY) is None
        assert "_atm_taken_out" not in g
