"""A18: outside a request nobody is meant but who is named, and for as long as that is said."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest
from flask import Response, copy_current_request_context, stream_with_context

from flask_atm.decorators import requires_login, requires_token
from flask_atm.errors import LoginRequired
from flask_atm.globals import current_login
from tests.top.outside import Outside, in_a_thread, outside, whoever

NOBODY = ["outside_request"]


@pytest.fixture
def app() -> Iterator[Outside]:
    with outside() as made:
        yield made


@pytest.fixture
def alice(app: Outside) -> str:
    return app.sign_in("alice")


@pytest.fixture
def bob(app: Outside) -> str:
    return app.sign_in("bob")


def without_a_grant(app: Outside) -> list[str]:
    """What a job finds that has an application context, and names nobody."""
    with app.flask.app_context():
        return whoever(app)


# -- threads


def test_a18_a_thread_without_a_grant_has_no_token_of_anybody(app: Outside, alice: str) -> None:
    found: list[Any] = []

    @app.flask.get("/")
    @requires_token
    def view() -> str:
        assert whoever(app) == ["alice"]
        found.append(in_a_thread(lambda: without_a_grant(app)))
        found.append(in_a_thread(lambda: whoever(app)))
        with app.atm.use_grant(alice):
            found.append(in_a_thread(lambda: without_a_grant(app)))
        return "done"

    assert app.client(alice).get("/").text == "done"
    assert found == [NOBODY] * 3
    # And no token of the application itself was taken instead.
    assert app.server.token_requests == []


def test_a18_the_error_says_what_to_do(app: Outside) -> None:
    with app.flask.app_context():
        for use in (app.whose, app.atm.get_user_token, lambda: current_login.subject):
            with pytest.raises(LoginRequired, match=r"use_grant\(grant_id\)"):
                use()


def test_a18_a_thread_of_a_pool_forgets_whom_it_worked_for(app: Outside, alice: str) -> None:
    def work() -> list[list[str]]:
        with app.flask.app_context():
            with app.atm.use_grant(alice):
                first = whoever(app)
            with suppress(ZeroDivisionError), app.atm.use_grant(alice):
                print(1 / 0)
            return [first, whoever(app), without_a_grant(app)]

    assert in_a_thread(work) == [["alice"], NOBODY, NOBODY]


# -- contexts that are shared or copied


def test_a18_an_application_context_shared_by_two_users_one_after_the_other(
    app: Outside, alice: str, bob: str
) -> None:
    with app.flask.app_context():
        for _ in range(2):
            for grant_id, name in ((alice, "alice"), (bob, "bob")):
                with app.atm.use_grant(grant_id):
                    assert whoever(app) == [name]
                assert whoever(app) == NOBODY


def test_a18_copy_current_request_context_means_the_user_of_that_request(
    app: Outside, alice: str, bob: str
) -> None:
    kept: dict[str, Any] = {}

    @app.flask.get("/<name>")
    def view(name: str) -> str:
        kept[name] = copy_current_request_context(lambda: whoever(app))
        return ",".join(whoever(app))

    for grant_id, name in ((alice, "alice"), (bob, "bob")):
        assert app.client(grant_id).get(f"/{name}").text == name
    # Both requests are over; the copies run late, and in each other's company.
    assert in_a_thread(kept["alice"]) == ["alice"]
    assert in_a_thread(kept["bob"]) == ["bob"]
    assert in_a_thread(lambda: [kept["alice"](), kept["bob"](), without_a_grant(app)]) == [
        ["alice"],
        ["bob"],
        NOBODY,
    ]


def test_a18_a_copied_context_means_whom_it_meant_when_it_was_copied(
    app: Outside, alice: str, bob: str
) -> None:
    contexts: dict[str, Any] = {}

    @app.flask.get("/")
    def view() -> str:
        contexts["view"] = copy_context()
        with app.atm.use_grant(bob):
            contexts["grant in view"] = copy_context()
        return "done"

    app.client(alice).get("/")
    with app.flask.app_context():
        contexts["job"] = copy_context()
        with app.atm.use_grant(bob):
            contexts["grant"] = copy_context()
    found = {
        name: in_a_thread(partial(context.run, whoever, app)) for name, context in contexts.items()
    }
    assert found == {
        "view": ["alice"],
        "grant in view": ["bob"],
        "job": NOBODY,
        "grant": ["bob"],
    }


def test_a18_threads_that_share_one_application_context_have_a_user_each(
    app: Outside, alice: str, bob: str
) -> None:
    with app.flask.app_context():
        shared = {name: copy_context() for name in ("alice", "bob", "nobody")}
    turn = threading.Barrier(3)

    def work(name: str) -> list[list[str]]:
        found = []
        for _ in range(10):
            turn.wait(10)
            if name == "nobody":
                found.append(whoever(app))
                continue
            with app.atm.use_grant(alice if name == "alice" else bob):
                found.append(whoever(app))
        return found

    found: dict[str, Any] = {}

    def run(name: str) -> None:
        found[name] = shared[name].run(work, name)

    threads = [threading.Thread(target=run, args=(name,)) for name in shared]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {
        "alice": [["alice"]] * 10,
        "bob": [["bob"]] * 10,
        "nobody": [NOBODY] * 10,
    }


def test_a18_coroutines_that_take_turns_have_a_user_each(
    app: Outside, alice: str, bob: str
) -> None:
    async def work(grant_id: str) -> list[list[str]]:
        found = []
        for _ in range(5):
            with app.atm.use_grant(grant_id):
                await asyncio.sleep(0)
                found.append(whoever(app))
                found.append(await asyncio.to_thread(whoever, app))
            await asyncio.sleep(0)
        return found

    async def all_of_them() -> list[list[list[str]]]:
        return list(await asyncio.gather(work(alice), work(bob)))

    with app.flask.app_context():
        found = asyncio.run(all_of_them())
    assert found == [[["alice"]] * 10, [["bob"]] * 10]


# -- nested


def test_a18_nested_grants_mean_the_inner_one_and_then_the_outer_one(
    app: Outside, alice: str, bob: str
) -> None:
    with app.flask.app_context(), app.atm.use_grant(alice):
        with app.atm.use_grant(bob):
            assert whoever(app) == ["bob"]
            with app.atm.use_grant(alice):
                assert whoever(app) == ["alice"]
            assert whoever(app) == ["bob"]
            with app.flask.app_context():
                assert whoever(app) == ["bob"]
        with suppress(ZeroDivisionError), app.atm.use_grant(bob):
            print(1 / 0)
        assert whoever(app) == ["alice"]


@pytest.mark.parametrize("grant_id", [None, ""])
def test_a18_no_grant_id_never_means_the_grant_around_it(
    app: Outside, alice: str, grant_id: Any
) -> None:
    """A column of the job's table is empty."""
    with app.flask.app_context(), app.atm.use_grant(alice):
        with (
            pytest.raises(ValueError, match=r"current_login\.grant_id"),
            app.atm.use_grant(grant_id),
        ):
            pass
        assert whoever(app) == ["alice"]


# -- generators: what they set stays set while they wait


def reads(app: Outside, grant_id: str, count: int = 3) -> Generator[list[str]]:
    with app.atm.use_grant(grant_id):
        for _ in range(count):
            yield whoever(app)


def test_a18_two_generators_that_are_read_in_turns_have_a_user_each(
    app: Outside, alice: str, bob: str
) -> None:
    with app.flask.app_context():
        both = list(zip(reads(app, alice), reads(app, bob), strict=True))
        assert both == [(["alice"], ["bob"])] * 3
        # The first to begin is the first to end, and the other goes on.
        first, second = reads(app, alice, 1), reads(app, bob)
        assert [next(first), next(second), *first, *second] == [["alice"]] + [["bob"]] * 3
        assert whoever(app) == NOBODY


def test_a18_whoever_reads_from_a_generator_is_not_its_user(
    app: Outside, alice: str, bob: str
) -> None:
    @app.flask.get("/")
    def view() -> list[list[str]]:
        found = [whoever(app)]
        for part in reads(app, bob):
            found += [part, whoever(app)]
        return found

    assert app.client(alice).get("/").json == [["alice"], *[["bob"], ["alice"]] * 3]
    with app.flask.app_context():
        waiting = reads(app, alice)
        assert next(waiting) == ["alice"]
        with pytest.raises(LoginRequired, match="does not last beyond its yield"):
            app.whose()
        with app.atm.use_grant(bob):
            assert [whoever(app), next(waiting), whoever(app)] == [["bob"], ["alice"], ["bob"]]
        assert next(waiting) == ["alice"]
        waiting.close()


def test_a18_nor_is_he_where_a_helper_of_the_generator_uses_the_grant(
    app: Outside, alice: str, bob: str
) -> None:
    class Job:
        def __init__(self) -> None:
            self._used = app.atm.use_grant(bob)

        def __enter__(self) -> None:
            self._used.__enter__()

        def __exit__(self, *exc_info: Any) -> None:
            self._used.__exit__(*exc_info)

    def enter(stack: ExitStack) -> None:
        stack.enter_context(app.atm.use_grant(bob))

    def by_class() -> Iterator[list[str]]:
        with Job():
            yield whoever(app)
            yield whoever(app)

    def by_function() -> Iterator[list[str]]:
        with ExitStack() as stack:
            enter(stack)
            yield whoever(app)
            yield whoever(app)

    with app.flask.app_context(), app.atm.use_grant(alice):
        for parts in (by_class(), by_function()):
            assert next(parts) == ["bob"]
            assert whoever(app) == ["alice"]
            assert list(parts) == [["bob"]]
            assert whoever(app) == ["alice"]


@pytest.mark.parametrize("end", ["close", "forget", "keep"])
def test_a18_a_stream_that_is_left_half_way_says_nothing_of_the_next_request(
    app: Outside, alice: str, bob: str, end: str
) -> None:
    streams: list[Any] = []

    def parts() -> Iterator[str]:
        with app.flask.app_context(), app.atm.use_grant(alice):
            while True:
                yield ",".join(whoever(app))

    @app.flask.get("/stream")
    def stream() -> Response:
        streams.append(parts())
        return Response(streams[-1])

    @app.flask.get("/")
    def view() -> list[str]:
        return whoever(app)

    def work() -> list[Any]:
        """What one thread of a server does; the browser has gone in the middle of the stream."""
        body: Any = app.client(bob).get("/stream", buffered=False).response
        found = [next(iter(body))]
        if end == "close":
            body.close()
        elif end == "forget":
            streams.clear()
            del body
            gc.collect()
        found += [app.client(bob).get("/").json, app.flask.test_client().get("/").json]
        found.append(without_a_grant(app))
        for left in streams:
            left.close()
        return found

    assert in_a_thread(work) == [b"alice", ["bob"], ["False", "anonymous"], NOBODY]


def test_a18_a_generator_that_another_thread_ends_says_nothing_in_the_first_one(
    app: Outside, alice: str
) -> None:
    with app.flask.app_context():
        waiting = reads(app, alice)
        assert next(waiting) == ["alice"]
        assert in_a_thread(waiting.close) is None
        assert whoever(app) == NOBODY
        assert without_a_grant(app) == NOBODY


def test_a18_a_stream_of_a_guarded_view_means_its_grant_to_the_end(
    app: Outside, alice: str, bob: str
) -> None:
    @app.flask.get("/")
    @requires_login(provider="oidc")
    def view() -> Iterator[str]:
        def parts() -> Iterator[str]:
            for found in reads(app, bob):
                yield ",".join(found)
                yield ",".join(whoever(app))

        return stream_with_context(parts())

    assert app.client(alice).get("/").text == "bobalice" * 3


def test_a18_context_managers_around_a_grant_last_as_long_as_their_with(
    app: Outside, alice: str, bob: str
) -> None:
    @contextmanager
    def job(grant_id: str) -> Iterator[None]:
        with app.flask.app_context(), app.atm.use_grant(grant_id):
            yield

    def parts(grant_id: str) -> Iterator[list[str]]:
        with job(grant_id):
            yield whoever(app)
            yield whoever(app)

    with job(alice):
        assert whoever(app) == ["alice"]
        with ExitStack() as stack:
            stack.enter_context(job(bob))
            assert whoever(app) == ["bob"]
        assert whoever(app) == ["alice"]
    # Those of a generator do not.
    with app.flask.app_context():
        waiting = parts(alice)
        assert next(waiting) == ["alice"]
        assert without_a_grant(app) == NOBODY
        assert [*waiting] == [["alice"]]


def test_a18_a_grant_in_an_asynchronous_generator_is_refused(app: Outside, alice: str) -> None:
    async def parts() -> AsyncIterator[str]:
        with app.atm.use_grant(alice):
            yield "never"

    async def read() -> list[str]:
        return [part async for part in parts()]

    with app.flask.app_context(), pytest.raises(RuntimeError, match="grant_id="):
        asyncio.run(read())
