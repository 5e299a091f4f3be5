"""J1: no secret can be read anywhere: cookies, the database, logs, pages, reprs, tracebacks."""

import copy
import dataclasses
import io
import logging
import pickle
import traceback
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskCliRunner
from werkzeug.test import Cookie, TestResponse

from flask_atm import (
    ATM,
    EngineParameters,
    LoginRequired,
    ProtocolError,
    current_login,
    current_user_token,
)
from flask_atm.cli import atm as atm_commands
from flask_atm.grants.vault import record_key
from flask_atm.state import STATE_KEY, State
from flask_atm.testing import FakeClock
from tests.browser import NAVIGATION, Browser
from tests.conftest import Watch
from tests.servers import ClientRegistration, OIDCServer

SECRET_KEY = "canary-5f1c2b7a9d3e4f60718293a4b5c6d7e8f90a1b2c"


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """All that any library logs, with tracebacks."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)r"))
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def client(oidc: OIDCServer) -> ClientRegistration:
    return oidc.add_client(
        "http://localhost/oidc/callback",
        post_logout_redirect_uris=["http://localhost/oidc/logged-out"],
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def app(oidc: OIDCServer, client: ClientRegistration, clock: FakeClock, tmp_path: Path) -> Flask:
    app = Flask(__name__, instance_path=str(tmp_path))
    app.config.update(
        SECRET_KEY=SECRET_KEY,
        ATM_ISSUER=oidc.issuer,
        ATM_CLIENT_ID=client.client_id,
        ATM_CLIENT_SECRET=client.client_secret,
        ATM_APIS={
            "api": {"base_url": oidc.api_url},
            "own": {"base_url": oidc.api_url, "token": "client"},
        },
        ATM_CLIENTS={"own": {"provider": "oidc"}},
        PROPAGATE_EXCEPTIONS=False,
    )
    # The breaker would keep most of the failures away from the server.
    engine = EngineParameters(breaker_pause=1e-6, client_pause=1e-6, doubt_wait=0.05)
    atm = ATM(app, clock=clock, engine=engine)
    api = atm.api("api")
    own = atm.api("own")

    @app.get("/own")
    def call_as_ourselves() -> str:
        return str(own.get("x").status_code)

    @app.get("/call")
    def call() -> str:
        return api.get("x").text

    @app.get("/show")
    def show() -> str:
        shown = [repr(current_login), repr(current_user_token), f"{current_user_token}"]
        shown += [repr(api), repr(api.headers), repr(atm), repr(app.extensions[STATE_KEY].config)]
        shown.append(repr(dataclasses.asdict(current_user_token._get_current_object())))  # type: ignore[attr-defined]
        shown.append(repr(dataclasses.asdict(current_login._get_current_object())))  # type: ignore[attr-defined]
        shown.append(repr(current_user_token.authorization))
        return "\n".join(shown)

    return app


def s256(verifier: str) -> str:
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def verifier_of(app: Flask, browser: Browser, login_state: str) -> str:
    """Open the pending sign-in as only this application can."""
    state: State = app.extensions[STATE_KEY]
    (cookie,) = [one for one in (browser.client._cookies or {}).values() if "pending" in one.key]
    sealed = urlsafe_b64decode(cookie.value + "=" * (-len(cookie.value) % 4))
    members = state.ring.open_json(sealed, purpose=f"cookie {cookie.key}", record=login_state)
    return str(members["v"])


def readable(cookie: Cookie) -> str:
    """All that can be read in a cookie: as it is, decoded, and unpacked."""
    found = [cookie.value.encode()]
    for part in cookie.value.strip(".").split("."):
        with suppress(ValueError):
            found.append(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        with suppress(zlib.error):
            found.append(zlib.decompress(found[-1]))
    return b" ".join(found).decode("latin-1")


def secrets_of(app: Flask, grant_id: str) -> set[str]:
    state: State = app.extensions[STATE_KEY]
    snapshot = state.provider().tokens.vault.read(record_key(grant_id))
    assert snapshot is not None
    found = {slot.token.reveal() for slot in snapshot.grant.slots.values()}
    assert snapshot.grant.refresh_token is not None
    assert snapshot.grant.id_token is not None
    return found | {snapshot.grant.refresh_token.reveal(), snapshot.grant.id_token.reveal()}


def grant_id_of(app: Flask, browser: Browser) -> str:
    with browser.client, app.app_context():
        browser.client.get("/show")
        return current_login.grant_id


def test_j1_no_secret_is_readable_anywhere(
    app: Flask,
    oidc: OIDCServer,
    client: ClientRegistration,
    clock: FakeClock,
    tmp_path: Path,
    everything_logged: io.StringIO,
) -> None:
    seen: list[TestResponse] = []
    canaries = {str(client.client_secret), SECRET_KEY}
    browser = Browser(app, oidc)

    # Sign in step by step, to know the code and the verifier.
    away = browser.client.get("/oidc/login", headers=NAVIGATION)
    seen.append(away)
    sent = parse_qs(urlsplit(away.headers["Location"]).query)
    assert sent["code_challenge_method"] == ["S256"]
    verifier = verifier_of(app, browser, sent["state"][0])
    assert s256(verifier) == sent["code_challenge"][0]
    canaries.add(verifier)
    kept = [readable(cookie) for cookie in (browser.client._cookies or {}).values()]
    back = oidc.visit(away.headers["Location"]).url
    canaries.add(parse_qs(urlsplit(back).query)["code"][0])
    parts = urlsplit(back)
    seen.append(browser.client.get(f"{parts.path}?{parts.query}", headers=NAVIGATION))
    seen.append(browser.client.get("/show"))
    grant_id = grant_id_of(app, browser)
    canaries |= secrets_of(app, grant_id)

    # A renewal, a renewal because of 401, failures of the provider of many kinds.
    clock.advance(290)
    seen.append(browser.client.get("/call"))
    canaries |= secrets_of(app, grant_id)
    clock.advance(5)
    oidc.fault("api", status=401, headers={"WWW-Authenticate": "Bearer"})
    seen.append(browser.client.get("/call"))
    canaries |= secrets_of(app, grant_id)
    for fault in (
        {"status": 500, "body": "<html>"},
        {"status": 400, "body": {"error": "invalid_client", "error_description": "no"}},
        {"status": 200, "body": "no json"},
        {"cut": True},
    ):
        clock.advance(1000)
        oidc.reset()
        oidc.fault("token", **fault)
        seen.append(browser.client.get("/call", headers=NAVIGATION))
        assert seen[-1].status_code >= 500
        assert len(oidc.token_requests()) == 1
    # The application's own token, and what the command line says of all this.
    clock.advance(1000)
    seen.append(browser.client.get("/own"))
    assert seen[-1].text == "200"
    with app.app_context():
        canaries.add(app.extensions["atm"].get_client_token().value)
    commands = [["providers"], ["clients"], ["apis"], ["metadata"], ["grants"], ["token", "own"]]
    commands += [["keys"], ["keys", "rotate"], ["revoke", "--all", "--dry-run"]]
    said = [
        FlaskCliRunner(app).invoke(atm_commands, [*command, *more])
        for command in commands
        for more in ([], ["--json"])
    ]
    assert {result.exit_code for result in said} == {0}
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    kept += [readable(cookie) for cookie in (browser.client._cookies or {}).values()]

    # The end: at the provider too, which gets the ID token as a hint.
    page = browser.client.get("/oidc/logout")
    seen.append(page)
    farewell = browser.client.post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
    assert "id_token_hint=" in farewell.headers["Location"]

    pages = "\n".join(f"{answer.headers}\n{answer.text}" for answer in seen)
    # The code and the state have to be in the URLs of the sign-in, and nowhere else.
    places = {
        "pages": pages,
        "cookies": "\n".join(kept),
        "command line": "\n".join(result.output for result in said),
        "store": stored.decode("latin-1"),
        "logs": everything_logged.getvalue(),
    }
    assert len(places["logs"]) > 1000
    assert len(canaries) >= 10
    assert all(len(text) > 100 for text in places.values())
    for place, text in places.items():
        for canary in canaries:
            assert canary not in text, f"{canary[:6]}… can be read in {place}"
    # Without its keys the store is of no use to act as the user either.
    assert grant_id not in places["store"]
    assert "alice" not in places["store"]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 200, "body": "nonsense"},
        {"status": 400, "body": {"error": "invalid_target"}},
        {"status": 401, "body": {"error": "invalid_client"}},
    ],
)
def test_j1_tracebacks_with_locals_show_no_token(
    app: Flask, oidc: OIDCServer, clock: FakeClock, fault: dict[str, Any]
) -> None:
    browser = Browser(app, oidc)
    browser.open("/oidc/login")
    grant_id = grant_id_of(app, browser)
    canaries = secrets_of(app, grant_id)
    clock.advance(1000)
    oidc.fault("token", **fault)

    with app.app_context(), pytest.raises(ProtocolError) as caught:
        app.extensions["atm"].get_user_token(grant_id=grant_id)

    here = caught.value.__traceback__
    assert here is not None
    shown = "".join(
        traceback.TracebackException(
            type(caught.value), caught.value, here.tb_next, capture_locals=True
        ).format()
    )
    assert "snapshot = " in shown
    for canary in canaries:
        assert canary not in shown


def test_j1_tokens_and_logins_are_never_pickled(app: Flask, oidc: OIDCServer) -> None:
    browser = Browser(app, oidc)
    browser.open("/oidc/login")
    with browser.client:
        browser.client.get("/show")
        token = current_user_token._get_current_object()  # type: ignore[attr-defined]
        login = current_login._get_current_object()  # type: ignore[attr-defined]
    for value in (token, login):
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(value)
        with pytest.raises(TypeError, match="never pickled"):
            copy.copy(value)


def test_a18_a_thread_without_a_grant_gets_nobodys_token(app: Flask) -> None:
    with app.app_context(), pytest.raises(LoginRequired, match="use_grant") as caught:
        app.extensions["atm"].get_user_token()
    assert caught.value.reason == "outside_request"
    with pytest.raises(LoginRequired, match="use_grant"):
        bool(current_login)


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        ("a token was got: " + "aB3" * 15, True),
        ("Authorization: Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl", True),
        ("{'refresh_token': 'wQ1-" + "xY_9" * 10 + "'}", True),
        ("oidc." + "k9_" * 15, True),
        ("'oidc' has ended a sign-in. grant=4bf253d1", False),
        ("http://127.0.0.1:37717/.well-known/openid-configuration answered 200", False),
        ("the file '/tmp/pytest-of-root/pytest-202/test_an_instance_folder0/file' is no", False),
    ],
)
def test_j1_the_watch_over_the_whole_suite_sees_what_it_has_to(text: str, is_secret: bool) -> None:
    """``tests/conftest.py`` puts it over every test: nothing like a token in our logs."""
    watch = Watch()
    watch.emit(logging.LogRecord("flask_atm.x", logging.DEBUG, "", 0, "%s", (text,), None))
    assert bool(watch.found) is is_secret
    assert any(type(handler) is Watch for handler in logging.getLogger("flask_atm").handlers)
    assert logging.getLogger("flask_atm.refresh").isEnabledFor(logging.DEBUG)
