"""Real WSGI servers that fork: A15 and M6 as they happen in production."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import requests
from flask import Flask, session

from flask_atm.browser_session import SESSION_KEY, remember
from flask_atm.tokens import TokenParameters
from tests.grants.support import Setup, grant_from
from tests.grants.tools import WAIT, refreshes, settings
from tests.servers import RotatingTokenServer
from tests.servers.faulty import NotInTimeError
from tests.servers.redis_server import RedisServer

ROOT: Final = Path(__file__).parents[1]
WORKERS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Served:
    """An application behind a WSGI server."""

    process: subprocess.Popen[bytes]
    url: str

    def call(self, cookie: str) -> dict[str, Any]:
        """Ask for the token of a user."""
        with requests.Session() as browser:
            browser.trust_env = False
            answer = browser.get(f"{self.url}/token", headers={"Cookie": cookie}, timeout=60)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told


@contextmanager
def gunicorn(config: dict[str, Any], log: Path) -> Iterator[Served]:
    """Serve with a master that has loaded the application, and workers forked from it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLASK_")}
    environment |= {f"FLASK_{key}": _said(value) for key, value in config.items()}
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener, log.open("wb") as output:
        number = listener.fileno()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--preload", "--bind", f"fd://{number}"),
                *("--workers", str(WORKERS), "--worker-class", "gthread", "--threads", "4"),
                *("--worker-tmp-dir", str(log.parent), "--no-control-socket"),
                "tests.servers.served:app",
            ],
            cwd=ROOT,
            env=environment,
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            _wait_for(log, "Booting worker", times=WORKERS)
            yield Served(process=process, url=url)
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _wait_for(log: Path, text: str, times: int) -> None:
    give_up = time.monotonic() + 3 * WAIT
    while log.read_text("utf-8").count(text) < times:
        if time.monotonic() > give_up:
            raise NotInTimeError(log.read_text("utf-8"))
        time.sleep(0.02)


def cookie_of(setup: Setup, grant_id: str) -> str:
    """Make the session cookie of a browser that has signed in."""
    state = setup.state()
    app: Flask = state.app
    with app.test_request_context():
        remember("oidc", state.store_id(), grant_id)
        signed = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
        return f"session={signed.dumps({SESSION_KEY: session[SESSION_KEY]})}"


@pytest.fixture
def server() -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer() as running:
        yield running


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'grants.sqlite3'}"
        return
    with RedisServer() as running:
        yield running.url


def test_a15_gunicorn_with_preload_and_4_workers_makes_one_refresh(
    server: RotatingTokenServer, store: str, tmp_path: Path
) -> None:
    config = settings(server, store)
    del config["TESTING"]
    setup = Setup(config=config, ahead=-1000)
    users = [grant_from(setup.state(), server.issue("alice"), sub=f"user-{n}") for n in range(3)]
    cookies = [cookie_of(setup, grant_id) for grant_id in users]
    server.latency = 0.2
    with gunicorn(config, tmp_path / "log") as served:
        with ThreadPoolExecutor(48) as pool:
            numbers = [number % len(users) for number in range(48)]
            told = list(pool.map(lambda number: served.call(cookies[number]), numbers))
        for number, answer in zip(numbers, told, strict=True):
            assert answer["subject"] == f"user-{number}"
        tokens = {(answer["subject"], answer["token"]) for answer in told}
        assert len(tokens) == len(users)
        assert len({answer["process"] for answer in told}) > 1
        assert {answer["parent"] for answer in told} == {served.process.pid}
        health = requests.get(f"{served.url}/health", timeout=10)
        assert (health.status_code, health.json()["store"]) == (200, "ok")
    assert served.process.returncode == 0
    assert len(refreshes(server)) == len(users)
    assert server.replays == 0


def test_m6_gunicorn_stores_at_its_end_what_redis_did_not_take(
    server: RotatingTokenServer, tmp_path: Path
) -> None:
    with RedisServer("--appendfsync", "always", appendonly=True) as redis_server:
        config = settings(server, redis_server.url)
        del config["TESTING"]
        early = Setup(config=config, ahead=-1000)
        grant_id = grant_from(early.state(), server.issue("alice"), sub="alice")
        cookie = cookie_of(early, grant_id)
        server.hold()
        with gunicorn(config, tmp_path / "log") as served, ThreadPoolExecutor(1) as pool:
            answer: Future[dict[str, Any]] = pool.submit(served.call, cookie)
            server.wait_held()
            redis_server.kill()
            server.release()
            token = answer.result(WAIT)["token"]
            served.process.send_signal(signal.SIGTERM)
            _wait_for(tmp_path / "log", "Handling signal: term", times=1)
            redis_server.start()
            assert served.process.wait(30) == 0
        state = Setup(config=config).state()
        assert state.provider().tokens.get(grant_id, TokenParameters()).value == token
        assert len(refreshes(server)) == 1


def test_m6_gunicorn_ends_no_renewal_when_it_is_told_to_end(
    server: RotatingTokenServer, tmp_path: Path
) -> None:
    config = settings(server, f"sqlite:///{tmp_path / 'grants.sqlite3'}")
    del config["TESTING"]
    early = Setup(config=config, ahead=-1000)
    grant_id = grant_from(early.state(), server.issue("alice"), sub="alice")
    cookie = cookie_of(early, grant_id)
    server.hold()
    with gunicorn(config, tmp_path / "log") as served, ThreadPoolExecutor(1) as pool:
        answer: Future[dict[str, Any]] = pool.submit(served.call, cookie)
        server.wait_held()
        served.process.send_signal(signal.SIGTERM)
        _wait_for(tmp_path / "log", "Handling signal: term", times=1)
        server.release()
        token = answer.result(WAIT)["token"]
        assert served.process.wait(30) == 0
    state = Setup(config=config).state()
    assert state.provider().tokens.get(grant_id, TokenParameters()).value == token
    assert len(refreshes(server)) == 1
