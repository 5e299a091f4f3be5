"""D10, J1: who gets at the data of a store, and not at its keys, has nothing."""

import ast
import re
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import pytest
import redis

from flask_atm.grants.stores.session import Handle
from flask_atm.grants.vault import record_key
from flask_atm.tokens import TokenParameters
from tests.servers import OIDCServer
from tests.servers.postgres_server import PostgresServer
from tests.servers.redis_server import RedisServer
from tests.top.support import HERE, Site, make_site

ROOT: Final = Path(__file__).parents[1]
SECRET_KEY: Final = "canary-secret-key-0f1e2d3c4b5a69788796a5b4c3d2e1f0"
#: Who signs in: this is in their claims, with names made from it.
USERS: Final = ("canaryuser5d8f", "canaryuser77c1", "canaryuser90ab")
#: A pickle of any value that is longer than a moment, and what a pickle of our values would name.
PICKLES: Final = (
    re.compile(rb"\x80[\x04\x05]\x95.{2}\x00{6}", re.DOTALL),
    re.compile(rb"\x80[\x02\x03][cK\]}(]?(flask_atm|builtins|copyreg)"),
    re.compile(rb"cflask_atm|flask_atm\.(grants|tokens|protocols)|copyreg|__reduce"),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an application keeps its grants.

    :param dump: gives all that somebody finds who copies its files.
    """

    config: dict[str, Any]
    dump: Callable[[], bytes]


def files(folder: Path) -> bytes:
    """All files below a folder, with their names."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return b"\n".join(b"%b\n%b" % (path.name.encode(), path.read_bytes()) for path in found)


@contextmanager
def in_sqlite(folder: Path) -> Iterator[Place]:
    """The file and, while somebody has it open, its log and index."""

    def dump() -> bytes:
        assert (folder / "grants.sqlite3-wal").stat().st_size
        return files(folder)

    yield Place(config={"ATM_STORE": f"sqlite:///{folder / 'grants.sqlite3'}"}, dump=dump)


@contextmanager
def in_redis(folder: Path) -> Iterator[Place]:
    """The append-only file, a snapshot, and what is sent to a replica: the last two are alike."""
    options = ("--appendfsync", "always", "--rdbcompression", "no")
    with RedisServer(*options, appendonly=True) as server:

        def dump() -> bytes:
            with redis.Redis.from_url(server.url) as client:
                client.save()
            found = files(server.folder)
            assert b"REDIS" in found or b"VALKEY" in found
            assert b"EVALSHA" in found or b"flask_atm:grant:" in found
            return found

        yield Place(config={"ATM_STORE": server.url}, dump=dump)


@contextmanager
def in_postgres(folder: Path) -> Iterator[Place]:
    """All rows of all tables."""
    with PostgresServer() as server:

        def dump() -> bytes:
            listed = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            tables = [table for (table,) in server.execute(listed)]
            assert len(tables) == 2
            rows = [row for table in tables for row in server.execute(f'TABLE "{table}"')]
            cells = [cell for row in rows for cell in row]
            found = [one if isinstance(one, bytes) else str(one).encode() for one in cells]
            return b"\n".join(found)

        yield Place(config={"ATM_STORE": server.url()}, dump=dump)


@contextmanager
def in_a_cache(folder: Path) -> Iterator[Place]:
    """The files of the cache, and the atomic store beside it."""
    cache = {"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": str(folder / "cache")}
    pair = f"sqlite:///{folder / 'grants.sqlite3'}"

    def dump() -> bytes:
        assert len(list((folder / "cache").iterdir())) > 1
        return files(folder)

    yield Place(config={"ATM_STORE": cache, "ATM_PAIRED_STORE": pair}, dump=dump)


@contextmanager
def in_the_session(folder: Path) -> Iterator[Place]:
    """The atomic store beside the session."""
    pair = f"sqlite:///{folder / 'grants.sqlite3'}"
    yield Place(
        config={"ATM_STORE": "session", "ATM_PAIRED_STORE": pair}, dump=lambda: files(folder)
    )


PLACES: Final = {
    "sqlite": in_sqlite,
    "redis": in_redis,
    "postgresql": in_postgres,
    "cache": in_a_cache,
    "session": in_the_session,
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with PLACES[request.param](tmp_path) as found:
        yield found


@dataclass(kw_only=True)
class Told:
    """What was said in confidence, and what the store showed of it."""

    site: Site
    canaries: set[str]
    dumps: list[bytes]
    grant_ids: list[str]


def live(site: Site, place: Place) -> Told:
    """Sign in, renew, get a token of the application's own, sign out: dumps in between."""
    told = Told(site=site, canaries=set(USERS), dumps=[], grant_ids=[])
    told.canaries |= {SECRET_KEY, str(site.registration.client_secret), "Canaryuser", "example.com"}
    tokens = site.state.provider().tokens
    browsers = [site.client() for _ in USERS]
    for user, browser in zip(USERS, browsers, strict=True):
        answer = site.answer(site.begin(browser), login_hint=user)
        told.canaries |= {
            value for _, value in parse_qsl(urlsplit(answer).query) if len(value) > 20
        }
        assert browser.get(answer).status_code == 302
        assert browser.get("/who").text == user
        with browser.session_transaction() as session:
            (value,) = session["_atm"].values()
        handle = Handle.parse(value)
        assert handle is not None
        # In session mode the browser has a copy beside its handle.
        assert bool(handle.copy) == (place.config["ATM_STORE"] == "session")
        told.dumps += [urlsafe_b64decode(handle.copy + "=="), handle.copy.encode()]
        told.grant_ids.append(f"oidc.{handle.secret}")
        told.canaries |= {told.grant_ids[-1], handle.secret}
    told.dumps.append(place.dump())
    for grant_id in told.grant_ids:
        told.canaries |= _secrets(site, grant_id)
        tokens.get(grant_id, TokenParameters(force_renewal=True))
        told.canaries |= _secrets(site, grant_id)
    own = site.state.provider().client_tokens.get(TokenParameters())
    told.canaries.add(own.value)
    told.dumps.append(place.dump())
    # One signs out and does not come back from the provider: what is to be revoked waits.
    assert browsers[0].post("/oidc/logout", headers=HERE).status_code == 303
    assert tokens.end(told.grant_ids[1]) is not None
    outbox = site.state.store.find(tokens.outbox.entries[0])
    assert set(outbox) == {record_key(one) for one in told.grant_ids[:2]}
    told.dumps.append(place.dump())
    return told


def _secrets(site: Site, grant_id: str) -> set[str]:
    snapshot = site.state.provider().tokens.vault.read_stored(record_key(grant_id))
    assert snapshot is not None
    grant = snapshot.grant
    assert grant.refresh_token is not None
    assert grant.id_token is not None
    found = {slot.token.reveal() for slot in grant.slots.values()}
    found |= {grant.refresh_token.reveal(), grant.id_token.reveal()}
    # A JWT is as readable in its parts.
    return found | {part for one in found if one.count(".") == 2 for part in one.split(".")[1:]}


def disguises(text: str) -> Iterator[bytes]:
    """The ways in which a text may be there without being there as it is."""
    plain = text.encode()
    yield plain
    yield plain.hex().encode()
    yield plain[::-1]
    yield text.encode("utf-16-le")
    for shift in range(3):
        # Whatever stands in front and behind, these characters of it stay the same.
        for encode in (b64encode, urlsafe_b64encode):
            coded = encode(b"\0" * shift + plain)
            yield coded[(shift * 8 + 5) // 6 : len(coded) - 4]


@pytest.fixture
def told(oidc: OIDCServer, place: Place) -> Iterator[Told]:
    site = make_site(
        oidc,
        registration={"grant_types": ["authorization_code", "refresh_token", "client_credentials"]},
        SECRET_KEY=SECRET_KEY,
        ATM_LOGOUT_AT_PROVIDER=True,
        **place.config,
    )
    yield live(site, place)
    site.state.store.close()  # type: ignore[attr-defined]


def test_d10_j1_a_dump_shows_no_secret_no_user_and_no_grant_that_can_be_used(told: Told) -> None:
    assert len(told.canaries) > 30
    for canary in told.canaries:
        assert len(canary) > 5
        for shape in disguises(canary):
            assert not [1 for dump in told.dumps if shape in dump], f"{canary[:8]}… is there"
    for dump in told.dumps:
        for pattern in PICKLES:
            assert not pattern.search(dump), pattern
    # Whatever is there, nothing of it is a grant id.
    tokens = told.site.state.provider().tokens
    alive = tokens.open(told.grant_ids[2])
    assert alive is not None
    keys = {record_key(one) for one in told.grant_ids}
    words = {word.decode() for dump in told.dumps for word in re.findall(rb"[\w-]{20,64}", dump)}
    assert keys <= words
    assert [word for word in words if tokens.open(word) or tokens.open(f"oidc.{word}")] == []


def test_d10_with_other_keys_the_same_data_are_nobodys(
    oidc: OIDCServer, place: Place, told: Told
) -> None:
    """The thief has an application of the same kind, and even the ids of the grants."""
    thief = make_site(
        oidc,
        SECRET_KEY="another secret of 32 characters or more",
        ATM_CLIENT_ID=told.site.registration.client_id,
        **place.config,
    )
    tokens = thief.state.provider().tokens
    assert [tokens.open(grant_id) for grant_id in told.grant_ids] == [None, None, None]
    assert len(thief.state.store.scan("", 99)) >= 4
    assert tokens.outbox.drain().revoked == 0
    thief.state.store.close()  # type: ignore[attr-defined]


# -- no pickle


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found


def test_j6_nothing_that_pickles_is_imported_anywhere() -> None:
    modules = [*(ROOT / "flask_atm").rglob("*.py"), ROOT / "_flask_atm_pytest.py"]
    assert len(modules) > 60
    pickling = {"pickle", "_pickle", "cPickle", "pickletools", "marshal", "shelve", "copyreg"}
    pickling |= {"dill", "cloudpickle", "joblib", "jsonpickle", "dbm"}
    assert {path.name: found for path in modules if (found := _imports(path) & pickling)} == {}


@pytest.mark.parametrize("protocol", range(6))
def test_the_patterns_find_a_pickle_of_ours(protocol: int) -> None:
    """A search that finds nothing has to be one that finds something."""
    import pickle

    from flask_atm.grants.control import Control

    value = {"key": Control(version=1, ends_at=2.0), "sealed": b"x" * 300}
    assert any(pattern.search(pickle.dumps(value, protocol)) for pattern in PICKLES)
