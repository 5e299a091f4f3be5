"""The main job, end to end: the README's application against a real OpenID provider."""

import json
import random
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, render_template_string
from itsdangerous import base64_decode

from flask_atm import ATM, EngineParameters, requires_token
from flask_atm.testing import FakeClock
from tests.browser import NAVIGATION, Browser
from tests.servers import OIDCServer

SECRET_KEY = "4a5c9d0e6b7f8a1b2c3d4e5f60718293a4b5c6d7e8f90a1b"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def environment(oidc: OIDCServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of the quick start: four keys, and where the API is."""
    client = oidc.add_client("http://localhost/oidc/callback")
    values = {
        "SECRET_KEY": SECRET_KEY,
        "ATM_ISSUER": oidc.issuer,
        "ATM_CLIENT_ID": client.client_id,
        "ATM_CLIENT_SECRET": client.client_secret,
        "ATM_APIS": json.dumps({"invoices": {"base_url": oidc.api_url}}),
    }
    for name, value in values.items():
        monkeypatch.setenv(f"FLASK_{name}", str(value))
    return tmp_path


def create_app(folder: Path, clock: FakeClock, engine: EngineParameters | None = None) -> Flask:
    """The opening example of the README, with a clock."""
    atm = ATM(clock=clock, engine=engine)
    invoices = atm.api("invoices")

    app = Flask(__name__, instance_path=str(folder / "instance"))
    app.config.from_prefixed_env()
    atm.init_app(app)

    @app.get("/")
    def index() -> str:
        return render_template_string(
            "{% if current_login %}Hello {{ current_login.claims.name }}{% endif %}"
        )

    @app.get("/invoices")
    @requires_token
    def latest() -> Any:
        return invoices.get("latest").json()

    return app


@pytest.fixture
def app(environment: Path, clock: FakeClock) -> Flask:
    return create_app(environment, clock)


def call(browser: Browser) -> Any:
    """Call the API as a script of the page does."""
    return browser.client.get("/invoices", headers={"Accept": "application/json"})


def test_the_opening_example_signs_in_and_calls_the_api_for_hours(
    app: Flask, oidc: OIDCServer, clock: FakeClock
) -> None:
    browser = Browser(app, oidc)
    assert browser.open("/").text == ""

    page = browser.open("/invoices")

    assert page.status_code == 200
    assert page.get_json()["sub"] == "alice"
    assert browser.open("/").text == "Hello Alice Example"
    for _ in range(30):
        clock.advance(280)
        oidc.advance(280)
        answer = call(browser)
        assert answer.status_code == 200, answer.text
        assert answer.get_json()["sub"] == "alice"
    assert oidc.stats()["replays"] == 0


def test_an_api_that_refuses_a_token_gets_another_one_once(
    app: Flask, oidc: OIDCServer, clock: FakeClock
) -> None:
    browser = Browser(app, oidc)
    browser.open("/invoices")
    clock.advance(5)
    oidc.reset()
    oidc.fault("api", status=401, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})

    assert call(browser).get_json()["sub"] == "alice"

    assert [request["sent_status"] for request in oidc.requests_to("api")] == [401, 200]
    assert len(oidc.token_requests()) == 1


def test_provider_down_with_40_s_left_then_expired_then_back(
    app: Flask, oidc: OIDCServer, clock: FakeClock
) -> None:
    browser = Browser(app, oidc)
    browser.open("/invoices")
    clock.advance(260)  # of 300
    oidc.stop_listening()
    for _ in range(39):
        assert call(browser).status_code == 200
        clock.advance(1)
    clock.advance(2)

    started = time.monotonic()
    refused = call(browser)

    assert time.monotonic() - started < 2
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["Retry-After"]) <= 300
    # Nobody was signed out.
    assert browser.open("/").text == "Hello Alice Example"

    oidc.listen()
    clock.advance(int(refused.headers["Retry-After"]) + 1)
    with app.app_context():
        breaker_pause = max(
            (entry["paused_for"] for entry in app.extensions["atm"].health()["endpoints"].values()),
            default=0.0,
        )
    assert breaker_pause <= 5.0
    deadline = time.monotonic() + 20
    while (answer := call(browser)).status_code == 503 and time.monotonic() < deadline:
        clock.advance(int(answer.headers["Retry-After"]))
        time.sleep(0.1)
    assert answer.status_code == 200
    assert answer.get_json()["sub"] == "alice"


def test_a17_50_users_with_200_calls_each_in_one_thread_pool_never_get_anothers_token(
    app: Flask, oidc: OIDCServer, clock: FakeClock
) -> None:
    cookies: dict[str, str] = {}
    for user in (f"user{number}" for number in range(50)):
        browser = Browser(app, oidc)
        away = browser.client.get("/invoices", headers=NAVIGATION).headers["Location"]
        browser.follow(f"{away}&account={user}")
        cookie = browser.client.get_cookie("session")
        assert cookie is not None
        cookies[user] = cookie.value
    oidc.reset()
    calls = list(cookies) * 200
    random.Random(17).shuffle(calls)

    def call_as(number: int) -> bool:
        if number % 2500 == 1000:  # four times the tokens of all expire amid their calls
            clock.advance(1000)
        client = app.test_client()
        client.set_cookie("session", cookies[calls[number]])
        answer = client.get("/invoices", headers={"Accept": "application/json"})
        return answer.status_code == 200 and answer.json["sub"] == calls[number]  # type: ignore[index]

    with ThreadPoolExecutor(16) as pool:
        right = list(pool.map(call_as, range(len(calls))))
    assert len(right) == 10_000
    assert all(right)
    assert 50 * 4 <= len(oidc.token_requests()) <= 50 * 5
    assert oidc.stats()["replays"] == 0


def session_cookie(browser: Browser) -> dict[str, Any]:
    cookie = browser.client.get_cookie("session")
    assert cookie is not None
    payload = cookie.value.lstrip(".").split(".")[0]
    packed = cookie.value.startswith(".")
    text = zlib.decompress(base64_decode(payload)) if packed else base64_decode(payload)
    value: dict[str, Any] = json.loads(text)
    return value


@pytest.mark.parametrize("padding", [0, 3000])
def test_the_session_cookie_stays_small_whatever_the_size_of_the_tokens(
    app: Flask, oidc: OIDCServer, padding: int
) -> None:
    oidc.settings(id_token_claims={"padding": "x" * padding})
    if padding:
        oidc.fault("token", patch={"refresh_token": "r" * 10_000, "access_token": "a" * 5000})
    browser = Browser(app, oidc)
    browser.open("/oidc/login")

    ours = session_cookie(browser)["_atm"]

    assert list(ours) == ["oidc"]
    assert len(json.dumps({"_atm": ours}, separators=(",", ":"))) < 110
    cookie = browser.client.get_cookie("session")
    assert cookie is not None
    assert len(cookie.value) < 150 + len(".aAaAaA.") + 27  # Flask's own timestamp and signature


@pytest.fixture
def many_providers(oidc: OIDCServer, environment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Beside the one to sign in at a second one, and an account that is connected."""
    names: dict[str, dict[str, Any]] = {"partner": {}, "forge": {"sign_in": False, "scope": "read"}}
    for name, more in names.items():
        client = oidc.add_client(f"http://localhost/oidc/callback/{name}")
        keys = {"issuer": oidc.issuer, "client_id": client.client_id}
        keys["client_secret"] = str(client.client_secret)
        names[name] = {**keys, **more}
    apis = {name: {"base_url": oidc.api_url, "provider": name} for name in names}
    apis["invoices"] = {"base_url": oidc.api_url}
    monkeypatch.setenv("FLASK_ATM_PROVIDERS", json.dumps(names))
    monkeypatch.setenv("FLASK_ATM_APIS", json.dumps(apis))
    monkeypatch.setenv("FLASK_ATM_LOGOUT_AT_PROVIDER", "false")
    return environment


def sign_in_as(browser: Browser, path: str, account: str) -> None:
    away = browser.client.get(path, headers=NAVIGATION).headers["Location"]
    assert browser.follow(f"{away}&account={account}").status_code == 302


def test_several_providers_and_a_connected_account_side_by_side(
    many_providers: Path, oidc: OIDCServer, clock: FakeClock
) -> None:
    app = create_app(many_providers, clock)
    atm: ATM = app.extensions["atm"]

    @app.get("/call/<name>")
    def call_by_name(name: str) -> Any:
        return atm.api(name).get("x").json()

    def whose(name: str) -> Any:
        answer = browser.client.get(f"/call/{name}")
        body: Any = answer.json
        return body["sub"] if answer.status_code == 200 else (answer.status_code, body["login_url"])

    browser = Browser(app, oidc)
    sign_in_as(browser, "/oidc/login", "alice")
    # One sign-in is not another's: nothing falls over to a provider that has one.
    assert whose("invoices") == "alice"
    assert whose("partner") == (401, "/oidc/login/partner")
    assert whose("forge") == (401, "/oidc/login/forge")
    sign_in_as(browser, "/oidc/login/partner", "alice.partner")
    sign_in_as(browser, "/oidc/login/forge", "octocat")
    expected = {"invoices": "alice", "partner": "alice.partner", "forge": "octocat"}
    for _ in range(3):
        assert {name: whose(name) for name in expected} == expected
        clock.advance(280)
        oidc.advance(280)

    # What the extension keeps in the cookie, by provider.
    kept = session_cookie(browser)["_atm"]
    assert set(kept) == {"oidc", "partner", "forge"}
    for name, handle in kept.items():
        assert len(json.dumps({name: handle})) < 110
    cookie = browser.client.get_cookie("session")
    assert cookie is not None
    assert len(cookie.value) < 3 * 150

    # Signing out ends the sign-ins; the connected account stays, and serves whoever is next.
    browser.client.post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
    assert whose("invoices") == (401, "/oidc/login")
    assert whose("partner") == (401, "/oidc/login/partner")
    assert whose("forge") == "octocat"
    assert oidc.stats()["replays"] == 0
