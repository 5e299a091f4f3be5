"""The examples of ``examples/jobs`` run, and do what a user would want when a sign-in has ended."""

import json
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import socketio as clients
from celery.contrib.testing.worker import start_worker
from cryptography.fernet import Fernet
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.serving import make_server

from examples.jobs import background_thread, celery_task, socket_events
from flask_atm.testing import FakeAPI, FakeProvider

ROOT = Path(__file__).parents[2]
HERE = {"Sec-Fetch-Site": "same-origin"}
STOPPED = "stopped: sign in to go on"
LIFETIME = 1.0


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(expires_in=LIFETIME) as running:
        yield running


@pytest.fixture
def api(provider: FakeProvider) -> Iterator[FakeAPI]:
    with FakeAPI(provider) as running:
        yield running


@pytest.fixture
def settings(provider: FakeProvider, api: FakeAPI) -> dict[str, Any]:
    return provider.settings(
        ATM_APIS={"invoices": {"base_url": api.base_url}},
        JOBS_KEY=Fernet.generate_key().decode(),
    )


def let_tokens_expire() -> None:
    """Live as long as an access token does: the examples have no clock that could be set."""
    threading.Event().wait(LIFETIME + 0.1)


def sign_in(app: Flask, provider: FakeProvider, user: str = "alice") -> FlaskClient:
    """Give a browser whose user has signed in."""
    browser = app.test_client()
    sign_in_again(browser, provider, user)
    return browser


def sign_in_again(browser: FlaskClient, provider: FakeProvider, user: str = "alice") -> None:
    answer = browser.get(provider.approve(browser.get("/oidc/login").location or "", user))
    assert answer.status_code == 302


def sign_out(browser: FlaskClient) -> None:
    assert browser.post("/oidc/logout", headers=HERE).status_code == 303


def when_it_has_ended(browser: FlaskClient) -> Any:
    """Look at a job until it has ended, as a page does."""
    pause = threading.Event()
    for _ in range(3000):
        export = browser.get("/export").get_json()
        if export["state"] != "running":
            return export
        pause.wait(0.01)
    raise AssertionError("the job does not end")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("background_thread", "done with 12 months of alice"),
        ("celery_task", "done with 12 months of alice"),
        ("socket_events", "after the sign-out: disconnected"),
    ],
)
def test_the_example_shows_itself(name: str, said: str) -> None:
    script = ROOT / "examples" / "jobs" / f"{name}.py"
    ended = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == said
    assert len(script.read_text("utf-8").splitlines()) <= 130  # read in two minutes


# -- a thread


def test_the_thread_works_for_whoever_began_it(
    settings: dict[str, Any], provider: FakeProvider, api: FakeAPI
) -> None:
    app = background_thread.create_app(settings)
    browsers = {name: sign_in(app, provider, name) for name in ("alice", "bob")}
    with api.hold() as held:
        for browser in browsers.values():
            assert browser.post("/export").status_code == 202
        held.wait()
        for browser in browsers.values():
            assert browser.get("/export").get_json() == {"state": "running", "months": []}
        let_tokens_expire()  # in the middle of it
    for name, browser in browsers.items():
        export = when_it_has_ended(browser)
        assert export["state"] == "done"
        assert [month["sub"] for month in export["months"]] == [name] * 12
    assert provider.replays == 0


def test_the_thread_stops_where_the_sign_in_ends_and_goes_on_after_the_next(
    settings: dict[str, Any], provider: FakeProvider, api: FakeAPI
) -> None:
    app = background_thread.create_app(settings)
    browser = sign_in(app, provider)
    with api.hold() as held:
        browser.post("/export")
        held.wait()
        let_tokens_expire()
        provider.revoke_all()  # an administrator ends the sign-in
    assert browser.get("/export").status_code in (200, 401)
    sign_in_again(browser, provider)
    export = when_it_has_ended(browser)
    assert export["state"] == STOPPED
    assert len(export["months"]) < 12

    browser.post("/export")

    assert when_it_has_ended(browser)["state"] == "done"


def test_the_thread_says_when_to_try_again(
    settings: dict[str, Any], provider: FakeProvider, api: FakeAPI
) -> None:
    app = background_thread.create_app(settings)
    browser = sign_in(app, provider)
    with api.hold() as held:
        browser.post("/export")
        held.wait()
        provider.fail(times=None)
        let_tokens_expire()
    export = when_it_has_ended(browser)
    assert re.fullmatch(r"stopped: try again in \d+ seconds", export["state"])
    provider.recover()
    sign_in_again(browser, provider)
    browser.post("/export")
    assert when_it_has_ended(browser)["state"] == "done"


# -- Celery


def celery_app(settings: dict[str, Any]) -> Flask:
    """Make the application, with a queue of its own in this process."""
    celery = {
        "broker_url": "memory://",
        "broker_transport_options": {"polling_interval": 0.01},
        "result_backend": "cache+memory://",
        "task_default_queue": secrets.token_hex(4),
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }
    return celery_task.create_app(settings | {"CELERY": celery})


def worker(app: Flask) -> Any:
    return start_worker(app.extensions["celery"], pool="threads", perform_ping_check=False)


def test_the_task_works_for_whoever_began_it(
    settings: dict[str, Any], provider: FakeProvider, api: FakeAPI
) -> None:
    app = celery_app(settings)
    with worker(app):
        browsers = {name: sign_in(app, provider, name) for name in ("alice", "bob")}
        let_tokens_expire()
        provider.fail(times=1)  # the task is tried again in a moment
        for browser in browsers.values():
            assert browser.post("/export").status_code == 202
        for name, browser in browsers.items():
            export = when_it_has_ended(browser)
            assert export["state"] == "done"
            assert [month["sub"] for month in export["months"]] == [name] * 12
    assert provider.replays == 0


def test_the_task_of_a_sign_in_that_has_ended_says_what_to_do(
    settings: dict[str, Any], provider: FakeProvider, api: FakeAPI
) -> None:
    app = celery_app(settings)
    browser = sign_in(app, provider)
    browser.post("/export")
    begun = kept_by(browser)["export"]
    sign_out(browser)
    sign_in_again(browser, provider)
    with browser.session_transaction() as session:
        session["export"] = begun
    with worker(app):
        assert when_it_has_ended(browser) == {"state": STOPPED}
        assert api.calls == []
        browser.post("/export")
        assert when_it_has_ended(browser)["state"] == "done"


def kept_by(browser: FlaskClient) -> dict[str, Any]:
    with browser.session_transaction() as session:
        return dict(session)


def test_no_grant_id_goes_through_the_broker(
    settings: dict[str, Any], provider: FakeProvider
) -> None:
    app = celery_app(settings)
    browser = sign_in(app, provider)
    handle = kept_by(browser)["_atm"]["oidc"].partition(".")[2]
    browser.post("/export")
    celery = app.extensions["celery"]
    with celery.connection_or_acquire() as connection:
        queue = connection.SimpleQueue(celery.conf.task_default_queue)
        message = queue.get(block=False)
        sent = json.dumps([message.body, message.headers], default=bytes.decode)
        message.ack()
        queue.close()
    (ticket,) = json.loads(message.body)[0]
    assert len(handle) > 20
    assert handle not in sent
    with app.app_context():
        assert celery_task.unseal(ticket) == f"oidc.{handle}"


def test_a_ticket_that_is_none_begins_nothing(settings: dict[str, Any], api: FakeAPI) -> None:
    app = celery_app(settings)
    foreign = Fernet(Fernet.generate_key()).encrypt(b"oidc.a-grant-id").decode()
    for ticket in ("", "oidc.a-grant-id", foreign):
        with app.app_context():
            assert celery_task.export.run(ticket) == {"state": STOPPED}
    assert api.calls == []


# -- sockets


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve the application from threads; give its URL."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def connect(url: str, browser: FlaskClient, heard: "list[Any]") -> Any:
    """Open a WebSocket as the browser's page does."""
    cookie = browser.get_cookie("session")
    socket = clients.Client(reconnection=False)
    socket.on("sign in", heard.append)
    headers = {"Cookie": f"session={cookie.value}"} if cookie else {}
    socket.connect(url, headers=headers, transports=["websocket"], wait_timeout=30)
    return socket


def test_the_socket_serves_its_user_until_the_sign_in_ends(
    settings: dict[str, Any], provider: FakeProvider
) -> None:
    app = socket_events.create_app(settings)
    heard: dict[str, list[Any]] = {"alice": [], "bob": []}
    browsers = {name: sign_in(app, provider, name) for name in heard}
    with served(app) as url:
        sockets = {name: connect(url, browsers[name], heard[name]) for name in heard}
        for _ in range(2):
            let_tokens_expire()
            for name, socket in sockets.items():
                assert socket.call("latest", timeout=30)["sub"] == name

        sign_out(browsers["alice"])
        sockets["alice"].emit("latest")
        sockets["alice"].wait()

        assert heard == {"alice": ["/oidc/login"], "bob": []}
        assert not sockets["alice"].connected
        assert sockets["bob"].call("latest", timeout=30)["sub"] == "bob"

        sign_in_again(browsers["alice"], provider)
        sockets["alice"] = connect(url, browsers["alice"], heard["alice"])
        assert sockets["alice"].call("latest", timeout=30)["sub"] == "alice"
        for socket in sockets.values():
            socket.disconnect()
    assert provider.replays == 0


def test_nobody_connects_without_a_sign_in(settings: dict[str, Any]) -> None:
    app = socket_events.create_app(settings)
    with served(app) as url, pytest.raises(clients.exceptions.ConnectionError):
        connect(url, app.test_client(), [])
    assert not socket_events.grant_ids


def test_the_socket_says_when_it_cannot_be_now(
    settings: dict[str, Any], provider: FakeProvider
) -> None:
    app = socket_events.create_app(settings)
    browser = sign_in(app, provider)
    socket = socket_events.socketio.test_client(app, flask_test_client=browser)
    let_tokens_expire()
    provider.fail(times=None)
    assert socket.emit("latest", callback=True) == {"error": "not now, try again later"}
    socket.disconnect()
    assert socket_events.grant_ids == {}
