"""D4, and what ``ATM(store=…)``, ``ATM_STORE`` and ``ATM_PAIRED_STORE`` take for a store."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cachelib
import pytest
from flask import Flask
from flask_caching import Cache

from flask_atm import ATM, ConfigurationError, current_user_token, requires_token
from flask_atm.grants.vault import record_key
from flask_atm.pairing import Stores, pair_problem
from flask_atm.state import STATE_KEY, State
from flask_atm.stores import (
    CacheStore,
    MemoryStore,
    PairedStore,
    RedisStore,
    SessionStore,
    SQLiteStore,
    SQLStore,
)
from flask_atm.testing import sign_in
from tests.grants.test_plain_stores import DictStore

ON_KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def make_app(tmp_path: Path, **values: Any) -> Flask:
    app = Flask("paired", instance_path=str(tmp_path))
    app.config.update(
        TESTING=True,
        SECRET_KEY="a secret of 32 characters or more!!",
        ATM_ISSUER="https://login.example.com",
        ATM_CLIENT_ID="app",
        **values,
    )
    return app


def stores_of(app: Flask, **arguments: Any) -> tuple[object, object]:
    ATM(app, **arguments)
    state = app.extensions[STATE_KEY]
    assert isinstance(state, State)
    return state.plain, state.store


def refused(app: Flask, **arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        ATM(app, **arguments)
    (problem,) = caught.value.problems
    return problem


# -- settings


def test_session_mode_has_sqlite_beside_it(tmp_path: Path) -> None:
    plain, atomic = stores_of(make_app(tmp_path, ATM_STORE="session"))
    assert isinstance(plain, SessionStore)
    assert isinstance(atomic, SQLiteStore)
    assert str(tmp_path / "flask_atm.sqlite3") in repr(atomic)


def test_the_pair_is_the_one_that_is_set(tmp_path: Path) -> None:
    app = make_app(tmp_path, ATM_STORE="session", ATM_PAIRED_STORE="redis://127.0.0.1:1/0")
    plain, atomic = stores_of(app)
    assert isinstance(plain, SessionStore)
    assert isinstance(atomic, RedisStore)


def test_settings_of_flask_caching_make_a_cache_of_its_own(tmp_path: Path) -> None:
    # As the environment writes them: in any case.
    app = make_app(tmp_path, ATM_STORE={"cache_type": "SimpleCache"}, ATM_PAIRED_STORE="memory")
    plain, atomic = stores_of(app)
    assert isinstance(plain, CacheStore)
    assert isinstance(atomic, MemoryStore)
    assert "cache" not in app.extensions


@pytest.mark.parametrize(
    ("values", "cure"),
    [
        ({"ATM_STORE": {}}, "needs CACHE_TYPE"),
        ({"ATM_STORE": {"CACHE_TYPE": 1}}, "needs CACHE_TYPE"),
        ({"ATM_STORE": {"CACHE_TYPE": "SimpleCache", "DIR": "x"}}, "DIR: no setting of Flask-"),
        ({"ATM_STORE": {"CACHE_TYPE": "NullCache"}}, "keeps nothing"),
        ({"ATM_STORE": "session", "ATM_PAIRED_STORE": "session"}, "name an atomic one"),
        ({"ATM_STORE": "session", "ATM_PAIRED_STORE": {"CACHE_TYPE": "x"}}, "has to be a text"),
        ({"ATM_STORE": "memory", "ATM_PAIRED_STORE": "sqlite"}, "no plain one: remove it"),
        (
            {"ATM_STORE": "session", "ATM_PAIRED_STORE": "sqlite:////proc/none/x"},
            "ATM_PAIRED_STORE: the folder '/proc/none' cannot be written to",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, values: dict[str, Any], cure: str
) -> None:
    problem = refused(make_app(tmp_path, **values))
    assert cure in problem
    assert problem.startswith(("ATM_STORE", "ATM_PAIRED_STORE", "a NullCache"))


# -- objects


def test_each_kind_of_object_is_told_from_the_others(tmp_path: Path) -> None:
    atomic = MemoryStore()
    found: dict[str, tuple[object, object]] = {}
    cache = cachelib.SimpleCache()
    own = DictStore()
    for name, given in {
        "atomic": atomic,
        "cachelib": PairedStore(cache, atomic),
        "own": PairedStore(own, atomic),
        "session": PairedStore(SessionStore(), atomic),
        "named": PairedStore(own, "memory"),
    }.items():
        found[name] = stores_of(make_app(tmp_path), store=given)
    assert found["atomic"] == (None, atomic)
    assert isinstance(found["cachelib"][0], CacheStore)
    assert found["own"] == (own, atomic)
    assert isinstance(found["session"][0], SessionStore)
    assert isinstance(found["named"][1], MemoryStore)
    assert {name for name, (_, pair) in found.items() if pair is atomic} == {*found} - {"named"}


def test_a_bare_plain_store_is_paired_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for given in (DictStore(), cachelib.SimpleCache(), SessionStore()):
        caplog.clear()
        plain, atomic = stores_of(make_app(tmp_path), store=given)
        assert plain is not None
        assert isinstance(atomic, SQLiteStore)
        (said,) = (one.getMessage() for one in caplog.records)
        assert "is a plain store" in said
        assert "PairedStore(" in said
        assert "ATM_PAIRED_STORE" in said


def test_a_bare_plain_store_whose_pair_is_set_needs_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, atomic = stores_of(make_app(tmp_path, ATM_PAIRED_STORE="memory"), store=DictStore())
    assert isinstance(atomic, MemoryStore)
    assert caplog.records == []


class Half:
    """Two steps of three."""

    def load(self, key: str) -> None: ...

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None: ...


class HalfAtomic:
    """One step of eleven."""

    def begin(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        (Half(), "a Half is no store: it lacks delete of GrantStore"),
        (HalfAtomic(), "a HalfAtomic lacks create, read, commit"),
        (object(), "Give one of flask_atm.stores, a cache of cachelib or Flask-Caching"),
        (MemoryStore, "MemoryStore is a class: give an object"),
        ("redis://h", "write texts and settings of a cache to ATM_STORE"),
        ({"CACHE_TYPE": "x"}, "write texts and settings of a cache to ATM_STORE"),
        (PairedStore(MemoryStore(), "memory"), "is an atomic one, and needs no pair"),
        (PairedStore(DictStore(), "session"), "name an atomic one"),
        (PairedStore(DictStore(), "mongodb://u:secret@h"), "atomic=…) has to be sqlite"),
        (PairedStore(DictStore(), DictStore()), "takes an atomic store"),  # type: ignore[arg-type]
        (PairedStore(DictStore(), MemoryStore), "not MemoryStore"),  # type: ignore[arg-type]
        (cachelib.NullCache(), "keeps nothing"),
        (Cache(), "call cache.init_app(app) before atm.init_app(app)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_store_is_refused_with_the_cure(
    tmp_path: Path, given: object, cure: str
) -> None:
    problem = refused(make_app(tmp_path), store=given)
    assert cure in problem
    assert "secret" not in problem


def test_two_pairs_are_refused(tmp_path: Path) -> None:
    app = make_app(tmp_path, ATM_PAIRED_STORE="memory")
    assert "remove one" in refused(app, store=PairedStore(DictStore(), MemoryStore()))
    app = make_app(tmp_path, ATM_PAIRED_STORE="memory")
    assert "remove it" in refused(app, store=MemoryStore())


# -- D4


@pytest.mark.parametrize(
    ("plain", "atomic", "environ", "seen"),
    [
        (SessionStore(), SQLiteStore("/x"), ON_KUBERNETES, "on Kubernetes"),
        (DictStore(), MemoryStore(), {"DYNO": "web.1"}, "on Heroku"),
        (
            CacheStore(cachelib.RedisCache(object())),
            SQLiteStore("/x"),
            {},
            "<CacheStore RedisCache> may be shared",
        ),
        (CacheStore(cachelib.MemcachedCache(object())), MemoryStore(), {}, "MemcachedCache"),
        (SessionStore(), SQLStore("sqlite+pysqlite:////x"), ON_KUBERNETES, "on Kubernetes"),
        (SessionStore(), SQLiteStore("/x"), {}, None),
        (SessionStore(), RedisStore("redis://127.0.0.1:1"), ON_KUBERNETES, None),
        (CacheStore(cachelib.SimpleCache()), MemoryStore(), {}, None),
        (None, SQLiteStore("/x"), ON_KUBERNETES, None),
    ],
    ids=[
        *("kubernetes", "heroku", "redis cache", "memcached", "sqlite by sql", "one host"),
        *("shared pair", "local cache", "no plain store"),
    ],
)
def test_d4_a_pair_that_each_host_has_for_itself(
    plain: Any, atomic: Any, environ: Mapping[str, str], seen: str | None
) -> None:
    problem = pair_problem(Stores(atomic=atomic, plain=plain), environ)
    if seen is None:
        assert problem is None
    else:
        assert problem is not None
        assert seen in problem
        assert "set ATM_PAIRED_STORE to redis://" in problem


def test_d4_it_is_said_at_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    stores_of(make_app(tmp_path, ATM_STORE="session"))
    (said,) = (one for one in caplog.records if one.levelno == logging.WARNING)
    assert "on Kubernetes there may be several hosts" in said.getMessage()
    caplog.clear()
    stores_of(make_app(tmp_path, ATM_STORE="session", ATM_PAIRED_STORE="redis://127.0.0.1:1"))
    assert caplog.records == []


# -- the cache of an application


def test_clearing_the_cache_of_the_application_signs_nobody_out(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    cache = Cache(app, config={"CACHE_TYPE": "SimpleCache"})
    ATM(app, store=PairedStore(cache, MemoryStore()))

    @app.get("/token")
    @requires_token
    def token() -> str:
        return current_user_token.value

    client = app.test_client()
    grant_id = sign_in(client, access_token="the-token")
    plain = app.extensions[STATE_KEY].plain
    assert plain.load(record_key(grant_id))
    with app.app_context():
        cache.set("theirs", "a page")
        assert cache.get("theirs") == "a page"
        cache.clear()
    assert plain.load(record_key(grant_id)) is None
    assert client.get("/token").text == "the-token"
    assert plain.load(record_key(grant_id))


def test_files_that_a_cache_has_thrown_out_sign_nobody_out(tmp_path: Path) -> None:
    app = make_app(tmp_path / "instance")
    files = cachelib.FileSystemCache(str(tmp_path / "cache"), threshold=3)
    ATM(app, store=PairedStore(files, MemoryStore()))

    @app.get("/token")
    @requires_token
    def token() -> str:
        return current_user_token.value

    clients = [app.test_client() for _ in range(8)]
    for number, client in enumerate(clients):
        sign_in(client, access_token=f"token-{number}")
    assert len(list((tmp_path / "cache").iterdir())) < 8
    assert [client.get("/token").text for client in clients] == [f"token-{n}" for n in range(8)]
