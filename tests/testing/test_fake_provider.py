"""The fake provider, by plain HTTP: what it does right, and what it does wrong on demand."""

import base64
import copy
import hashlib
import logging
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlencode, urlsplit

import jwt
import pytest
import requests
from jwt.types import Options

from flask_atm.testing import FakeClock, FakeProvider

CALLBACK = "http://localhost:5000/oidc/callback"
SCOPE = "openid profile email offline_access"


class Application:
    """A client that speaks plain HTTP."""

    def __init__(self, provider: FakeProvider, **settings: Any) -> None:
        self.provider = provider
        self.settings = provider.settings(**settings)
        self.client_id = self.settings["ATM_CLIENT_ID"]
        self.auth: tuple[str, str] | None = None
        if "ATM_CLIENT_SECRET" in self.settings:
            self.auth = (quote_plus(self.client_id), quote_plus(self.settings["ATM_CLIENT_SECRET"]))
        self.browser = requests.Session()
        self.metadata = self.browser.get(
            f"{provider.issuer}/.well-known/openid-configuration", timeout=5
        ).json()
        self.verifier = secrets.token_urlsafe(32)

    def authorization_url(self, **parameters: Any) -> str:
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest())
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": CALLBACK,
            "scope": SCOPE,
            "state": "s",
            "nonce": "n",
            "code_challenge": challenge.rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            **parameters,
        }
        asked = {name: value for name, value in query.items() if value is not None}
        return f"{self.metadata['authorization_endpoint']}?{urlencode(asked, doseq=True)}"

    def authorize(self, **parameters: Any) -> dict[str, str]:
        """Give what the callback is told."""
        answer = self.browser.get(
            self.authorization_url(**parameters), allow_redirects=False, timeout=5
        )
        assert answer.status_code == 302, answer.text
        return callback(answer.headers["Location"])

    def token(self, **form: Any) -> requests.Response:
        if self.auth is None:
            form.setdefault("client_id", self.client_id)
        return requests.post(self.metadata["token_endpoint"], data=form, auth=self.auth, timeout=10)

    def exchange(self, code: str, **form: Any) -> requests.Response:
        return self.token(
            grant_type="authorization_code",
            code=code,
            redirect_uri=CALLBACK,
            code_verifier=self.verifier,
            **form,
        )

    def sign_in(self, *, resource: Any = None, **parameters: Any) -> dict[str, Any]:
        """Give the token response of a sign-in."""
        code = self.authorize(resource=resource, **parameters)["code"]
        answer = self.exchange(code)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def refresh(self, refresh_token: str, **form: Any) -> requests.Response:
        return self.token(grant_type="refresh_token", refresh_token=refresh_token, **form)

    def userinfo(self, access_token: str) -> requests.Response:
        return requests.get(
            self.metadata["userinfo_endpoint"],
            headers={"Authorization": f"Bearer {access_token}"},
            timeout=5,
        )

    def claims(self, id_token: str) -> dict[str, Any]:
        keys = jwt.PyJWKSet.from_dict(requests.get(self.metadata["jwks_uri"], timeout=5).json())
        key = keys[jwt.get_unverified_header(id_token)["kid"]]
        timeless: Options = {"verify_iat": False, "verify_exp": False}
        claims = jwt.decode(id_token, key, ["ES256"], timeless, audience=self.client_id)
        return dict(claims)


def callback(location: str) -> dict[str, str]:
    assert location.startswith(CALLBACK)
    return {name: value for name, (value,) in parse_qs(urlsplit(location).query).items()}


def problem(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def provider(clock: FakeClock) -> Iterator[FakeProvider]:
    with FakeProvider(clock=clock, lifetimes={"https://api.example/": 30}) as provider:
        yield provider


@pytest.fixture
def app(provider: FakeProvider) -> Application:
    return Application(provider)


def test_sign_in_gives_tokens_and_verifiable_claims(app: Application, clock: FakeClock) -> None:
    told = app.authorize()
    assert told["state"] == "s"
    assert told["iss"] == app.provider.issuer
    answer = app.exchange(told["code"])
    assert answer.headers["Cache-Control"] == "no-store"
    tokens = answer.json()
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 300)
    assert tokens["scope"] == SCOPE
    claims = app.claims(tokens["id_token"])
    assert claims["iss"] == app.provider.issuer
    assert (claims["sub"], claims["name"], claims["nonce"]) == ("alice", "Alice Adams", "n")
    assert claims["email"] == "alice@example.com"
    assert claims["iat"] == claims["auth_time"] == int(clock())
    digest = hashlib.sha256(tokens["access_token"].encode()).digest()[:16]
    assert claims["at_hash"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def test_id_token_is_dated_by_the_clock(app: Application, clock: FakeClock) -> None:
    clock.set(2_000_000_000)
    tokens = app.sign_in()
    header, payload, _ = tokens["id_token"].split(".")
    claims = jwt.decode(
        tokens["id_token"], options={"verify_signature": False, "verify_iat": False}
    )
    assert header
    assert payload
    assert claims["iat"] == 2_000_000_000


def test_metadata_says_what_there_is(app: Application) -> None:
    assert app.metadata["issuer"] == app.provider.issuer
    assert app.metadata["authorization_response_iss_parameter_supported"] is True
    assert app.metadata["code_challenge_methods_supported"] == ["S256"]
    assert "offline_access" in app.metadata["scopes_supported"]
    other = requests.get(
        f"{app.provider.issuer}/.well-known/oauth-authorization-server", timeout=5
    ).json()
    assert other == app.metadata


def test_claims_follow_the_scope(app: Application) -> None:
    tokens = app.sign_in(scope="openid")
    claims = app.claims(tokens["id_token"])
    assert not {"name", "email"} & claims.keys()
    assert "refresh_token" not in tokens
    assert app.userinfo(tokens["access_token"]).json() == {"sub": "alice"}


def test_users_of_ones_own_keep_their_further_claims() -> None:
    with FakeProvider(users={"carol": {"roles": ["admin"]}}) as provider:
        app = Application(provider)
        tokens = app.sign_in(scope="openid email")
        claims = app.claims(tokens["id_token"])
        assert (claims["sub"], claims["roles"], claims["email"]) == (
            "carol",
            ["admin"],
            "carol@example.com",
        )


@pytest.mark.parametrize("hint", ["bob", "Bob@example.com"])
def test_login_hint_chooses_the_user(app: Application, hint: str) -> None:
    assert app.claims(app.sign_in(login_hint=hint)["id_token"])["sub"] == "bob"


def test_rules_choose_the_user(app: Application) -> None:
    app.provider.rules.user = "bob"
    assert app.claims(app.sign_in()["id_token"])["sub"] == "bob"


def test_acr_values_and_max_age_give_a_new_sign_in(app: Application, clock: FakeClock) -> None:
    first = app.claims(app.sign_in()["id_token"])
    clock.advance(100)
    same = app.claims(app.sign_in()["id_token"])
    assert (same["sid"], same["auth_time"]) == (first["sid"], first["auth_time"])
    stronger = app.claims(app.sign_in(acr_values="mfa pwd", max_age=60)["id_token"])
    assert stronger["acr"] == "mfa"
    assert stronger["auth_time"] == first["auth_time"] + 100
    assert app.claims(app.sign_in(prompt="login")["id_token"])["sid"] != stronger["sid"]


# PKCE, codes


@pytest.mark.parametrize(
    "change",
    [
        {"code_challenge": None, "code_challenge_method": None},
        {"code_challenge_method": "plain"},
        {"code_challenge_method": None},
    ],
)
def test_pkce_is_required(app: Application, change: Mapping[str, None]) -> None:
    told = app.authorize(**change)
    assert (told["error"], told["state"]) == ("invalid_request", "s")
    assert told["iss"] == app.provider.issuer


def test_wrong_verifier_is_refused(app: Application) -> None:
    code = app.authorize()["code"]
    app.verifier = secrets.token_urlsafe(32)
    assert problem(app.exchange(code)) == (400, "invalid_grant")


def test_code_works_once_and_its_replay_ends_the_grant(app: Application) -> None:
    code = app.authorize()["code"]
    tokens = app.exchange(code).json()
    assert problem(app.exchange(code)) == (400, "invalid_grant")
    assert app.userinfo(tokens["access_token"]).status_code == 401
    assert problem(app.refresh(tokens["refresh_token"])) == (400, "invalid_grant")


def test_code_expires(app: Application, clock: FakeClock) -> None:
    code = app.authorize()["code"]
    clock.advance(61)
    assert problem(app.exchange(code)) == (400, "invalid_grant")


def test_code_of_another_client_is_refused(app: Application) -> None:
    other = Application(app.provider, ATM_CLIENT_ID="other")
    other.verifier = app.verifier
    assert problem(other.exchange(app.authorize()["code"])) == (400, "invalid_grant")


@pytest.mark.parametrize(
    "uri",
    [
        None,
        "https://app.example/callback",
        "http://localhost.evil.example/",
        'http://evil"\u00e9/',
        "http://[",
        "javascript:alert(1)",
        CALLBACK + "#fragment",
    ],
)
def test_foreign_redirect_uri_is_never_redirected_to(app: Application, uri: str | None) -> None:
    answer = requests.get(app.authorization_url(redirect_uri=uri), allow_redirects=False, timeout=5)
    assert answer.status_code == 400
    assert "invalid_request" in answer.text


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.2:1/cb", "http://[::1]/cb", "https://app.localhost/cb?x=1"]
)
def test_every_loopback_redirect_uri_is_registered(app: Application, uri: str) -> None:
    location = app.provider.approve(app.authorization_url(redirect_uri=uri))
    assert location.startswith(uri)


def test_named_redirect_uris_are_registered_exactly() -> None:
    with FakeProvider(redirect_uris=["https://app.example/cb"]) as provider:
        app = Application(provider)
        url = app.authorization_url(redirect_uri="https://app.example/cb")
        assert provider.approve(url).startswith("https://app.example/cb?code=")
        with pytest.raises(ValueError, match="400"):
            provider.approve(app.authorization_url(redirect_uri="https://app.example/cb/"))


def test_other_response_types(app: Application) -> None:
    assert app.authorize(response_type="token")["error"] == "unsupported_response_type"
    url = app.authorization_url(response_type="token", redirect_uri=None)
    assert requests.get(url, allow_redirects=False, timeout=5).status_code == 400


def test_unknown_client_is_not_redirected(app: Application) -> None:
    answer = requests.get(
        app.authorization_url(client_id="nobody"), allow_redirects=False, timeout=5
    )
    assert answer.status_code == 400


# Refresh


def test_refresh_rotates_and_keeps_who_it_is(app: Application, clock: FakeClock) -> None:
    tokens = app.sign_in()
    before = app.claims(tokens["id_token"])
    clock.advance(10)
    renewed = app.refresh(tokens["refresh_token"]).json()
    assert renewed["refresh_token"] != tokens["refresh_token"]
    assert renewed["access_token"] != tokens["access_token"]
    after = app.claims(renewed["id_token"])
    assert {name: after[name] for name in ("sub", "iss", "aud", "auth_time", "sid")} == {
        name: before[name] for name in ("sub", "iss", "aud", "auth_time", "sid")
    }
    assert after["iat"] == before["iat"] + 10
    assert "nonce" not in after
    assert app.userinfo(tokens["access_token"]).status_code == 200


def test_replay_revokes_the_family(app: Application) -> None:
    tokens = app.sign_in()
    renewed = app.refresh(tokens["refresh_token"]).json()
    assert app.provider.replays == 0
    assert problem(app.refresh(tokens["refresh_token"])) == (400, "invalid_grant")
    assert app.provider.replays == 1
    assert problem(app.refresh(renewed["refresh_token"])) == (400, "invalid_grant")
    assert app.userinfo(renewed["access_token"]).status_code == 401


def test_of_parallel_refreshes_one_wins_and_all_die(app: Application) -> None:
    spent = app.sign_in()["refresh_token"]
    answers: list[requests.Response] = []
    threads = [Thread(target=lambda: answers.append(app.refresh(spent))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 7
    assert app.provider.replays == 7


def test_without_rotation_the_refresh_token_stays() -> None:
    with FakeProvider(rotation=False) as provider:
        app = Application(provider)
        tokens = app.sign_in()
        for _ in range(2):
            renewed = app.refresh(tokens["refresh_token"])
            assert renewed.status_code == 200
            assert "refresh_token" not in renewed.json()


def test_no_refresh_tokens_if_told_so() -> None:
    with FakeProvider(refresh_tokens=False) as provider:
        assert "refresh_token" not in Application(provider).sign_in()


def test_refresh_token_expires(app: Application, clock: FakeClock) -> None:
    app.provider.rules.refresh_expires_in = 60
    tokens = app.sign_in()
    clock.advance(60)
    assert problem(app.refresh(tokens["refresh_token"])) == (400, "invalid_grant")


def test_refresh_narrows_the_scope_and_never_widens_it(app: Application) -> None:
    tokens = app.sign_in(scope="openid offline_access read write")
    narrow = app.refresh(tokens["refresh_token"], scope="read").json()
    assert narrow["scope"] == "read"
    assert "id_token" not in narrow
    wide = app.refresh(narrow["refresh_token"], scope="read admin")
    assert problem(wide) == (400, "invalid_scope")
    full = app.refresh(narrow["refresh_token"]).json()
    assert full["scope"] == "openid offline_access read write"


# Resources


def test_resources_become_the_audience_and_have_lifetimes(app: Application) -> None:
    resources = ["https://api.example/", "https://other.example/"]
    tokens = app.sign_in(resource=resources)
    assert app.provider.introspect(tokens["access_token"])["aud"] == resources
    assert tokens["expires_in"] == 30
    other = app.refresh(tokens["refresh_token"], resource=resources[1]).json()
    assert app.provider.introspect(other["access_token"])["aud"] == resources[1:]
    assert other["expires_in"] == 300
    assert app.provider.requests[-1].resource == (resources[1],)


@pytest.mark.parametrize("resource", ["https://foreign.example/", "relative", "https://x/#part"])
def test_resource_that_was_not_granted(app: Application, resource: str) -> None:
    tokens = app.sign_in(resource="https://api.example/")
    answer = app.refresh(tokens["refresh_token"], resource=resource)
    assert problem(answer) == (400, "invalid_target")
    assert app.refresh(tokens["refresh_token"]).status_code == 200


def test_unknown_resource_and_scope() -> None:
    with FakeProvider(resources=["https://api.example/"], scopes=["read"]) as provider:
        app = Application(provider)
        assert app.authorize(resource="https://other.example/")["error"] == "invalid_target"
        assert app.authorize(scope="openid admin")["error"] == "invalid_scope"
        assert "read" in app.metadata["scopes_supported"]
        assert app.authorize(scope="openid read", resource="https://api.example/")["code"]
        answer = app.token(grant_type="client_credentials", scope="admin")
        assert problem(answer) == (400, "invalid_scope")


def test_audience_parameter(app: Application) -> None:
    token = app.token(grant_type="client_credentials", audience="https://api.example/").json()
    assert app.provider.introspect(token["access_token"])["aud"] == ["https://api.example/"]
    assert token["expires_in"] == 30


# Clients


def test_client_credentials(app: Application) -> None:
    token = app.token(grant_type="client_credentials", scope="read").json()
    assert token["scope"] == "read"
    assert not {"refresh_token", "id_token"} & token.keys()
    about = app.provider.introspect(token["access_token"])
    assert (about["active"], about["sub"], about["client_id"]) == (True, "flask-app", "flask-app")
    assert app.userinfo(token["access_token"]).status_code == 401


def test_wrong_secret(app: Application) -> None:
    app.auth = ("flask-app", "wrong")
    answer = app.token(grant_type="client_credentials")
    assert problem(answer) == (401, "invalid_client")
    assert answer.headers["WWW-Authenticate"].startswith("Basic")


def test_confidential_client_does_not_get_in_without_its_secret(app: Application) -> None:
    app.auth = None
    assert problem(app.token(grant_type="client_credentials")) == (401, "invalid_client")


def test_basic_credentials_are_form_encoded(provider: FakeProvider) -> None:
    app = Application(provider, ATM_CLIENT_ID="a:b c", ATM_CLIENT_SECRET="+ %20é:")
    assert app.token(grant_type="client_credentials").status_code == 200
    assert provider.requests[-1].client_id == "a:b c"


def test_secret_in_the_form(provider: FakeProvider) -> None:
    app = Application(provider)
    app.auth = None
    provider.settings(ATM_CLIENT_SECRET=lambda: "from-a-vault")
    secret = {"client_id": "flask-app", "client_secret": "from-a-vault"}
    assert app.token(grant_type="client_credentials", **secret).status_code == 200


def test_public_client(provider: FakeProvider) -> None:
    app = Application(provider, ATM_CLIENT_AUTH="none")
    assert "ATM_CLIENT_SECRET" not in app.settings
    tokens = app.sign_in()
    assert app.refresh(tokens["refresh_token"]).status_code == 200
    answer = app.token(grant_type="client_credentials")
    assert problem(answer) == (400, "unauthorized_client")


def test_unknown_grant_type(app: Application) -> None:
    assert problem(app.token(grant_type="password")) == (400, "unsupported_grant_type")


# Settings


def test_settings_are_all_that_an_application_needs(provider: FakeProvider) -> None:
    settings = provider.settings(ATM_SCOPE="openid", ATM_STORE="sqlite")
    assert settings["ATM_ISSUER"] == provider.issuer
    assert settings["ATM_CLIENT_ID"] == "flask-app"
    assert (settings["ATM_SCOPE"], settings["ATM_STORE"]) == ("openid", "sqlite")
    assert len(settings["SECRET_KEY"]) >= 32
    assert provider.settings()["ATM_CLIENT_SECRET"] == settings["ATM_CLIENT_SECRET"]
    assert provider.settings()["SECRET_KEY"] == settings["SECRET_KEY"]
    assert provider.settings()["ATM_STORE"] == "memory"


# Introspection, revocation, logout


def test_introspection_endpoint(app: Application) -> None:
    tokens = app.sign_in()
    endpoint = app.metadata["introspection_endpoint"]
    for token, kind in ((tokens["access_token"], "Bearer"), (tokens["refresh_token"], None)):
        about = requests.post(endpoint, data={"token": token}, auth=app.auth, timeout=5).json()
        assert (about["active"], about["sub"], about.get("token_type")) == (True, "alice", kind)
    unknown = requests.post(endpoint, data={"token": "x"}, auth=app.auth, timeout=5)
    assert unknown.json() == {"active": False}
    assert requests.post(endpoint, data={"token": "x"}, timeout=5).status_code == 401


def test_revocation_of_a_refresh_token_ends_the_grant(app: Application) -> None:
    tokens = app.sign_in()
    answer = requests.post(
        app.metadata["revocation_endpoint"],
        data={"token": tokens["refresh_token"], "token_type_hint": "refresh_token"},
        auth=app.auth,
        timeout=5,
    )
    assert answer.status_code == 200
    assert app.provider.introspect(tokens["access_token"]) == {"active": False}
    assert problem(app.refresh(tokens["refresh_token"])) == (400, "invalid_grant")


def test_revocation_of_an_access_token_ends_it_alone(app: Application) -> None:
    tokens = app.sign_in()
    endpoint = app.metadata["revocation_endpoint"]
    for token in (tokens["access_token"], "unknown"):
        answer = requests.post(endpoint, data={"token": token}, auth=app.auth, timeout=5)
        assert answer.status_code == 200
    assert app.userinfo(tokens["access_token"]).status_code == 401
    assert app.refresh(tokens["refresh_token"]).status_code == 200


def test_revoke_one_and_all(app: Application) -> None:
    first, second = app.sign_in(), app.sign_in()
    client_token = app.token(grant_type="client_credentials").json()["access_token"]
    code = app.authorize()["code"]
    app.provider.revoke(first["refresh_token"])
    assert app.provider.introspect(first["access_token"]) == {"active": False}
    assert app.provider.introspect(second["access_token"])["active"]
    app.provider.revoke_all()
    assert app.provider.introspect(second["access_token"]) == {"active": False}
    assert app.provider.introspect(client_token) == {"active": False}
    assert problem(app.refresh(second["refresh_token"])) == (400, "invalid_grant")
    assert problem(app.exchange(code)) == (400, "invalid_grant")
    assert problem(app.refresh(client_token)) == (400, "invalid_grant")
    app.provider.revoke("unknown")
    assert app.sign_in()["access_token"]


def test_expired_tokens_can_be_refreshed(app: Application, clock: FakeClock) -> None:
    tokens = app.sign_in()
    app.provider.expire_tokens()
    answer = app.userinfo(tokens["access_token"])
    assert problem(answer) == (401, "invalid_token")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    renewed = app.refresh(tokens["refresh_token"]).json()
    assert app.userinfo(renewed["access_token"]).status_code == 200
    clock.advance(300)
    assert app.userinfo(renewed["access_token"]).status_code == 401


def test_userinfo_wants_openid(app: Application) -> None:
    answer = app.userinfo(app.sign_in(scope="read")["access_token"])
    assert problem(answer) == (403, "insufficient_scope")
    assert 'scope="openid"' in answer.headers["WWW-Authenticate"]


def end_session(app: Application, **query: str) -> requests.Response:
    return app.browser.get(
        app.metadata["end_session_endpoint"], params=query, allow_redirects=False, timeout=5
    )


def test_logout_at_the_provider_comes_back(app: Application) -> None:
    tokens = app.sign_in()
    answer = end_session(
        app,
        id_token_hint=tokens["id_token"],
        post_logout_redirect_uri="http://localhost/oidc/logged-out",
        state="s",
    )
    assert answer.headers["Location"] == "http://localhost/oidc/logged-out?state=s"
    before, after = (app.claims(t["id_token"])["sid"] for t in (tokens, app.sign_in()))
    assert before != after
    assert app.refresh(tokens["refresh_token"]).status_code == 200


def test_logout_goes_nowhere_else(app: Application) -> None:
    hint = app.sign_in()["id_token"]
    answer = end_session(app, id_token_hint=hint, post_logout_redirect_uri="https://evil.example/")
    assert answer.status_code == 200
    assert "You are signed out" in answer.text


def test_logout_with_a_foreign_id_token(app: Application) -> None:
    forged = jwt.encode({"iss": app.provider.issuer, "aud": "flask-app"}, "k" * 32)
    assert end_session(app, id_token_hint=forged).status_code == 400
    assert end_session(app, id_token_hint="x").status_code == 400
    hint = app.sign_in()["id_token"]
    assert end_session(app, id_token_hint=hint, client_id="other").status_code == 400


def test_logout_token(app: Application, clock: FakeClock) -> None:
    token = app.provider.logout_token(sub="alice")
    claims = app.claims(token)
    assert claims["sub"] == "alice"
    assert list(claims["events"]) == ["http://schemas.openid.net/event/backchannel-logout"]
    assert jwt.get_unverified_header(token)["typ"] == "logout+jwt"


# The pages


@pytest.fixture
def asking() -> Iterator[Application]:
    with FakeProvider(auto_approve=False) as provider:
        yield Application(provider)


def test_sign_in_page_lets_choose(asking: Application) -> None:
    url = asking.authorization_url()
    page = asking.browser.get(url, timeout=5)
    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    assert "Alice Adams" in page.text
    assert "bob@example.com" in page.text
    answer = asking.browser.post(url, data={"user": "bob"}, allow_redirects=False, timeout=5)
    assert answer.status_code == 303
    code = callback(answer.headers["Location"])["code"]
    assert asking.claims(asking.exchange(code).json()["id_token"])["sub"] == "bob"
    silent = asking.sign_in()  # the browser is signed in now
    assert asking.claims(silent["id_token"])["sub"] == "bob"
    assert asking.authorize(prompt="none")["code"]
    again = asking.browser.get(
        asking.authorization_url(prompt="login"), allow_redirects=False, timeout=5
    )
    assert again.status_code == 200


def test_login_hint_is_preselected(asking: Application) -> None:
    page = asking.browser.get(asking.authorization_url(login_hint="bob"), timeout=5).text
    assert page.index('hinted" name') < page.index('value="bob" autofocus')
    assert page.count("autofocus") == 1


def test_cancel_is_access_denied(asking: Application) -> None:
    url = asking.authorization_url()
    answer = asking.browser.post(url, data={"user": ""}, allow_redirects=False, timeout=5)
    told = callback(answer.headers["Location"])
    assert (told["error"], told["state"]) == ("access_denied", "s")
    assert told["iss"] == asking.provider.issuer
    assert "error=access_denied" in asking.provider.approve(url, user="nobody")


def test_silent_sign_in_of_nobody(asking: Application) -> None:
    assert asking.authorize(prompt="none")["error"] == "login_required"


def test_approve_needs_no_browser(asking: Application) -> None:
    told = callback(asking.provider.approve(asking.authorization_url(), user="bob"))
    assert asking.claims(asking.exchange(told["code"]).json()["id_token"])["sub"] == "bob"


def test_logout_without_a_hint_asks(asking: Application) -> None:
    assert "Sign out?" in end_session(asking).text
    answer = asking.browser.post(asking.metadata["end_session_endpoint"], timeout=5)
    assert "You are signed out" in answer.text


def test_pages_escape(asking: Application) -> None:
    url = asking.authorization_url(scope="openid <script>")
    assert "<script>" not in asking.browser.get(url, timeout=5).text


# What goes wrong on demand


def test_failures(app: Application) -> None:
    refresh_token = app.sign_in()["refresh_token"]
    app.provider.fail(status=429, times=2, headers={"Retry-After": "7"}, body={"message": "slow"})
    for _ in range(2):
        answer = app.refresh(refresh_token)
        assert (answer.status_code, answer.json()) == (429, {"message": "slow"})
        assert answer.headers["Retry-After"] == "7"
    renewed = app.refresh(refresh_token).json()
    app.provider.fail(times=None)
    for _ in range(3):
        assert app.refresh(renewed["refresh_token"]).status_code == 503
    app.provider.recover()
    assert app.refresh(renewed["refresh_token"]).status_code == 200
    assert app.provider.count("refresh_token") == 7


def test_answer_that_gets_lost(app: Application) -> None:
    spent = app.sign_in()["refresh_token"]
    app.provider.fail(status=None, processed=True)
    with pytest.raises(requests.ConnectionError):
        app.refresh(spent)
    assert app.provider.requests[-1].status is None
    assert problem(app.refresh(spent)) == (400, "invalid_grant")
    assert app.provider.replays == 1


def test_cut_before_the_request_takes_effect(app: Application) -> None:
    refresh_token = app.sign_in()["refresh_token"]
    app.provider.fail(status=None)
    with pytest.raises(requests.ConnectionError):
        app.refresh(refresh_token)
    assert app.refresh(refresh_token).status_code == 200


def test_late_answers(app: Application) -> None:
    app.provider.fail(status=200, delay=0.05)
    before = time.monotonic()
    assert app.token(grant_type="client_credentials").status_code == 200
    assert time.monotonic() - before >= 0.05


def test_failures_of_other_endpoints(app: Application) -> None:
    app.provider.fail(endpoint="jwks", body="<html>")
    assert requests.get(app.metadata["jwks_uri"], timeout=5).text == "<html>"
    assert requests.get(app.metadata["jwks_uri"], timeout=5).json()["keys"]
    with pytest.raises(ValueError, match="'tokens' is no endpoint: choose from authorize, "):
        app.provider.fail(endpoint="tokens")


def test_answers_held_back(app: Application) -> None:
    refresh_token = app.sign_in()["refresh_token"]
    answers: list[int] = []
    caller = Thread(target=lambda: answers.append(app.refresh(refresh_token).status_code))
    with app.provider.hold() as held:
        caller.start()
        held.wait()
        assert app.provider.count("refresh_token") == 1
        assert answers == []
        with pytest.raises(TimeoutError, match="1 of 2 answers"):
            held.wait(2, timeout=0.01)
        assert requests.get(app.metadata["jwks_uri"], timeout=5).status_code == 200
    caller.join()
    assert answers == [200]
    app.provider.hold()
    app.provider.release()
    assert app.token(grant_type="client_credentials").status_code == 200


def outcome(app: Application) -> str:
    try:
        return str(app.token(grant_type="client_credentials").status_code)
    except requests.ConnectionError:
        return "cut"


def test_closing_ends_what_is_held_back() -> None:
    with FakeProvider() as provider:
        app = Application(provider)
        outcomes: list[str] = []
        caller = Thread(target=lambda: outcomes.append(outcome(app)))
        held = provider.hold()
        caller.start()
        held.wait()
    caller.join(5)
    assert outcomes == ["cut"]


def test_down_and_back_on_the_same_port(app: Application) -> None:
    tokens = app.sign_in()
    issuer = app.provider.issuer
    app.provider.stop()
    with pytest.raises(requests.ConnectionError):  # the pooled connection, and new ones
        app.browser.get(app.metadata["jwks_uri"], timeout=5)
    with pytest.raises(requests.ConnectionError):
        app.refresh(tokens["refresh_token"])
    app.provider.stop()
    app.provider.start()
    app.provider.start()
    assert app.provider.issuer == issuer
    assert app.refresh(tokens["refresh_token"]).status_code == 200


@pytest.mark.timed
def test_connections_are_kept_and_answered_at_once(app: Application) -> None:
    began = time.monotonic()
    for _ in range(10):
        answer = app.browser.get(app.metadata["jwks_uri"], timeout=5)
        assert "Connection" not in answer.headers
    assert time.monotonic() - began < 0.4  # ten delayed acknowledgements


def test_records_hold_no_secrets(app: Application, clock: FakeClock) -> None:
    tokens = app.sign_in()
    app.refresh(tokens["refresh_token"], scope="openid")
    last = app.provider.requests[-1]
    assert (last.endpoint, last.grant_type, last.client_id) == (
        "token",
        "refresh_token",
        "flask-app",
    )
    assert (last.scope, last.status, last.at) == ("openid", 200, app.provider._storage.clock())
    shown = repr(app.provider.requests) + repr(app.provider) + repr(app.provider._storage.tokens)
    for secret in (app.settings["ATM_CLIENT_SECRET"], tokens["refresh_token"]):
        assert secret not in repr(app.provider.requests) + repr(app.provider)
    assert shown


def test_nothing_is_logged_that_is_secret(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        tokens = app.sign_in()
        app.refresh(tokens["refresh_token"])
    logged = "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("authlib")
    )
    assert logged
    for secret in (app.settings["ATM_CLIENT_SECRET"], *tokens.values()):
        assert str(secret) not in logged or secret in ("Bearer", SCOPE, 300)


@pytest.mark.timed
def test_start_is_quick() -> None:
    began = time.perf_counter()
    with FakeProvider() as provider:
        requests.get(provider.issuer + "/jwks", timeout=5)
    assert time.perf_counter() - began < 1  # 10 ms, and room for a busy machine


def test_clock() -> None:
    clock = FakeClock(100)
    assert clock() == 100
    assert clock.advance(2.5) == 102.5
    copied = copy.deepcopy(clock)
    clock.set(1)
    assert (clock(), copied(), copy.copy(copied)()) == (1, 102.5, 102.5)
    assert abs(FakeClock()() - time.time()) < 60
    assert repr(clock) == "<FakeClock 1.0>"


def test_plugin_imports_nothing_of_the_package() -> None:
    code = (
        "import sys, _flask_atm_pytest\n"
        "loaded = [name for name in sys.modules if name.partition('.')[0] in"
        " ('flask_atm', 'flask', 'authlib')]\n"
        "sys.exit(repr(loaded) if loaded else 0)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
