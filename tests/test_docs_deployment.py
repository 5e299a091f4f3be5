"""What the pages on production say is what happens: time-outs, probes, and a Redis that is down."""

import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_atm import ATM, EngineParameters, current_login, requires_login, requires_token
from flask_atm.config import KEYS, Config
from flask_atm.testing import FakeProvider, sign_in
from tests.docs_support import ROOT, Block, blocks, directives, example, rows, sections
from tests.servers.redis_server import RedisServer
from tests.test_docs import HTML, environment

DOCS = ROOT / "docs"
#: Getting a token, calling the API: the longest that a view takes for one call.
LONGEST = EngineParameters().wait + 10
KEPT = 5


def block(language: str, name: str) -> Block:
    return next(one for one in blocks(language) if one.name == name)


def number(option: str, text: str) -> int:
    found = re.search(rf"{option}[ =]+(\d+)", text)
    assert found is not None, option
    return int(found[1])


# -- time-outs


def test_gunicorn_waits_for_longer_than_a_request_takes() -> None:
    for text in (example("deployment-gunicorn-command").text, kubernetes()):
        assert number("--timeout", text) > LONGEST
        assert number("--graceful-timeout", text) > LONGEST + KEPT
        assert number("--threads", text) > 1


def test_uwsgi_waits_for_longer_than_a_request_takes() -> None:
    text = block("ini", "deployment-uwsgi-ini").text
    assert number("harakiri", text) > LONGEST
    assert number("worker-reload-mercy", text) > LONGEST + KEPT
    assert "enable-threads = true" in text


def test_the_page_has_the_numbers_of_the_engine() -> None:
    text = (DOCS / "deployment.rst").read_text("utf-8")
    assert f"{EngineParameters().wait:.0f} seconds" in text
    assert f"a wait of {EngineParameters().lease:.0f} seconds" in text
    outage = (DOCS / "store_outage.rst").read_text("utf-8")
    engine = EngineParameters()
    longest = (engine.store_connect + engine.store_operation) * (1 + engine.store_retries)
    assert f"up to {longest:.0f} seconds" in outage
    assert f"less than {engine.copy_age:.0f} seconds ago" in outage
    assert f"has ended, {engine.lease:.0f} seconds after" in outage


# -- Kubernetes


def kubernetes() -> str:
    return block("yaml", "deployment-kubernetes").text


def test_the_manifest_leaves_enough_time_and_asks_what_is_there() -> None:
    text = kubernetes()
    graceful = number("--graceful-timeout", text)
    assert number("terminationGracePeriodSeconds:", text) > graceful + KEPT
    for probe, path in (("readinessProbe", "/ready"), ("livenessProbe", "/alive")):
        assert f"{probe}: {{httpGet: {{path: {path}," in text
        assert f'@app.get("{path}")' in example("deployment-health").text
    assert "enableServiceLinks: false" in text


def test_the_manifest_sets_what_there_is(tmp_path: Path) -> None:
    names = re.findall(r"name: FLASK_(\w+)", kubernetes())
    assert set(names) <= {key.name for key in KEYS} | {"SECRET_KEY"}
    values = dict(re.findall(r'name: FLASK_(\w+), value: "?([^"}]+)"?}', kubernetes()))
    key = secrets.token_hex()
    values |= {"SECRET_KEY": secrets.token_hex(), "ATM_STORE": "redis://redis/0"}
    assert set(values) == set(names)
    for name in values:
        if name.endswith("_FILE"):
            values[name] = str(tmp_path / name)
            (tmp_path / name).write_text(f"{key}\n", "utf-8")
    config = Config.load(values, debug=False, testing=False)
    assert config.external_url == "https://app.example.com"
    assert config.ring_secrets == (key.encode(),)


def test_names_that_kubernetes_makes_are_no_settings() -> None:
    made = {"ATM_SERVICE_HOST": "10.0.0.1", "ATM_PORT": "tcp://10.0.0.1:80"}
    made["ATM_PORT_80_TCP_ADDR"] = "10.0.0.1"
    values = {"SECRET_KEY": secrets.token_hex(), "ATM_ISSUER": "https://login.example.com"}
    config = Config.load({**made, **values, "ATM_CLIENT_ID": "app"}, debug=False, testing=False)
    assert list(config.providers) == ["oidc"]


def test_the_environment_of_several_hosts_is_accepted(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n", "utf-8")
    text = example("deployment-environment").text
    values = environment(text.replace("/run/secrets/atm_client_secret", str(secret)))
    config = Config.load(
        {name.removeprefix("FLASK_"): value for name, value in values.items()},
        debug=False,
        testing=False,
    )
    assert str(config.store).startswith("rediss://")
    assert len(values) == 6


# -- a Redis that is down: the table, row by row


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer("--appendfsync", "always", appendonly=True) as running:
        yield running


@pytest.fixture
def app(redis_server: RedisServer, fake_provider: FakeProvider) -> Flask:
    app = Flask("deployed")
    app.config.update(fake_provider.settings(ATM_STORE=redis_server.url))
    atm = ATM(app)
    app.add_url_rule("/open", "open", lambda: "open")
    app.add_url_rule("/hello", "hello", lambda: "hello" if bool(current_login) else "nobody")
    app.add_url_rule("/me", "me", requires_login(lambda: current_login.subject))
    app.add_url_rule("/token", "token", requires_token(lambda: "token"))
    app.add_url_rule("/own", "own", lambda: atm.get_client_token().value)
    return app


def user(app: Flask) -> FlaskClient:
    client = app.test_client()
    sign_in(client)
    return client


def status(client: FlaskClient, path: str, **options: Any) -> int:
    return client.get(path, headers=HTML, **options).status_code


def test_the_table_of_an_outage_is_true(
    app: Flask, redis_server: RedisServer, fake_provider: FakeProvider
) -> None:
    (table,) = [
        one
        for one in directives(DOCS / "store_outage.rst")
        if one.options.get("name") == "store-outage"
    ]
    said = {cells[0]: cells[1] for cells in rows(table)}
    assert len(said) == 8
    seen, others = user(app), [user(app) for _ in range(3)]
    assert status(seen, "/token") == 200
    coming = app.test_client()
    at_provider = coming.get("/oidc/login", headers=HTML).location
    assert at_provider is not None
    back = fake_provider.approve(at_provider, user="bob")

    redis_server.kill()
    assert status(others[0], "/open") == 200
    assert [status(app.test_client(), path) for path in ("/hello", "/me")] == [200, 302]
    assert status(seen, "/token") == 200
    for path in ("/hello", "/me", "/token"):
        answer = others[0].get(path, headers=HTML)
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        assert "Set-Cookie" not in answer.headers
    assert status(coming, back) == 503
    out = others[1].post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
    assert out.status_code == 303
    assert status(others[1], "/me") == 302
    own = app.test_client().get("/own")
    assert own.status_code == 200
    assert app.extensions["atm.state"].store.__class__.__name__ == "RedisStore"

    redis_server.start()
    assert [status(one, "/token") for one in (seen, others[0], others[2])] == [200, 200, 200]
    assert coming.get(back, headers=HTML).location == "/"
    assert status(coming, "/me") == 200
    assert status(others[1], "/me") == 302


def test_health_says_whether_the_store_answers(app: Flask, redis_server: RedisServer) -> None:
    atm = app.extensions["atm"]
    with app.app_context():
        assert atm.health()["store"] == "ok"
        redis_server.kill()
        assert "reachable" in atm.health()["store"]
        again = threading.Thread(target=redis_server.start)
        again.start()
        again.join()
        assert atm.health()["store"] == "ok"


def test_the_pages_are_found() -> None:
    index = (DOCS / "index.rst").read_text("utf-8")
    for page in ("deployment", "store_outage"):
        assert f":doc:`{page}`" in index
        assert f"   {page}\n" in index
        assert sections(DOCS / f"{page}.rst")
