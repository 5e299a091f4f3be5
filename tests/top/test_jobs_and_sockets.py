"""A17, A18: requests, threads, tasks, sockets and streams, all in the same few threads."""

import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from flask import Response, request
from flask_socketio import SocketIO
from werkzeug.test import TestResponse

from flask_atm.decorators import requires_token
from flask_atm.globals import current_login
from tests.top.outside import Outside, in_a_thread, outside, whoever

USERS, CALLS, THREADS = 50, 200, 16


@pytest.fixture
def app() -> Iterator[Outside]:
    with outside() as made:
        yield made


def make_celery(threads: int) -> Celery:
    """A broker in this process, for a worker with so many threads."""
    celery = Celery(secrets.token_hex(4), broker="memory://", set_as_current=False)
    celery.conf.update(
        broker_transport_options={"polling_interval": 0.01},  # instead of a second
        task_default_queue=celery.main,
        task_ignore_result=True,
        worker_concurrency=threads,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=0,  # all of them at once: what waits for a place is polled for
        worker_redirect_stdouts=False,
    )
    return celery


class Crowd:
    """Fifty users, and the ways in which the application works for each of them."""

    def __init__(self, app: Outside) -> None:
        self.app = app
        self.seen: SimpleQueue[tuple[str, str, str]] = SimpleQueue()
        self.grants = {f"user{n}": app.sign_in(f"user{n}") for n in range(USERS)}
        self.clients = {name: app.client(grant_id) for name, grant_id in self.grants.items()}
        self.cookies = {name: _cookie(client) for name, client in self.clients.items()}
        self.celery, self.task = self._celery()
        self.socketio = self._socketio()
        self.sockets = {
            name: self.socketio.test_client(app.flask, flask_test_client=client)
            for name, client in self.clients.items()
        }
        self.turns = {name: threading.Lock() for name in self.grants}
        self._views()

    def tell(self, way: str, name: str) -> None:
        """Say for whom something is done, and whose token the API got for it."""
        self.seen.put((way, name, self.app.whose()))

    def _views(self) -> None:
        @self.app.flask.get("/<way>/<name>")
        @requires_token
        def view(way: str, name: str) -> Response:
            if way == "request":
                self.tell(way, name)
            elif way == "thread of a request":
                in_a_thread(partial(copy_context().run, self.tell, way, name))
            return Response(self.stream(name) if way == "stream" else "")

    def stream(self, name: str) -> Iterator[str]:
        with self.app.flask.app_context(), self.app.atm.use_grant(self.grants[name]):
            while True:
                self.tell("stream", name)
                yield "part"

    def _celery(self) -> tuple[Celery, Any]:
        celery = make_celery(threads=4)

        @celery.task(shared=False)
        def task(grant_id: str, name: str) -> None:
            with self.app.flask.app_context(), self.app.atm.use_grant(grant_id):
                self.tell("task", name)

        return celery, task

    def _socketio(self) -> SocketIO:
        socketio = SocketIO(self.app.flask, async_mode="threading")
        grant_ids: dict[str, str] = {}

        @socketio.on("connect")
        def connect() -> None:
            grant_ids[request.sid] = current_login.grant_id

        @socketio.on("event")
        def event(name: str) -> None:
            with self.app.atm.use_grant(grant_ids[request.sid]):
                self.tell("event", name)

        return socketio

    # -- the ways

    @property
    def ways(self) -> dict[str, Callable[[str], object]]:
        """What is done in the threads of the pool, for a user."""
        return {
            "request": partial(self.browse, "request"),
            "thread of a request": partial(self.browse, "thread of a request"),
            "stream": self.by_stream,
            "job": self.by_job,
            "task": self.by_task,
            "event": self.by_event,
        }

    def browse(self, way: str, name: str) -> TestResponse:
        client = self.app.flask.test_client()
        client.set_cookie("session", self.cookies[name])
        return client.get(f"/{way}/{name}", buffered=False)

    def by_job(self, name: str) -> None:
        with self.app.flask.app_context(), self.app.atm.use_grant(self.grants[name]):
            self.tell("job", name)

    def by_task(self, name: str) -> None:
        self.task.delay(self.grants[name], name)

    def by_event(self, name: str) -> None:
        with self.turns[name]:
            self.sockets[name].emit("event", name)

    def by_stream(self, name: str) -> None:
        """Left half-way: nobody closes it before it is forgotten."""
        next(iter(self.browse("stream", name).response))


def _cookie(client: Any) -> str:
    return str(client.get_cookie("session").value)


def test_a17_whatever_50_users_do_in_one_thread_pool_every_token_is_their_own(
    app: Outside,
) -> None:
    crowd = Crowd(app)
    names = list(crowd.grants) * CALLS
    random.Random(17).shuffle(names)
    ways = list(crowd.ways.values())

    def call(number: int) -> None:
        if number % 2500 == 1000:  # four times the tokens of all expire amid their calls
            app.clock.advance(1000)
        ways[number % len(ways)](names[number])

    with start_worker(crowd.celery, pool="threads", perform_ping_check=False):
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(call, range(len(names))))
        seen = [crowd.seen.get(timeout=60) for _ in names]
    assert [one for one in seen if one[1] != one[2]] == []
    found = Counter(way for way, _, _ in seen)
    assert len(seen) == USERS * CALLS == 10_000
    assert set(found) == set(crowd.ways)
    assert min(found.values()) > 1600
    assert app.server.replays == 0
    assert USERS * 3 <= app.server.refreshes <= USERS * 5


def test_a18_a_celery_task_without_a_grant_has_no_token_of_anybody(app: Outside) -> None:
    celery = make_celery(threads=1)
    seen: SimpleQueue[list[str]] = SimpleQueue()

    @celery.task(shared=False)
    def task(grant_id: str | None) -> None:
        with app.flask.app_context():
            if grant_id is not None:
                with app.atm.use_grant(grant_id):
                    seen.put(whoever(app))
            seen.put(whoever(app))

    @app.flask.get("/")
    @requires_token
    def view() -> str:
        with app.atm.use_grant(current_login.grant_id):
            task.delay(None)
        return "begun"

    alice = app.sign_in("alice")
    with start_worker(celery, pool="threads", perform_ping_check=False):
        for grant_id in (None, alice, None):
            task.delay(grant_id)
        assert app.client(alice).get("/").text == "begun"
        found = [seen.get(timeout=60) for _ in range(5)]
    nobody = ["outside_request"]
    assert found == [nobody, ["alice"], nobody, nobody, nobody]
    assert app.server.token_requests == []


def test_a18_what_a_socket_begins_in_the_background_has_no_token_of_anybody(app: Outside) -> None:
    socketio = SocketIO(app.flask, async_mode="threading")
    seen: dict[str, Any] = {}

    @socketio.on("event")
    def event(name: str) -> None:
        seen[name] = [whoever(app)]

        def background() -> None:
            with app.flask.app_context():
                seen[name].append(whoever(app))

        socketio.start_background_task(background).join()

    sockets = {
        name: socketio.test_client(app.flask, flask_test_client=app.client(app.sign_in(name)))
        for name in ("alice", "bob")
    }
    for _ in range(2):
        for name, socket in sockets.items():
            socket.emit("event", name)
    # An event is a request with the cookie that the socket came with.
    assert seen == {name: [[name], ["outside_request"]] for name in sockets}
