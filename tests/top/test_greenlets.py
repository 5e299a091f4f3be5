"""A16: greenlets and asynchronous views, as threads."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flask_atm.decorators import requires_token
from flask_atm.globals import current_login, current_user_token
from tests.grants.tools import settings, together
from tests.servers import Drip, Reply, Request, RotatingTokenServer, respond
from tests.servers.faulty import Behaviour
from tests.top.outside import outside

ROOT = Path(__file__).parents[2]
PEOPLE = 64


@pytest.mark.parametrize("store", ["sqlite", "memory"])
def test_a16_200_greenlets_with_an_expired_token_make_one_refresh(
    tmp_path: Path, store: str
) -> None:
    with RotatingTokenServer() as server:
        script = {
            "config": settings(
                server,
                store,
                ATM_APIS={"api": {"base_url": f"{server.url}/api/"}},
                ATM_API_TIMEOUT=3,
                ATM_TOKEN_TIMEOUT=3,
            ),
            "instance": str(tmp_path),
            "response": server.issue("alice"),
        }
        set_the_scene(server)

        ended = subprocess.run(
            [sys.executable, "-m", "gevent.monkey", "--module", "tests.top.greenlets"],
            input=json.dumps(script),
            capture_output=True,
            text=True,
            timeout=100,
            cwd=ROOT,
        )

        assert ended.returncode == 0, ended.stderr
        # Then an API, and then the provider, drips without end, and is cut off.
        assert json.loads(ended.stdout) == [
            {"200 alice": 200},
            {"200 late": 20},
            {"503 None": 20},
        ]
        assert "Traceback" not in ended.stderr
        assert len(server.token_requests) == 2  # the one of the 200, and the one that was cut off
        assert server.replays == 0


def set_the_scene(server: RotatingTokenServer) -> None:
    """Hold the first answer with tokens until a greenlet that does not wait for it gets through."""

    def asked(request: Request) -> Behaviour:
        server.wait_held()
        return Reply()

    def answer(request: Request) -> Behaviour:
        server.release()
        return Reply()

    server.always(Reply(body={"keys": []}), "/jwks")
    server.always(Drip(0.2), "/api/drip")
    server.always(respond(asked), "/asked")
    server.always(respond(answer), "/answer")
    server.spoil(lambda reply: reply, lambda reply: Drip(0.2, reply=reply))
    server.hold()


def test_a16_asynchronous_views_with_an_expired_token_make_one_refresh() -> None:
    with outside() as app:

        @app.flask.get("/")
        @requires_token
        async def view() -> dict[str, Any]:
            calls = (asyncio.to_thread(app.whose) for _ in range(3))
            found = [current_login.subject, *await asyncio.gather(*calls)]
            token = app.server.lookup(current_user_token.value)
            return {"found": [*found, token and token.subject]}

        grant_id = app.sign_in("alice")
        app.clock.advance(1000)
        app.server.latency = 0.2

        def browse(number: int) -> Any:
            return app.client(grant_id).get("/").json["found"]  # type: ignore[index]

        assert together(PEOPLE, browse) == [["alice"] * 5] * PEOPLE
        assert app.server.refreshes == 1
        assert app.server.replays == 0


def test_a16_asynchronous_views_of_two_users_at_once_have_a_user_each() -> None:
    with outside() as app:

        @app.flask.get("/<other>")
        @requires_token
        async def view(other: str) -> dict[str, Any]:
            found = [await asyncio.to_thread(app.whose)]
            with app.atm.use_grant(other):
                await asyncio.sleep(0)
                found.append(await asyncio.to_thread(app.whose))
            await asyncio.sleep(0)
            return {"found": [*found, app.whose()]}

        grants = {name: app.sign_in(name) for name in ("alice", "bob")}
        pairs = [("alice", "bob"), ("bob", "alice")] * 16

        def browse(number: int) -> Any:
            own, other = pairs[number]
            return app.client(grants[own]).get(f"/{grants[other]}").json["found"]  # type: ignore[index]

        assert together(len(pairs), browse) == [[own, other, own] for own, other in pairs]
