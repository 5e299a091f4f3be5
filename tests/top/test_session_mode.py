"""D, H9: sign-ins that are copied into the Flask session; against ``oidc-provider``."""

import json
import logging
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask, session
from flask.sessions import SecureCookieSession, SessionInterface, SessionMixin
from flask.testing import FlaskClient

from flask_atm.browser_session import SESSION_KEY, forget, remember
from flask_atm.errors import SessionTooLarge
from flask_atm.globals import current_user_token
from flask_atm.grants.record import Grant
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.stores.session import Handle, SessionStore, cookie_size
from flask_atm.grants.vault import record_key
from flask_atm.state import State
from flask_atm.stores import MemoryStore, PairedStore
from flask_atm.testing import FakeClock, sign_in
from flask_atm.tokens import TokenParameters
from tests.grants.processes import run_everywhere
from tests.grants.support import Setup, config, grant_from
from tests.grants.tools import WatchedStore
from tests.servers import OIDCServer

from .support import HERE, Site, make_site

PROCESSES, THREADS = 8, 16


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pair(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'pair.sqlite3'}"


@pytest.fixture
def site(oidc: OIDCServer, clock: FakeClock, pair: str) -> Site:
    return make_session_site(oidc, clock, pair)


def make_session_site(
    oidc: OIDCServer, clock: FakeClock, pair: str, before: Any = None, **more: Any
) -> Site:
    return make_site(
        oidc,
        atm={"clock": clock},
        before=before,
        ATM_STORE="session",
        ATM_PAIRED_STORE=pair,
        ATM_LOGOUT_AT_PROVIDER=False,
        **more,
    )


def handle_in(client: FlaskClient) -> Handle:
    with client.session_transaction() as kept:
        handle = Handle.parse(kept[SESSION_KEY]["oidc"])
    assert handle is not None
    return handle


def grant_id_in(client: FlaskClient) -> str:
    return f"oidc.{handle_in(client).secret}"


def cookie_of(client: FlaskClient) -> str:
    cookie = client.get_cookie("session")
    assert cookie is not None
    return str(cookie.value)


def with_cookie(site: Site, cookie: str) -> FlaskClient:
    client = site.client()
    client.set_cookie("session", cookie)
    return client


def pass_time(oidc: OIDCServer, clock: FakeClock, seconds: float) -> None:
    """Let the clocks here and at the provider go on."""
    clock.advance(seconds)
    oidc.advance(seconds)


def forget_the_pair(site: Site, grant_id: str) -> None:
    site.state.store.delete(record_key(grant_id))


# -- what is in the cookie


def test_h9_the_copy_has_no_id_token_and_the_record_keeps_it(site: Site, oidc: OIDCServer) -> None:
    client = site.client()
    assert site.sign_in(client).location == "/me"
    key = record_key(grant_id_in(client))
    snapshot = site.state.provider().tokens.vault.read_stored(key)
    assert snapshot is not None
    assert snapshot.grant.id_token is not None
    copied = _opened_copy(site, client)
    assert copied.id_token is None
    assert copied.refresh_token is not None
    assert copied.refresh_token.reveal() == snapshot.grant.refresh_token.reveal()  # type: ignore[union-attr]
    assert list(copied.slots) == [""]
    # Nor is it there again after the record was lost and taken over.
    forget_the_pair(site, grant_id_in(client))
    assert client.get("/token").status_code == 200
    taken_over = site.state.provider().tokens.vault.read_stored(key)
    assert taken_over is not None
    assert taken_over.grant.id_token is None


def test_h8_h9_a_refreshed_id_token_is_checked_also_after_a_copy_was_taken_over(
    site: Site, oidc: OIDCServer, clock: FakeClock
) -> None:
    good, bad = site.client(), site.client()
    for client in (good, bad):
        site.sign_in(client)
        forget_the_pair(site, grant_id_in(client))
        assert client.get("/token").status_code == 200
    pass_time(oidc, clock, 301)
    assert good.get("/token").status_code == 200
    snapshot = site.state.provider().tokens.vault.read_stored(record_key(grant_id_in(good)))
    assert snapshot is not None
    assert snapshot.grant.id_token is not None
    mallory = {"claims": {"sub": "mallory"}}
    oidc.fault("token", id_token=mallory, match={"grant_type": "refresh_token"})
    assert bad.get("/token").status_code == 401
    assert bad.get("/who").text == "nobody"


def _opened_copy(site: Site, client: FlaskClient) -> Grant:
    """Open a copy as nobody but the library does."""
    handle = handle_in(client)
    sealed = urlsafe_b64decode(handle.copy + "=" * (-len(handle.copy) % 4))
    data = site.state.ring.open(
        sealed,
        purpose="copy",
        record=record_key(grant_id_in(client)),
        bound="oidc\0" + "1",
    )
    head = 8 + 8 + 1 + data[16]  # version, end, and the pair's name behind its length
    return Grant.from_json(json.loads(data[head:]))


def test_other_slots_stay_out_of_the_cookie(oidc: OIDCServer, clock: FakeClock, pair: str) -> None:
    site = make_session_site(oidc, clock, pair)
    client = site.client()
    site.sign_in(client)
    with client, client.session_transaction() as kept:
        present = dict(kept)
    with site.app.test_request_context():
        session.update(present)
        site.atm.get_user_token(scope="openid")
        present = dict(session)
    with client.session_transaction() as kept:
        kept.update(present)
    assert list(_opened_copy(site, client).slots) == [""]


def test_d12_nothing_is_compressed_before_it_is_sealed(site: Site) -> None:
    sizes = []
    for text in ("a" * 500, secrets.token_hex(250)):
        client = site.client()
        sign_in(client, {"sub": "alice", "note": text}, access_token="t" * 32)
        sizes.append(len(handle_in(client).copy))
    assert sizes[0] == sizes[1]


# -- D1


@dataclass(frozen=True, kw_only=True)
class CallWithOldCookie:
    """Get the token in a request that has an old cookie, and call the API with it."""

    handles: dict[str, str]
    grant_id: str
    api_url: str

    def __call__(self, state: State, number: int) -> tuple[int, bool]:
        with state.app.test_request_context():
            session[SESSION_KEY] = self.handles
            token = state.provider().tokens.get(self.grant_id, TokenParameters())
            healed = session[SESSION_KEY] != self.handles
        with requests.Session() as http:
            http.trust_env = False
            headers = {"Authorization": token.authorization}
            return http.get(self.api_url, headers=headers, timeout=30).status_code, healed


def signed_in(state: State, response: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Sign in; give the grant id, and what is in the session of the browser."""
    with state.app.test_request_context():
        grant_id = grant_from(state, response)
        remember("oidc", state.store_id(), grant_id)
        state.provider().tokens.vault.copy_new(record_key(grant_id))
        return grant_id, dict(session[SESSION_KEY])


@pytest.mark.parametrize("latency", [0.2, 2.5])
def test_d1_a1_an_old_cookie_in_8_processes_with_16_threads_means_one_refresh(
    oidc: OIDCServer, pair: str, latency: float
) -> None:
    client = oidc.add_client("http://localhost/oidc/callback")
    response = oidc.sign_in_directly(client)
    settings = config(oidc, client, "session", ATM_PAIRED_STORE=pair)
    state = Setup(config=settings).state()
    grant_id, handles = signed_in(state, response)
    assert Handle.parse(handles["oidc"]).copy  # type: ignore[union-attr]
    oidc.reset()
    oidc.latency(token=latency)
    job = CallWithOldCookie(handles=handles, grant_id=grant_id, api_url=oidc.api_url)

    later = Setup(config=settings, ahead=1000)
    results = run_everywhere(later, job, processes=PROCESSES, threads=THREADS)

    # Nobody failed, and whoever came with the old cookie goes with the new one.
    assert results == [(200, True)] * (PROCESSES * THREADS)
    assert len(oidc.token_requests()) == 1
    assert oidc.stats()["replays"] == 0


def test_d1_an_old_cookie_everywhere_after_the_pair_was_lost_means_one_refresh_in_doubt(
    oidc: OIDCServer, pair: str
) -> None:
    """All of them find nothing at the same moment, and put the same copy there."""
    client = oidc.add_client("http://localhost/oidc/callback")
    response = oidc.sign_in_directly(client)
    settings = config(oidc, client, "session", ATM_PAIRED_STORE=pair)
    state = Setup(config=settings).state()
    grant_id, handles = signed_in(state, response)
    state.store.delete(record_key(grant_id))
    oidc.reset()
    job = CallWithOldCookie(handles=handles, grant_id=grant_id, api_url=oidc.api_url)

    later = Setup(config=settings, ahead=1000)
    results = run_everywhere(later, job, processes=PROCESSES, threads=THREADS)

    assert results == [(200, True)] * (PROCESSES * THREADS)
    assert len(oidc.token_requests()) == 1
    assert oidc.stats()["replays"] == 0


# -- D2, D3: old cookies


@pytest.mark.parametrize("away", [300.0, 86400.0])
def test_d2_an_old_cookie_is_served_from_the_pair_and_healed(
    site: Site, oidc: OIDCServer, clock: FakeClock, away: float
) -> None:
    client = site.client()
    site.sign_in(client)
    old = cookie_of(client)
    for _ in range(3):
        pass_time(oidc, clock, 301)
        assert client.get("/token").status_code == 200
    pass_time(oidc, clock, away)
    oidc.reset()

    other = with_cookie(site, old)
    answer = other.get("/token")

    assert answer.status_code == 200
    assert cookie_of(other) != old
    # At most one renewal, with the refresh token that the pair has.
    assert len(oidc.token_requests()) == 1
    assert oidc.stats()["replays"] == 0
    again = other.get("/token")
    assert again.status_code == 200
    assert "Set-Cookie" not in again.headers


def test_d2_while_the_token_is_fresh_an_old_cookie_costs_no_request(
    site: Site, oidc: OIDCServer, clock: FakeClock
) -> None:
    client = site.client()
    site.sign_in(client)
    old = cookie_of(client)
    pass_time(oidc, clock, 301)
    assert client.get("/token").status_code == 200
    oidc.reset()
    other = with_cookie(site, old)
    assert other.get("/token").status_code == 200
    assert oidc.token_requests() == []
    assert handle_in(other).copy
    assert _opened_copy(site, other) == _opened_copy(site, client)


def test_d3_a_slow_request_that_sends_the_old_session_again_does_no_harm(
    oidc: OIDCServer, clock: FakeClock, pair: str
) -> None:
    meanwhile: list[Any] = []

    def add_view(app: Flask) -> None:
        @app.get("/slow")
        def slow() -> str:
            session.permanent = True  # Flask sends such a session again with every answer
            meanwhile.pop()()
            return "read only"

    site = make_session_site(oidc, clock, pair, add_view)
    client = site.client()
    site.sign_in(client)
    old = cookie_of(client)
    pass_time(oidc, clock, 301)
    oidc.reset()
    quick = with_cookie(site, old)
    meanwhile.append(lambda: quick.get("/token"))

    before = handle_in(client)
    assert client.get("/slow").text == "read only"

    assert handle_in(client) == before != handle_in(quick)
    assert len(oidc.token_requests()) == 1
    pass_time(oidc, clock, 301)
    assert client.get("/token").status_code == 200
    assert handle_in(client) != before
    assert len(oidc.token_requests()) == 2
    assert oidc.stats()["replays"] == 0


# -- D5: the size of the cookie


def add_ballast(app: Flask) -> None:
    @app.get("/ballast/<int:size>")
    def ballast(size: int) -> str:
        session["ballast"] = secrets.token_hex(size // 2)
        return "kept"


def test_d5_what_does_not_fit_is_refused_at_sign_in_and_leaves_nothing(
    oidc: OIDCServer, clock: FakeClock, pair: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_session_site(oidc, clock, pair, add_ballast)
    client = site.client()
    client.get("/ballast/3600")
    callback = site.answer(site.begin(client))
    oidc.reset()

    answer = client.get(callback, headers={"Accept": "text/html"})

    assert answer.status_code == 503
    said = re.search(
        r"does not fit into the session cookie: it would have (\d+) bytes", caplog.text
    )
    assert said is not None
    assert int(said[1]) > 4093
    assert "Set ATM_STORE to sqlite" in caplog.text
    assert client.get("/who").text == "nobody"
    assert len(oidc.requests_to("revocation")) == 1
    records = [
        key for key, stored in site.state.store.scan("", 100) if not stored.control.tombstone
    ]
    assert all(key == "store id" or key.startswith("state:") for key in records)
    # Once more the same answer, and a new one when there is room.
    assert client.get(callback, headers={"Accept": "text/html"}).status_code == 400
    client.get("/ballast/2")
    assert site.sign_in(client).location == "/me"
    assert client.get("/who").text == "alice"


def test_d5_another_user_has_the_room_of_the_one_before(
    site: Site,
) -> None:
    client = site.client()
    site.sign_in(client)
    old = handle_in(client)
    with client.session_transaction() as kept:
        kept[SESSION_KEY] = {"oidc": f"{old.store_id}.{old.secret}"}
        kept["ballast"] = secrets.token_hex(1600)
    assert site.sign_in(client, account="bob").status_code == 302
    assert client.get("/who").text == "bob"
    assert handle_in(client).copy


def test_d5_what_goes_away_with_another_user_is_not_counted() -> None:
    app = Flask("two")
    app.secret_key = "x" * 32
    store = SessionStore()
    with app.test_request_context():
        for provider in ("oidc", "calendar"):
            remember(provider, "store", f"{provider}.secret")
            store.save(record_key(f"{provider}.secret"), secrets.token_bytes(1400), lifetime=60)
        new, sealed = "oidc.another", secrets.token_bytes(2000)
        store.check_room("oidc", "store", new, sealed, alone=True)
        with pytest.raises(SessionTooLarge):
            store.check_room("oidc", "store", new, sealed, alone=False)


def test_d5_later_growth_leaves_the_old_copy_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask("growing")
    app.secret_key = "x" * 32
    store, key = SessionStore(), record_key("oidc.secret")
    with app.test_request_context():
        remember("oidc", "store", "oidc.secret")
        store.save(key, b"1" * 100, lifetime=60)
        session["other"] = secrets.token_hex(1000)
        for _ in range(3):
            store.save(key, secrets.token_bytes(2000), lifetime=60)
        assert store.load(key) == b"1" * 100
        store.save(key, b"2" * 101, lifetime=60)
        assert store.load(key) == b"2" * 101
    warnings = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "Set ATM_STORE" in warnings[0].getMessage()


def test_d5_the_size_is_that_of_the_header(site: Site) -> None:
    client = site.client()
    with site.app.test_request_context():
        session["a"] = 1
        size = cookie_size({"b": "x" * 100})
    answer = client.get("/basket")
    assert answer.status_code == 200
    with site.app.test_client() as other:
        with other.session_transaction() as kept:
            kept["a"], kept["b"] = 1, "x" * 100
        value = cookie_of(other)
    assert size == len(f"session={value}; HttpOnly; Path=/")


class OnTheServer(SessionInterface):
    """Sessions that are kept on the server: the cookie has their name only."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    def open_session(self, app: Flask, request: Any) -> SessionMixin:
        return SecureCookieSession(self.kept.get(request.cookies.get("session", ""), {}))

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        if session.modified:
            name = secrets.token_hex(8)
            self.kept[name] = dict(session)
            response.set_cookie("session", name)


def test_d5_sessions_on_the_server_have_no_limit(
    oidc: OIDCServer, clock: FakeClock, pair: str
) -> None:
    def before(app: Flask) -> None:
        app.session_interface = OnTheServer()
        add_ballast(app)

    site = make_session_site(oidc, clock, pair, before)
    client = site.client()
    client.get("/ballast/9000")
    assert site.sign_in(client).location == "/me"
    assert client.get("/who").text == "alice"
    assert handle_in(client).copy


# -- D7, D8: what does not open


def test_d7_values_of_others_are_nobodys(site: Site, oidc: OIDCServer) -> None:
    alice, bob = site.client(), site.client()
    site.sign_in(alice)
    site.sign_in(bob)
    mine, other = handle_in(alice), handle_in(bob)
    forget_the_pair(site, grant_id_in(alice))
    foreign = KeyRing([b"another application, another key"]).seal(
        b"x" * 500, purpose="copy", record=record_key(grant_id_in(alice)), bound="oidc\0" + "1"
    )
    for copy in (
        other.copy,
        mine.copy[:-4],
        mine.copy[:30] + ("A" if mine.copy[30] != "A" else "B") + mine.copy[31:],
        urlsafe_b64encode(foreign).decode().rstrip("="),
        "…",
        "%",
        "A",
    ):
        client = site.client()
        with client.session_transaction() as kept:
            kept[SESSION_KEY] = {"oidc": f"{mine.store_id}.{mine.secret}.{copy}"}
        assert client.get("/who").text == "nobody"
        assert client.get("/token").status_code == 401
    assert alice.get("/who").text == "alice"


def test_d8_old_keys_open_and_what_is_written_has_the_new_one(
    oidc: OIDCServer, clock: FakeClock, pair: str
) -> None:
    old, new = "0ld-" * 5 + secrets.token_hex(16), "n3w-" * 5 + secrets.token_hex(16)
    before = make_session_site(oidc, clock, pair, ATM_ENCRYPTION_KEYS=[old])
    busy, idle = before.client(), before.client()
    before.sign_in(busy)
    before.sign_in(idle)
    same = {
        "ATM_CLIENT_ID": before.registration.client_id,
        "ATM_CLIENT_SECRET": before.registration.client_secret,
    }
    between = make_session_site(oidc, clock, pair, ATM_ENCRYPTION_KEYS=[new, old], **same)
    pass_time(oidc, clock, 301)
    moved = with_cookie(between, cookie_of(busy))
    assert moved.get("/token").status_code == 200
    after = make_session_site(oidc, clock, pair, ATM_ENCRYPTION_KEYS=[new], **same)
    assert with_cookie(after, cookie_of(moved)).get("/who").text == "alice"
    assert with_cookie(after, cookie_of(idle)).get("/who").text == "nobody"
    # The copy alone is enough, too: it was sealed anew.
    forget_the_pair(after, grant_id_in(moved))
    assert with_cookie(after, cookie_of(moved)).get("/who").text == "alice"


# -- D9, D11, logout


def test_d9_answers_that_change_the_cookie_are_not_stored(
    site: Site, oidc: OIDCServer, clock: FakeClock
) -> None:
    client = site.client()
    assert site.sign_in(client).headers["Cache-Control"] == "no-store"
    assert "Cache-Control" not in client.get("/token").headers
    pass_time(oidc, clock, 301)
    renewed = client.get("/token")
    assert "Set-Cookie" in renewed.headers
    assert renewed.headers["Cache-Control"] == "no-store"
    left = client.post("/oidc/logout", headers=HERE)
    assert left.headers["Cache-Control"] == "no-store"
    assert left.status_code == 303


def test_d11_a_session_that_was_planted_is_not_the_one_that_is_signed_in(site: Site) -> None:
    attacker, victim = site.client(), site.client()
    site.sign_in(attacker)
    planted = cookie_of(attacker)
    victim.set_cookie("session", planted)
    site.sign_in(victim)
    assert handle_in(victim).secret != handle_in(attacker).secret
    assert victim.get("/who").text == "alice"
    assert attacker.get("/who").text == "nobody"
    assert with_cookie(site, planted).get("/token").status_code == 401


def test_a_copied_cookie_is_signed_out_with_the_browser(site: Site, oidc: OIDCServer) -> None:
    client = site.client()
    site.sign_in(client)
    copied = cookie_of(client)
    key = record_key(grant_id_in(client))
    assert client.post("/oidc/logout", headers=HERE).status_code == 303
    thief = with_cookie(site, copied)
    assert thief.get("/who").text == "nobody"
    assert thief.get("/token").status_code == 401
    # Also when the refresh token has been revoked, and nothing is left in the outbox.
    assert len(oidc.requests_to("revocation")) == 1
    stored = site.state.store.read(key)
    assert stored is not None
    assert stored.control.tombstone
    assert stored.sealed == b""
    assert site.state.provider().tokens.outbox.drain().revoked == 0
    assert with_cookie(site, copied).get("/who").text == "nobody"


def test_who_signs_out_first_after_the_pair_was_lost_is_signed_out_everywhere(
    site: Site, oidc: OIDCServer
) -> None:
    client = site.client()
    site.sign_in(client)
    copied = cookie_of(client)
    forget_the_pair(site, grant_id_in(client))
    oidc.reset()
    assert client.post("/oidc/logout", headers=HERE).status_code == 303
    assert len(oidc.requests_to("revocation")) == 1
    assert with_cookie(site, copied).get("/who").text == "nobody"


def test_what_was_taken_out_is_of_that_request_alone() -> None:
    """Also where two requests have one application context."""
    app = Flask("shared")
    app.secret_key = "x" * 32
    store, key = SessionStore(), record_key("oidc.secret")
    with app.app_context():
        with app.test_request_context():
            remember("oidc", "store", "oidc.secret")
            store.save(key, b"sealed", lifetime=60)
            forget("oidc")
            assert SESSION_KEY not in session
            assert store.load(key) == b"sealed"
        with app.test_request_context():
            assert store.load(key) is None


# -- the pair alone


def test_outside_its_request_the_pair_alone_is_used(
    site: Site, oidc: OIDCServer, clock: FakeClock
) -> None:
    client = site.client()
    site.sign_in(client)
    old = handle_in(client)
    pass_time(oidc, clock, 301)
    with site.app.app_context(), site.atm.use_grant(grant_id_in(client)):
        renewed = current_user_token.value
    assert handle_in(client) == old
    oidc.reset()
    with client:
        assert client.get("/token").status_code == 200
    assert handle_in(client) != old
    assert oidc.token_requests() == []
    copied = _opened_copy(site, client).slots[""].token.reveal()
    assert copied == renewed


def test_two_hosts_with_a_pair_each_take_over_in_doubt_and_say_so(
    oidc: OIDCServer, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = make_session_site(oidc, clock, f"sqlite:///{tmp_path / 'one.sqlite3'}")
    same = {
        "ATM_CLIENT_ID": one.registration.client_id,
        "ATM_CLIENT_SECRET": one.registration.client_secret,
    }
    two = make_session_site(oidc, clock, f"sqlite:///{tmp_path / 'two.sqlite3'}", **same)
    client = one.client()
    one.sign_in(client)
    oidc.reset()
    there = with_cookie(two, cookie_of(client))
    assert [there.get("/token").status_code for _ in range(3)] == [200, 200, 200]
    stored = two.state.store.read(record_key(grant_id_in(client)))
    assert stored is not None
    assert stored.control.doubt
    assert oidc.token_requests() == []
    errors = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "two paired stores" in errors[0]
    assert "ATM_PAIRED_STORE" in errors[0]
    # From now on the cookie names the store that has the grant.
    assert handle_in(there).store_id == two.state.store_id()


def test_two_hosts_without_session_mode_are_two_and_say_so(
    oidc: OIDCServer, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [f"sqlite:///{tmp_path / name}.sqlite3" for name in ("one", "two")]
    one = make_site(oidc, atm={"clock": clock}, ATM_STORE=urls[0])
    two = make_site(oidc, atm={"clock": clock}, ATM_STORE=urls[1])
    client = one.client()
    one.sign_in(client)
    there = with_cookie(two, cookie_of(client))
    assert [there.get("/token").status_code for _ in range(2)] == [401, 401]
    errors = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "ATM_STORE" in errors[0]


# -- what it costs


def test_a_request_costs_one_read_of_the_pair_also_when_it_heals_the_cookie(
    oidc: OIDCServer, clock: FakeClock
) -> None:
    def add_view(app: Flask) -> None:
        @app.get("/much")
        def much() -> str:
            return "".join(current_user_token.value[:1] for _ in range(10))

    store = WatchedStore(MemoryStore(clock=clock))
    paired = PairedStore(SessionStore(), store)
    site = make_site(oidc, atm={"clock": clock, "store": paired}, before=add_view)
    client = site.client()
    site.sign_in(client)
    old = cookie_of(client)
    client.get("/token")
    store.calls.clear()
    assert client.get("/much").status_code == 200
    assert store.mine == ["read"]
    pass_time(oidc, clock, 301)
    client.get("/token")
    store.calls.clear()
    other = with_cookie(site, old)
    assert other.get("/much").status_code == 200
    assert cookie_of(other) != old
    assert store.mine == ["read"]
