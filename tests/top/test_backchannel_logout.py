"""Logout from outside: the requirement lines I4 to I8, against a provider that sends it itself."""

import io
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from flask_atm import signals
from flask_atm.errors import LoginRequired, StoreError
from flask_atm.extension import ATM
from flask_atm.globals import current_login, current_user_token
from flask_atm.grants.answers import Tokens
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.user_tokens import NewGrant
from flask_atm.grants.vault import record_key
from flask_atm.oauth.id_token import LOGOUT_EVENT
from flask_atm.protocols import BatchedGrantStore
from flask_atm.testing import FakeClock, FakeProvider, sign_in
from flask_atm.tokens import Secret
from tests.servers import OIDCServer

from .support import PAGE, Site, make_site, provider_settings

URL = "/oidc/backchannel-logout"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def site(oidc: OIDCServer) -> Site:
    # Nobody is there: these tests send the tokens themselves.
    uri = {"backchannel_logout_uri": f"http://127.0.0.1:9{URL}"}
    return make_site(oidc, registration={"backchannel_logout_session_required": True, **uri})


def signed_in(site: Site, **parameters: str) -> FlaskClient:
    client = site.client()
    site.sign_in(client, **parameters)
    assert client.get("/who").text != "nobody"
    return client


def claims_of(site: Site, client: FlaskClient) -> dict[str, Any]:
    """The claims of the ID token that a browser has signed in with."""
    with client.session_transaction() as known:
        handle = known["_atm"]["oidc"]
    tokens = site.state.provider().tokens
    snapshot = tokens.open(f"oidc.{handle.partition('.')[2]}")
    assert snapshot is not None
    return dict(snapshot.grant.claims)


def logout_token(site: Site, changes: dict[str, Any] | None = None, **header: Any) -> str:
    """A logout token for all sign-ins of alice, with changes; ``...`` takes a claim away."""
    now = site.provider.now()
    claims = {
        "iss": site.provider.issuer,
        "aud": site.registration.client_id,
        "iat": now,
        "exp": now + 120,
        "jti": f"id of {now}",
        "events": {LOGOUT_EVENT: {}},
        "sub": "alice",
        **(changes or {}),
    }
    left = {name: value for name, value in claims.items() if value is not ...}
    return site.provider.sign(left, **{"typ": "logout+jwt", **header})


def send(site: Site, token: str, path: str = URL) -> TestResponse:
    return site.client().post(path, data={"logout_token": token})


def is_refused(response: TestResponse, error: str = "invalid_request") -> bool:
    assert response.status_code == 400, response.text
    assert response.headers["Cache-Control"] == "no-store"
    assert response.mimetype == "application/json"
    body = response.get_json()
    assert set(body) == {"error", "error_description"}
    return bool(body["error"] == error)


# -- the provider does it


def test_i5_the_end_of_a_session_at_the_provider_ends_it_in_both_applications(
    oidc: OIDCServer,
) -> None:
    with serving() as first, serving() as second:
        sites = [
            make_site(
                oidc,
                registration={
                    "backchannel_logout_uri": f"{place.url}{URL}",
                    "backchannel_logout_session_required": True,
                },
            )
            for place in (first, second)
        ]
        first.app, second.app = sites[0].app, sites[1].app
        browsers = [site.browser() for site in sites]
        browsers[1]._session = browsers[0]._session  # the same one at the provider
        for browser in browsers:
            assert browser.open("/oidc/login?next=/who").text == "alice"
        other = signed_in(sites[0], account="bob")
        location = (
            browsers[0]
            .client.post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
            .location
        )
        browsers[0].follow(location)
        assert [browser.client.get("/who").text for browser in browsers] == ["nobody", "nobody"]
        assert other.get("/who").text == "bob"
        assert [place.answers for place in (first, second)] == [[200], [200]]
        log = [one for one in oidc.log() if str(one["event"]).startswith("backchannel")]
        assert [one["event"] for one in log] == ["backchannel.success"] * 2


class Place:
    """A port of 127.0.0.1 with an application behind it, which may come later."""

    def __init__(self) -> None:
        self.app: Flask | None = None
        self.answers: list[int] = []
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def __call__(self, environ: Any, start: Any) -> Any:
        assert self.app is not None

        def note(status: str, headers: Any, *rest: Any) -> Any:
            self.answers.append(int(status[:3]))
            return start(status, headers, *rest)

        return self.app(environ, note)


@contextmanager
def serving() -> Iterator[Place]:
    place = Place()
    thread = threading.Thread(target=place._server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield place
    finally:
        place._server.shutdown()
        thread.join()
        place._server.server_close()


# -- what it ends


def test_i5_a_token_with_a_session_ends_this_session_only(site: Site) -> None:
    first, second = signed_in(site), signed_in(site)
    claims = claims_of(site, first)
    assert claims["sid"] != claims_of(site, second)["sid"]
    # If both are there, the session decides.
    response = send(site, logout_token(site, {"sid": claims["sid"], "sub": claims["sub"]}))
    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["Cache-Control"] == "no-store"
    assert (first.get("/who").text, second.get("/who").text) == ("nobody", "alice")


def test_i5_a_token_without_a_session_ends_all_of_the_subject(site: Site) -> None:
    mine, other = [signed_in(site) for _ in range(3)], signed_in(site, account="bob")
    assert send(site, logout_token(site)).status_code == 200
    assert [client.get("/who").text for client in mine] == ["nobody"] * 3
    assert other.get("/who").text == "bob"


def test_i5_what_is_sent_again_or_matches_nobody_is_answered_200(site: Site) -> None:
    client, token = signed_in(site), logout_token(site)
    assert [send(site, token).status_code for _ in range(3)] == [200, 200, 200]
    assert client.get("/who").text == "nobody"
    assert send(site, logout_token(site, {"sub": "nobody", "jti": "2"})).status_code == 200
    assert send(site, logout_token(site, {"sid": "none", "jti": "3"})).status_code == 200


def test_a_later_sign_in_is_not_ended_by_an_older_token(oidc: OIDCServer) -> None:
    clock = FakeClock(oidc.now())
    site = make_site(oidc, atm={"clock": clock})
    old = signed_in(site)
    token = logout_token(site)
    oidc.advance(61)
    clock.advance(61)
    new = signed_in(site)
    assert send(site, token).status_code == 200
    assert (old.get("/who").text, new.get("/who").text) == ("nobody", "alice")


def test_a_refresh_makes_a_sign_in_no_younger(oidc: OIDCServer) -> None:
    clock = FakeClock(oidc.now())
    site = make_site(oidc, atm={"clock": clock})
    client = signed_in(site)
    token = logout_token(site)
    oidc.advance(299)
    clock.advance(299)
    assert client.get("/token").status_code == 200
    assert len(oidc.token_requests(grant_type="refresh_token")) == 1
    assert claims_of(site, client)["iat"] > oidc.now() - 60
    assert send(site, token).status_code == 400  # it has expired
    token = logout_token(site, {"iat": oidc.now() - 299})
    assert send(site, token).status_code == 200
    assert client.get("/who").text == "nobody"


def test_user_logged_out_is_sent_for_each_and_refresh_tokens_are_revoked(site: Site) -> None:
    signed_in(site)
    signed_in(site)
    told: list[dict[str, Any]] = []

    def listen(app: Flask, **details: Any) -> None:
        told.append(details)

    with signals.user_logged_out.connected_to(listen, sender=site.app):
        send(site, logout_token(site))
        send(site, logout_token(site))
    assert [(one["provider"], one["grant_id"], one["claims"]["sub"]) for one in told] == [
        ("oidc", None, "alice")
    ] * 2
    assert site.provider.wait_requests(2, "revocation", ended=True) == 2
    assert {one["status"] for one in site.provider.requests_to("revocation")} == {200}


def test_a_receiver_that_fails_keeps_nobody_signed_in(site: Site) -> None:
    clients = [signed_in(site), signed_in(site)]

    def fail(app: Flask, **details: Any) -> None:
        raise RuntimeError("a bug of the application")

    with (
        signals.user_logged_out.connected_to(fail, sender=site.app),
        pytest.raises(RuntimeError, match="a bug"),
    ):
        send(site, logout_token(site))
    assert [client.get("/who").text for client in clients] == ["nobody", "nobody"]


def test_refresh_tokens_stay_where_they_are_not_to_be_revoked(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_REVOKE_ON_LOGOUT=False)
    client = signed_in(site)
    assert send(site, logout_token(site)).status_code == 200
    assert client.get("/who").text == "nobody"
    with site.app.app_context():
        site.state.provider().tokens.outbox.drain()
    assert oidc.requests_to("revocation") == []


# -- several providers


def test_a_provider_by_its_name_and_none_that_is_not_known(oidc: OIDCServer) -> None:
    settings, registration = provider_settings(oidc, "http://localhost/oidc/callback/corp")
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="a secret of 32 characters or more!!",
        ATM_STORE="memory",
        ATM_PROVIDERS={"corp": settings, "other": {**settings, "client_id": "other"}},
    )
    atm = ATM(app)
    site = Site(app=app, atm=atm, provider=oidc, registration=registration)
    token = logout_token(site)
    assert send(site, token, f"{URL}/corp").status_code == 200
    assert is_refused(send(site, token, f"{URL}/other"))  # not its client id
    assert [send(site, token, path).status_code for path in (URL, f"{URL}/none")] == [404, 404]


def test_a_connected_account_stays_connected(oidc: OIDCServer) -> None:
    """Two names for one registration: who signs out does not disconnect the account."""
    settings, registration = provider_settings(oidc, "http://localhost/oidc/callback/corp")
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="a secret of 32 characters or more!!",
        ATM_STORE="memory",
        ATM_DEFAULT_PROVIDER="corp",
        ATM_PROVIDERS={"corp": settings, "files": {**settings, "sign_in": False}},
    )
    atm = ATM(app)
    site = Site(app=app, atm=atm, provider=oidc, registration=registration)
    made = {name: put_grant(site, name) for name in ("corp", "files")}
    # Whichever of the two is registered as the URL.
    assert send(site, logout_token(site), f"{URL}/files").status_code == 200
    tokens = {name: site.state.provider(name).tokens for name in made}
    assert tokens["corp"].open(made["corp"]) is None
    assert tokens["files"].open(made["files"]) is not None


def put_grant(site: Site, provider: str | None = None, **claims: Any) -> str:
    tokens = Tokens(access_token=Secret("access"), token_type="Bearer", lifetime=300)
    state = site.state
    new = NewGrant(
        tokens=tokens,
        claims={"sub": "alice", "iat": site.provider.now(), **claims},
        scope=("openid",),
        requested_at=state.clock(),
    )
    return state.provider(provider).tokens.create(new)


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        ({}, {"typ": "at+jwt"}),
        ({"nonce": "n"}, {}),
        ({"events": ...}, {}),
        ({"events": {}}, {}),
        ({"sub": ...}, {}),
        ({"aud": "another"}, {}),
        ({"iss": "https://another.example"}, {}),
        ({"iat": ...}, {}),
        ({"jti": ...}, {}),
        ({"exp": 1}, {}),
    ],
)
def test_i4_a_token_that_is_wrong_in_one_thing_removes_nothing(
    site: Site, changes: dict[str, Any], header: dict[str, Any]
) -> None:
    client = signed_in(site)
    assert is_refused(send(site, logout_token(site, changes, **header)))
    assert client.get("/who").text == "alice"


def test_i4_unsigned_tokens_id_tokens_and_other_requests_remove_nothing(site: Site) -> None:
    client = signed_in(site)
    with client.session_transaction() as known:
        handle = known["_atm"]["oidc"]
    snapshot = site.state.provider().tokens.open(f"oidc.{handle.partition('.')[2]}")
    assert snapshot is not None
    assert snapshot.grant.id_token is not None
    good = logout_token(site)
    _, payload, _ = good.split(".")
    unsigned = f"eyJhbGciOiJub25lIiwidHlwIjoibG9nb3V0K2p3dCJ9.{payload}."
    assert is_refused(send(site, unsigned))
    assert is_refused(send(site, snapshot.grant.id_token.reveal()))
    post = site.client().post
    assert is_refused(post(URL))
    assert is_refused(post(URL, data={"logout_token": ""}))
    assert is_refused(post(URL, data={"logout_token": [good, good]}))
    assert is_refused(post(URL, json={"logout_token": good}))
    assert is_refused(post(f"{URL}?logout_token={good}"))
    assert site.client().get(f"{URL}?logout_token={good}").status_code == 405
    assert client.get("/who").text == "alice"


def test_a_body_has_an_end(site: Site) -> None:
    response = send(site, "x" * 100_000)
    assert is_refused(response)
    assert "too large" in response.get_json()["error_description"]
    # Also one that does not say how long it is.
    endless = io.BytesIO(b"logout_token=" + b"x" * 1_000_000)
    response = site.client().post(
        URL,
        input_stream=endless,
        content_type=FORM,
        environ_overrides={"wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
    )
    assert is_refused(response)
    assert endless.tell() < 200_000


def test_i8_the_answers_are_those_of_the_standard(site: Site, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "flask_atm"):
        response = send(site, logout_token(site, {"nonce": "n"}))
    assert is_refused(response)
    assert "nonce" in response.get_json()["error_description"]
    assert "a logout at 'oidc' was refused" in caplog.text


# -- what cannot be done now is sent again


def test_i8_without_the_keys_nothing_is_removed_and_the_provider_may_try_again(
    oidc: OIDCServer,
) -> None:
    site = make_site(oidc)
    token = logout_token(site)
    oidc.fault("jwks", status=503)
    response = send(site, token)
    assert is_refused(response, "temporarily_unavailable")
    assert response.headers["Retry-After"] == "1"


def test_i8_a_key_that_is_not_known_is_looked_for_once(site: Site) -> None:
    client = signed_in(site)
    site.provider.rotate_keys()
    assert send(site, logout_token(site)).status_code == 200
    assert client.get("/who").text == "nobody"


class Down(MemoryStore):
    """A store that fails where it is told to."""

    failing: str = ""

    def create(self, key: str, *args: Any, **kwargs: Any) -> bool:
        if self.failing == "create":
            raise StoreError("down")
        return super().create(key, *args, **kwargs)

    def delete_many(self, doomed: Any) -> list[bool]:
        if self.failing == "delete":
            raise StoreError("down")
        return super().delete_many(doomed)


@pytest.mark.parametrize("step", ["create", "delete"])
def test_i8_with_the_store_down_the_provider_may_try_again(oidc: OIDCServer, step: str) -> None:
    store = Down()
    site = make_site(oidc, atm={"store": store})
    client, token = signed_in(site), logout_token(site)
    store.failing = step
    assert is_refused(send(site, token), "temporarily_unavailable")
    assert client.get("/who").text == "alice"
    store.failing = ""
    assert send(site, token).status_code == 200
    assert client.get("/who").text == "nobody"


# -- a sign-in at the same moment


class Hooked(MemoryStore):
    """A store that does something else before or after a step."""

    def __init__(self) -> None:
        super().__init__()
        self.before_find: Callable[[], object] | None = None
        self.after_create: Callable[[], object] | None = None

    def find(self, index: str, limit: int = 100) -> list[str]:
        hook, self.before_find = self.before_find, None
        if hook is not None:
            hook()
        return super().find(index, limit)

    def create(self, key: str, *args: Any, **kwargs: Any) -> bool:
        made = super().create(key, *args, **kwargs)
        if kwargs.get("index") and not key.startswith("logout:"):
            hook, self.after_create = self.after_create, None
            if hook is not None:
                hook()
        return made


def at_the_callback(site: Site, client: FlaskClient) -> Callable[[], TestResponse]:
    """Let a browser be on its way back from the provider."""
    path = site.answer(site.begin(client))
    return lambda: client.get(path, headers=PAGE)


def test_i5_a_grant_created_meanwhile_is_refused(oidc: OIDCServer) -> None:
    """The logout is there before the grant: the mark is found by the sign-in."""
    site = make_site(oidc)
    client = site.client()
    go_on = at_the_callback(site, client)
    assert send(site, logout_token(site)).status_code == 200
    response = go_on()
    assert response.status_code == 400
    assert "logged_out" in response.text
    assert client.get("/who").text == "nobody"
    with site.app.app_context():
        site.state.provider().tokens.outbox.drain()
    assert len(oidc.requests_to("revocation")) == 1


def test_i5_a_sign_in_between_mark_and_search_is_ended(oidc: OIDCServer) -> None:
    store = Hooked()
    site = make_site(oidc, atm={"store": store})
    client = site.client()
    go_on = at_the_callback(site, client)
    answers: list[TestResponse] = []
    # By now the mark is there, and nothing was looked for.
    store.before_find = lambda: answers.append(go_on())
    assert send(site, logout_token(site)).status_code == 200
    assert [answer.status_code for answer in answers] == [400]
    assert client.get("/who").text == "nobody"


def test_i5_a_logout_between_the_grant_and_its_look_for_marks_ends_it(oidc: OIDCServer) -> None:
    store = Hooked()
    site = make_site(oidc, atm={"store": store})
    client = site.client()
    go_on = at_the_callback(site, client)
    answers: list[TestResponse] = []
    token = logout_token(site)
    store.after_create = lambda: answers.append(send(site, token))
    assert go_on().status_code == 400
    assert [answer.status_code for answer in answers] == [200]
    assert client.get("/who").text == "nobody"


def test_who_signs_in_again_after_the_logout_is_let_in(oidc: OIDCServer) -> None:
    clock = FakeClock(oidc.now())
    site = make_site(oidc, atm={"clock": clock})
    assert send(site, logout_token(site)).status_code == 200
    oidc.advance(61)
    clock.advance(61)
    signed_in(site)


def test_a_mark_is_of_one_session_or_subject(site: Site) -> None:
    assert send(site, logout_token(site, {"sub": "bob"})).status_code == 200
    assert send(site, logout_token(site, {"sid": "another", "jti": "2"})).status_code == 200
    signed_in(site)


# -- session mode


@pytest.fixture
def session_site(oidc: OIDCServer, tmp_path: Path) -> Site:
    return make_session_site(oidc, tmp_path)


def make_session_site(oidc: OIDCServer, tmp_path: Path, **more: Any) -> Site:
    pair = f"sqlite:///{tmp_path / 'pair.sqlite3'}"
    uri = {"backchannel_logout_uri": f"http://127.0.0.1:9{URL}"}
    return make_site(
        oidc,
        registration={"backchannel_logout_session_required": True, **uri},
        ATM_STORE="session",
        ATM_PAIRED_STORE=pair,
        **more,
    )


def test_i6_a_logout_in_session_mode_ends_what_it_names(session_site: Site) -> None:
    site = session_site
    first, second, third = signed_in(site), signed_in(site), signed_in(site)
    sid = claims_of_session(site, first)["sid"]
    assert send(site, logout_token(site, {"sid": sid})).status_code == 200
    assert [one.get("/who").text for one in (first, second)] == ["nobody", "alice"]
    assert send(site, logout_token(site, {"jti": "2"})).status_code == 200
    assert [one.get("/who").text for one in (second, third)] == ["nobody", "nobody"]
    assert [send(site, logout_token(site, {"jti": "2"})).status_code for _ in range(2)] == [200] * 2


@pytest.mark.parametrize("revoke", [True, False])
def test_i6_a_copy_of_the_cookie_does_not_bring_it_back(
    oidc: OIDCServer, tmp_path: Path, revoke: bool
) -> None:
    """Neither at once, nor when all is revoked, nor much later."""
    site = make_session_site(oidc, tmp_path, ATM_REVOKE_ON_LOGOUT=revoke)
    client, copied = signed_in(site), site.client()
    copied.set_cookie("session", cookie_of(client).removeprefix("session="))
    assert copied.get("/who").text == "alice"
    before = cookie_of(client).removeprefix("session=")
    assert send(site, logout_token(site)).status_code == 200
    if revoke:
        assert oidc.wait_requests(1, "revocation", ended=True) == 1
    with site.app.app_context():
        site.state.provider().tokens.outbox.drain()
    site.state.store.purge(100)
    browser = site.client()
    browser.set_cookie("session", before)
    assert browser.get("/who").text == "nobody"
    assert browser.get("/token").status_code == 401
    assert len(oidc.token_requests(grant_type="refresh_token")) == 0


def test_i6_a_grant_created_meanwhile_is_refused(session_site: Site) -> None:
    client = session_site.client()
    go_on = at_the_callback(session_site, client)
    assert send(session_site, logout_token(session_site)).status_code == 200
    assert go_on().status_code == 400
    assert client.get("/who").text == "nobody"


def claims_of_session(site: Site, client: FlaskClient) -> dict[str, Any]:
    with client.session_transaction() as known:
        secret = known["_atm"]["oidc"].split(".")[1]
    snapshot = site.state.provider().tokens.vault.read_stored(record_key(f"oidc.{secret}"))
    assert snapshot is not None
    return dict(snapshot.grant.claims)


# -- streams and jobs


def test_i5_a_stream_refuses_within_a_second(oidc: OIDCServer) -> None:
    clock = FakeClock(oidc.now())
    site = make_site(oidc, atm={"clock": clock})
    client = signed_in(site)
    with site.app.test_request_context(headers={"Cookie": cookie_of(client)}):
        assert current_user_token.value
        assert send(site, logout_token(site)).status_code == 200
        clock.advance(1)
        with pytest.raises(LoginRequired, match="has ended"):
            str(current_user_token.value)


def test_i5_a_job_sees_the_end_within_a_second(oidc: OIDCServer) -> None:
    """Also one that asks for no token, and goes on in one context for a day."""
    clock = FakeClock(oidc.now())
    site = make_site(oidc, atm={"clock": clock})
    grant_id = put_grant(site)
    with site.app.app_context(), site.atm.use_grant(grant_id):
        assert current_login.subject == "alice"
        assert send(site, logout_token(site)).status_code == 200
        clock.advance(1)
        assert not current_login
        assert not current_user_token
        with pytest.raises(LoginRequired, match="has ended"):
            str(current_login.subject)


def cookie_of(client: FlaskClient) -> str:
    cookie = client.get_cookie("session")
    assert cookie is not None
    return f"session={cookie.value}"


# -- for tests of applications


def test_the_fake_provider_sends_it_too() -> None:
    with FakeProvider() as provider:
        app = Flask(__name__)
        app.config.update(provider.settings())
        atm = ATM(app)
        site = Site(app=app, atm=atm, provider=None, registration=None)  # type: ignore[arg-type]
        client = app.test_client()
        grant_id = sign_in(client, {"sub": "alice", "sid": "s1"})
        assert provider.backchannel_logout(client, sid="s2").status_code == 200
        assert site.state.provider().tokens.open(grant_id) is not None
        assert provider.backchannel_logout(client, sub="alice").status_code == 200
        assert site.state.provider().tokens.open(grant_id) is None


def test_the_store_is_asked_in_batches(oidc: OIDCServer) -> None:
    class Counting(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def delete_many(self, doomed: Any) -> list[bool]:
            self.sizes.append(len(doomed))
            return super().delete_many(doomed)

    store = Counting()
    assert isinstance(store, BatchedGrantStore)
    site = make_site(oidc, atm={"store": store})
    for _ in range(1100):
        put_grant(site)
    assert send(site, logout_token(site)).status_code == 200
    assert store.sizes == [500, 500, 100]


# -- what many, or anybody, may cause


def test_i5_a_receiver_that_fails_keeps_nobody_signed_in_under_another_name(
    oidc: OIDCServer,
) -> None:
    settings, registration = provider_settings(oidc, "http://localhost/oidc/callback/one")
    app = Flask(__name__)
    app.config.update(
        TESTING=True,
        SECRET_KEY="a secret of 32 characters or more!!",
        ATM_STORE="memory",
        ATM_DEFAULT_PROVIDER="one",
        ATM_PROVIDERS={"one": settings, "two": settings},
    )
    site = Site(app=app, atm=ATM(app), provider=oidc, registration=registration)
    made = {name: put_grant(site, name) for name in ("one", "two")}

    def fail(app: Flask, **details: Any) -> None:
        raise RuntimeError("a bug of the application")

    with (
        signals.user_logged_out.connected_to(fail, sender=app),
        pytest.raises(RuntimeError, match="a bug"),
    ):
        send(site, logout_token(site), f"{URL}/one")
    tokens = {name: site.state.provider(name).tokens for name in made}
    assert [tokens[name].open(grant_id) for name, grant_id in made.items()] == [None, None]


def test_i8_tokens_of_anybody_are_one_error_a_minute(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody needs to know a key to name one that is not known."""
    stranger = logout_token(site, kid="nobody's")
    with caplog.at_level(logging.INFO, "flask_atm"):
        assert all(is_refused(send(site, stranger), "temporarily_unavailable") for _ in range(4))
    levels = [one.levelno for one in caplog.records if "is not done" in one.message]
    assert levels == [logging.ERROR] + [logging.INFO] * 3
    # H4: nor do they cause more than a request for the keys.
    assert len(site.provider.requests_to("jwks")) <= 2


def test_i7_many_logouts_at_once_are_revoked_by_one_thread(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    users = [f"user{number}" for number in range(6)]
    for user in users:
        signed_in(site, account=user)
    tokens = site.state.provider().tokens
    begun, go_on = threading.Event(), threading.Event()
    threads: set[int] = set()
    revoke = tokens.endpoint.revoke
    alive = threading.active_count()

    class Holding:  # an endpoint that answers when it is told to
        def __getattr__(self, name: str) -> Any:
            return getattr(tokens.endpoint, name)

        def revoke(self, *args: Any, **kwargs: Any) -> bool:
            threads.add(threading.get_ident())
            begun.set()
            assert go_on.wait(30)
            return revoke(*args, **kwargs)

    provider = site.state.provider()
    outbox = replace(tokens.outbox, endpoint=cast(Any, Holding()))
    held = replace(provider, tokens=replace(tokens, outbox=outbox))
    site.state._providers["oidc"] = held
    for user in users:
        assert send(site, logout_token(site, {"sub": user, "jti": user})).status_code == 200
        assert begun.wait(30)
    assert threading.active_count() <= alive + 1
    go_on.set()
    # Those that came meanwhile are revoked too.
    assert oidc.wait_requests(6, "revocation", ended=True) == 6
    assert len(threads) == 1


def test_i5_two_tokens_with_one_identifier_are_both_remembered(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    client = site.client()
    go_on = at_the_callback(site, client)
    same = {"jti": "the same"}
    assert send(site, logout_token(site, {"sub": "bob", **same})).status_code == 200
    assert send(site, logout_token(site, same)).status_code == 200
    assert go_on().status_code == 400
    assert client.get("/who").text == "nobody"
