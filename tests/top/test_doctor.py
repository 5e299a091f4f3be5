"""``flask atm doctor``: each check, well and ill, and what it never prints."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskCliRunner
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_atm import ATM
from flask_atm.cli import atm
from flask_atm.doctor.finding import Finding
from flask_atm.doctor.provider import clock_finding
from flask_atm.doctor.race import race
from flask_atm.doctor.store import file_system
from flask_atm.errors import StoreError
from flask_atm.grants.control import Begun, Outcome
from flask_atm.grants.stores import MemoryStore, RedisStore, SQLiteStore
from flask_atm.grants.vault import record_key
from flask_atm.protocols import AtomicGrantStore
from flask_atm.stores import PairedStore, SQLStore
from flask_atm.testing import FakeProvider
from tests.servers import OIDCServer, refusing_url
from tests.servers.redis_server import RedisServer

from .support_cli import CANARIES, Shop, settings_of, shop

STRONG = "f3cf1ae79ee3bbd77d3a5a0be2eb1cf26a1f3b7ac7a1d2f5"
OTHER = "0b1c6d0a3f6e48c5b7c2f0e94b0c9c57d2a86b1e4c3f9a70"
GOOD: dict[str, Any] = {
    "SECRET_KEY": STRONG,
    "SESSION_COOKIE_SECURE": True,
    "SESSION_COOKIE_SAMESITE": "Lax",
    "ATM_EXTERNAL_URL": "https://shop.example.com",
}


@pytest.fixture
def settings(fake_provider: FakeProvider, tmp_path: Path) -> dict[str, Any]:
    """An application in which nothing is amiss."""
    found = settings_of(fake_provider, ATM_STORE=f"sqlite:///{tmp_path / 'grants.sqlite3'}")
    return {**found, "TESTING": False, **GOOD}


def checked(made: Shop, *args: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Run it; give the exit code, and what was found by check."""
    import json

    result = made.run("doctor", "--json", *args)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    found = {one["check"]: one for one in json.loads(result.stdout)}
    return result.exit_code, found


def result_of(made: Shop, check: str, *args: str) -> str:
    code, found = checked(made, *args)
    finding = found[check]
    assert bool(finding["cure"]) is (finding["result"] != "ok")
    assert code >= {"ok": 0, "warning": 1, "failed": 2}[finding["result"]]
    return finding["result"]


# -- all of it


def test_m1_all_is_well(settings: dict[str, Any]) -> None:
    made = shop(settings)
    made.sign_in()
    code, found = checked(made)
    assert {check: one["result"] for check, one in found.items()} == dict.fromkeys(
        [
            *("store", "atomic, processes", "atomic, threads", "file system", "disk"),
            *("permissions", "keys", "records", "cookie Secure", "cookie HttpOnly"),
            *("cookie SameSite", "own URL", "provider oidc", "PKCE oidc", "JWKS oidc"),
            "clock oidc",
        ],
        "ok",
    )
    assert code == 0
    # What it wrote is gone again.
    assert len(made.objects("grants")) == 2


def test_m1_one_line_per_check_and_the_cure_below(settings: dict[str, Any]) -> None:
    made = shop({**settings, "SESSION_COOKIE_SECURE": False})
    result = made.run("doctor", "--offline")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ok       store: <SQLiteStore ")
    at = next(i for i, line in enumerate(lines) if line.startswith("warning  cookie Secure: "))
    assert lines[at + 1] == "         -> SESSION_COOKIE_SECURE = True where there is https"
    assert result.stderr == ""


def test_m1_exit_codes_are_0_1_and_2(settings: dict[str, Any]) -> None:
    assert checked(shop(settings), "--offline")[0] == 0
    warned = {**settings, "SESSION_COOKIE_SAMESITE": None}
    assert checked(shop(warned), "--offline")[0] == 1
    assert checked(shop({**warned, "SESSION_COOKIE_HTTPONLY": False}), "--offline")[0] == 2
    assert FlaskCliRunner(Flask("plain")).invoke(atm, ["doctor"]).exit_code == 2


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_m1_no_secret_is_shown(settings: dict[str, Any], more: list[str]) -> None:
    made = shop(settings)
    grant_id = made.sign_in()
    result = made.run("doctor", *more)
    assert result.exit_code == 0, result.output
    for canary in (*CANARIES, STRONG, grant_id, settings["ATM_CLIENT_SECRET"]):
        assert canary not in result.output


def test_m1_an_application_with_clients_only_needs_little() -> None:
    client = {"token_endpoint": "https://id.example/token", "client_id": "a", "client_secret": "b"}
    code, found = checked(shop({"ATM_CLIENTS": {"reports": client}}))
    assert code == 0
    assert set(found) == {"store", "atomic, threads", "workers", "keys"}


# -- the store


@contextlib.contextmanager
def _opened(kind: str, tmp_path: Path) -> Iterator[AtomicGrantStore]:
    with contextlib.ExitStack() as stack:
        if kind == "sqlite":
            store: Any = SQLiteStore(tmp_path / "grants.sqlite3", timeout=20)
        elif kind == "sql":
            store = SQLStore(f"sqlite+pysqlite:///{tmp_path / 'sql.sqlite3'}", timeout=20)
        else:
            server = stack.enter_context(RedisServer())
            store = RedisStore(server.url, timeout=20)
        stack.callback(store.close)
        yield store


@pytest.mark.parametrize("kind", ["sqlite", "redis", "sql"])
@pytest.mark.parametrize("processes", [0, 3])
def test_m1_a_race_has_one_winner(kind: str, processes: int, tmp_path: Path) -> None:
    with _opened(kind, tmp_path) as store:
        store.read("warm")
        found = race(store, processes=processes, threads=4)
        assert (found.members, found.is_fair) == (4 * max(1, processes), True)
        assert store.scan("", 10) == []


class Careless(MemoryStore):
    """A store that reads and writes in two steps, with time between them."""

    def begin(self, key: str, **arguments: Any) -> Begun:
        stored = self.read(key)
        assert stored is not None
        everybody_has_read.wait(20)
        return Begun(status="held", version=1, now=stored.now)

    def commit(self, key: str, sealed: bytes, **arguments: Any) -> Outcome:
        return "ok"


everybody_has_read = threading.Barrier(4)


def test_m1_a_store_that_is_not_atomic_is_found_out(settings: dict[str, Any]) -> None:
    found = race(Careless(), processes=0, threads=4)
    assert (found.members, found.leases, found.commits) == (4, 4, 4)
    code, seen = checked(shop(settings, store=Careless()), "--offline")
    assert (code, seen["atomic, threads"]["result"]) == (2, "failed")
    assert "4 got the lease" in seen["atomic, threads"]["text"]


def test_m1_processes_that_do_not_share_a_store_are_found_out() -> None:
    found = race(MemoryStore(), processes=2, threads=2)
    assert (found.leases, found.is_fair) == (2, False)


class Silent(MemoryStore):
    """A store that answers only in the process that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.pid = os.getpid()

    def begin(self, key: str, **arguments: Any) -> Begun:
        if os.getpid() != self.pid:
            raise StoreError("no answer in this process")
        return super().begin(key, **arguments)


def test_m1_a_store_that_fails_in_another_process_says_so() -> None:
    store = Silent()
    with pytest.raises(StoreError, match="no answer in this process"):
        race(store, processes=2, threads=1)
    assert store.scan("", 10) == []


def test_m1_a_store_that_does_not_answer(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "grants.sqlite3").write_bytes(b"this is no database" * 100)
    code, found = checked(shop(settings), "--offline")
    assert (code, found["store"]["result"], found["records"]["result"]) == (2, "failed", "failed")
    assert "ATM_STORE" in found["store"]["text"]


def test_c13_m1_a_store_in_memory_with_several_workers_fails(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = {**settings, "ATM_STORE": "memory"}
    assert result_of(shop(in_memory), "workers", "--offline") == "warning"
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    code, found = checked(shop(in_memory), "--offline")
    assert (code, found["workers"]["result"]) == (2, "failed")
    assert "WEB_CONCURRENCY=4" in found["workers"]["text"]


def test_c2_m1_the_eviction_policy_of_redis(settings: dict[str, Any]) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        made = shop({**settings, "ATM_STORE": server.url})
        assert result_of(made, "eviction", "--offline") == "ok"
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        code, found = checked(made, "--offline")
        assert (code, found["eviction"]["result"]) == (2, "failed")
        assert "allkeys-lru" in found["eviction"]["text"]
        assert found["eviction"]["cure"] == "set maxmemory-policy to noeviction"
        client.acl_setuser(
            "app",
            enabled=True,
            passwords=["+pw"],
            categories=["+@all"],
            keys=["*"],
            commands=["-info"],
        )
        own = server.url.replace("redis://", "redis://app:pw@")
        assert result_of(shop({**settings, "ATM_STORE": own}), "eviction", "--offline") == "warning"


def test_d4_m1_a_pair_that_each_host_has_for_itself_fails(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_session = {**settings, "ATM_STORE": "session"}
    paired = {**in_session, "ATM_PAIRED_STORE": f"sqlite:///{tmp_path / 'pair.sqlite3'}"}
    assert result_of(shop(paired), "pair", "--offline") == "ok"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    code, found = checked(shop(paired), "--offline")
    assert (code, found["pair"]["result"]) == (2, "failed")
    assert "on Kubernetes there may be several hosts" in found["pair"]["text"]
    assert "set ATM_PAIRED_STORE to redis://" in found["pair"]["text"]


def test_d4_c13_m1_a_pair_in_memory_fails_and_the_cure_names_the_pair(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del settings["ATM_STORE"]
    plain = PairedStore(Plain(), MemoryStore())
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    code, found = checked(shop(settings, store=plain), "--offline")
    assert code == 2
    for check in ("pair", "workers"):
        assert found[check]["result"] == "failed"
        assert "set ATM_PAIRED_STORE to" in found[check]["cure"]
    assert "ATM_STORE" not in str(found["workers"])


class Plain:
    """A store of the application's own."""

    def load(self, key: str) -> bytes | None:
        return None

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None: ...

    def delete(self, key: str) -> None: ...


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /mnt/share rw,relatime shared:2 - nfs4 host:/share rw
31 22 0:27 / /mnt/with\\040blank rw - cifs //host/share rw
32 22 0:28 / /mnt/share/local rw - ext4 /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/app", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/app", "ext4"),
        ("/mnt/with blank/app", "cifs"),
    ],
)
def test_c8_m1_a_network_file_system_is_known_by_its_mount(
    folder: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert file_system(Path(folder), tmp_path / "mountinfo") == kind
    assert file_system(Path(folder), tmp_path / "not there") is None


def test_m1_a_file_that_others_may_read(settings: dict[str, Any], tmp_path: Path) -> None:
    made = shop(settings)
    made.sign_in()
    (tmp_path / "grants.sqlite3").chmod(0o644)
    code, found = checked(made, "--offline")
    assert (code, found["permissions"]["result"]) == (1, "warning")
    assert "0644" in found["permissions"]["text"]


# -- the key ring


def test_c11_m1_records_that_no_key_opens_fail_and_are_counted(settings: dict[str, Any]) -> None:
    shop(settings).sign_in()
    code, found = checked(shop({**settings, "SECRET_KEY": OTHER}), "--offline")
    assert (code, found["records"]["result"]) == (2, "failed")
    assert found["records"]["text"].startswith("1 records were sealed with a key that is not")
    assert "SECRET_KEY_FALLBACKS" in found["records"]["cure"]


def test_c11_m1_a_record_that_was_changed_fails(settings: dict[str, Any]) -> None:
    made = shop(settings)
    key = record_key(made.sign_in())
    stored = made.state.store.read(key)
    assert stored is not None
    cut = stored.sealed[:-1]
    assert made.state.store.update(key, cut, expected_version=1) == "ok"
    assert result_of(made, "records", "--offline") == "failed"


def test_m1_an_older_key_that_is_still_needed_is_a_warning(settings: dict[str, Any]) -> None:
    shop(settings).sign_in()
    made = shop({**settings, "SECRET_KEY": OTHER, "SECRET_KEY_FALLBACKS": [STRONG]})
    assert result_of(made, "records", "--offline") == "warning"
    made.run("keys", "rotate")
    assert result_of(made, "records", "--offline") == "ok"


def test_m1_where_the_keys_come_from(settings: dict[str, Any]) -> None:
    _, found = checked(shop(settings), "--offline")
    assert found["keys"]["text"].startswith("1, made from SECRET_KEY")
    _, found = checked(shop({**settings, "ATM_ENCRYPTION_KEYS": [STRONG, OTHER]}), "--offline")
    assert found["keys"]["text"] == "2 of ATM_ENCRYPTION_KEYS"


@pytest.mark.parametrize("key", ["x1y2z3", "ab" * 30, "please-change-me-please-change-me-now"])
def test_j4_m1_a_weak_key_fails_where_the_configuration_let_it_pass(
    settings: dict[str, Any], key: str
) -> None:
    code, found = checked(shop({**settings, "TESTING": True, "SECRET_KEY": key}), "--offline")
    assert (code, found["keys"]["result"]) == (2, "failed")
    assert key not in found["keys"]["text"]


# -- the provider


def test_m1_a_real_provider(oidc: OIDCServer, settings: dict[str, Any]) -> None:
    client = oidc.add_client("http://127.0.0.1:5000/oidc/callback")
    registration = {
        "ATM_ISSUER": oidc.issuer,
        "ATM_CLIENT_ID": client.client_id,
        "ATM_CLIENT_SECRET": client.client_secret,
    }
    _, found = checked(shop({**settings, **registration}))
    assert {found[f"{check} oidc"]["result"] for check in ("provider", "PKCE", "JWKS")} == {"ok"}


def test_m1_a_provider_that_is_away(settings: dict[str, Any]) -> None:
    with refusing_url() as issuer:
        code, found = checked(shop({**settings, "ATM_ISSUER": issuer}))
    assert (code, found["provider oidc"]["result"]) == (2, "failed")
    assert "cannot be had now" in found["provider oidc"]["text"]
    assert "ATM_ISSUER" in found["provider oidc"]["cure"]
    assert "PKCE oidc" not in found


def changed(provider: FakeProvider, **members: Any) -> None:
    """Serve other metadata."""
    document = {
        "issuer": provider.issuer,
        "authorization_endpoint": f"{provider.issuer}/authorize",
        "token_endpoint": f"{provider.issuer}/token",
        "jwks_uri": f"{provider.issuer}/jwks",
        "code_challenge_methods_supported": ["S256"],
        **members,
    }
    body = {name: value for name, value in document.items() if value is not None}
    provider.fail(endpoint="discovery", status=200, times=None, body=body)


@pytest.mark.parametrize(
    ("members", "check", "result"),
    [
        ({"issuer": "https://another.example"}, "provider oidc", "failed"),
        ({"code_challenge_methods_supported": None}, "PKCE oidc", "warning"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE oidc", "failed"),
        ({"code_challenge_methods_supported": []}, "PKCE oidc", "failed"),
        ({"jwks_uri": None}, "JWKS oidc", "failed"),
        ({}, "JWKS oidc", "ok"),
    ],
)
def test_m1_what_a_provider_says_of_itself(
    settings: dict[str, Any],
    fake_provider: FakeProvider,
    members: dict[str, Any],
    check: str,
    result: str,
) -> None:
    changed(fake_provider, **members)
    assert result_of(shop(settings), check) == result


@pytest.mark.parametrize("jwks", [{"keys": []}, {"keys": [{"kty": "oct", "k": "AA"}]}])
def test_m1_keys_that_verify_nothing(
    settings: dict[str, Any], fake_provider: FakeProvider, jwks: dict[str, Any]
) -> None:
    fake_provider.fail(endpoint="jwks", status=200, times=None, body=jwks)
    assert result_of(shop(settings), "JWKS oidc") == "failed"


def test_m1_a_connected_account_needs_no_metadata(settings: dict[str, Any]) -> None:
    account = {
        "authorization_endpoint": "https://forge.example/authorize",
        "token_endpoint": "https://forge.example/token",
        "client_id": "a",
        "client_secret": "b",
        "sign_in": False,
    }
    _, found = checked(shop({**settings, "ATM_PROVIDERS": {"forge": account}}))
    assert found["provider forge"]["result"] == "ok"
    assert "JWKS forge" not in found


NOON = 1_700_000_000.0
NOON_DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.mark.parametrize(
    ("date", "now", "took", "result"),
    [
        (NOON_DATE, NOON, 0.1, "ok"),
        (NOON_DATE, NOON + 0.9, 0.1, "ok"),
        (NOON_DATE, NOON + 5, 0.1, "ok"),
        (NOON_DATE, NOON + 8, 0.1, "warning"),
        (NOON_DATE, NOON + 8, 4.0, "ok"),
        (NOON_DATE, NOON - 8, 4.0, "warning"),
        (NOON_DATE, NOON + 90, 0.1, "failed"),
        (NOON_DATE, NOON - 90, 0.1, "failed"),
        (None, NOON, 0.1, "warning"),
        ("yesterday", NOON, 0.1, "warning"),
    ],
)
def test_m1_the_clock_of_the_provider(
    date: str | None, now: float, took: float, result: str
) -> None:
    finding = clock_finding("oidc", date, now=now, took=took, skew=60)
    assert isinstance(finding, Finding)
    assert finding.result == result


def test_m1_a_host_whose_clock_is_wrong(settings: dict[str, Any]) -> None:
    made = shop(settings, clock=lambda: time.time() + 3600)
    assert result_of(made, "clock oidc") == "failed"


# -- cookies and proxies


@pytest.mark.parametrize(
    ("more", "check", "result"),
    [
        ({"SESSION_COOKIE_SECURE": False}, "cookie Secure", "warning"),
        (
            {"SESSION_COOKIE_SECURE": False, "ATM_EXTERNAL_URL": "http://127.0.0.1:5000"},
            "cookie Secure",
            "ok",
        ),
        ({"SESSION_COOKIE_HTTPONLY": False}, "cookie HttpOnly", "failed"),
        ({"SESSION_COOKIE_SAMESITE": "Strict"}, "cookie SameSite", "ok"),
        ({"SESSION_COOKIE_SAMESITE": "None"}, "cookie SameSite", "warning"),
        ({"SESSION_COOKIE_SAMESITE": None}, "cookie SameSite", "warning"),
        ({"ATM_EXTERNAL_URL": None}, "own URL", "warning"),
        ({"ATM_EXTERNAL_URL": None, "TRUSTED_HOSTS": ["shop.example.com"]}, "own URL", "warning"),
        (
            {
                "ATM_EXTERNAL_URL": None,
                "SERVER_NAME": "shop.example.com",
                "PREFERRED_URL_SCHEME": "https",
            },
            "own URL",
            "ok",
        ),
    ],
)
def test_m1_cookies_and_the_own_url(
    settings: dict[str, Any], more: dict[str, Any], check: str, result: str
) -> None:
    found = {name: value for name, value in {**settings, **more}.items() if value is not None}
    assert result_of(shop(found), check, "--offline") == result


def test_m1_proxy_fix_is_seen(settings: dict[str, Any]) -> None:
    del settings["ATM_EXTERNAL_URL"]
    made = shop({**settings, "TRUSTED_HOSTS": ["shop.example.com"]})
    made.app.wsgi_app = ProxyFix(made.app.wsgi_app, x_proto=1)  # type: ignore[method-assign]
    assert result_of(made, "own URL", "--offline") == "ok"


def test_atm_of_an_application_is_unchanged_by_the_doctor(settings: dict[str, Any]) -> None:
    app = Flask("shop", instance_path="/nonexistent")
    app.config.update(settings)
    ATM(app)
    before = dict(app.config)
    made = Shop(app=app)
    checked(made, "--offline")
    assert dict(app.config) == before


class Dying(MemoryStore):
    """A store that takes its process with it, in any other process."""

    def __init__(self) -> None:
        super().__init__()
        self.pid = os.getpid()

    def begin(self, key: str, **arguments: Any) -> Begun:
        if os.getpid() != self.pid:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().begin(key, **arguments)


def test_m1_a_process_that_dies_is_not_waited_for() -> None:
    with pytest.raises(StoreError, match="ended without an answer"):
        race(Dying(), processes=1, threads=2)


class Half(MemoryStore):
    """A store that answers one of two."""

    def begin(self, key: str, *, owner: str, **arguments: Any) -> Begun:
        if owner.endswith("1"):
            raise StoreError("not this one")
        return super().begin(key, owner=owner, **arguments)


@pytest.mark.parametrize("processes", [0, 2])
def test_m1_a_store_that_answers_one_of_two_says_so_at_once(processes: int) -> None:
    with pytest.raises(StoreError, match="not this one"):
        race(Half(), processes=processes, threads=3)


def test_m1_a_provider_that_only_a_loader_knows(
    settings: dict[str, Any], fake_provider: FakeProvider
) -> None:
    tenant = {"issuer": fake_provider.issuer, "client_id": "tenant", "client_secret": "secret"}
    made = shop(settings, provider_loader=lambda name: tenant)
    _, found = checked(made, "--provider", "acme")
    assert found["provider acme"]["result"] == "ok"
