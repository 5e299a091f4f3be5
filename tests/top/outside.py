"""An application whose users are signed in already, for tests of what runs outside of requests."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from flask_atm.errors import LoginRequired
from flask_atm.extension import ATM
from flask_atm.globals import current_login, current_user_token
from flask_atm.state import STATE_KEY, State
from flask_atm.testing import FakeClock
from tests.grants.support import grant_from
from tests.grants.tools import settings
from tests.servers import Reply, RotatingTokenServer

__all__ = ["Outside", "in_a_thread", "outside", "whoever"]


class Outside:
    """An application, its server, and an API that tells whose token it was given."""

    def __init__(self, server: RotatingTokenServer, clock: FakeClock) -> None:
        self.server = server
        self.clock = clock
        self.flask = Flask(__name__)
        self.flask.config.update(
            settings(server), ATM_APIS={"api": {"base_url": f"{server.url}/api/"}}
        )
        self.atm = ATM(self.flask, clock=clock)
        self.api = self.atm.api("api")

    @property
    def state(self) -> State:
        state = self.flask.extensions[STATE_KEY]
        assert isinstance(state, State)
        return state

    def sign_in(self, subject: str) -> str:
        """Give the grant id of a new sign-in."""
        return grant_from(self.state, self.server.issue(subject), sub=subject)

    def client(self, grant_id: str) -> FlaskClient:
        """A browser that has this sign-in."""
        client = self.flask.test_client()
        handle = f"{self.state.store_id()}.{grant_id.partition('.')[2]}"
        with client.session_transaction() as session:
            session["_atm"] = {"oidc": handle}
        return client

    def whose(self) -> str:
        """Give the subject of the token that an API gets now."""
        return str(self.api.get("me").json()["sub"])


@contextmanager
def outside() -> Iterator[Outside]:
    """Start a server and make an application; both have one clock."""
    clock = FakeClock()
    with RotatingTokenServer(clock=clock) as server:
        server.always(Reply(body={"keys": []}), "/jwks")
        yield Outside(server, clock)


def whoever(app: Outside) -> list[str]:
    """Ask in all ways whose token there is; give the subject, or why there is none."""
    asked: list[Callable[[], object]] = [
        app.whose,
        lambda: app.atm.user_session(f"{app.server.url}/api/").get("me").json()["sub"],
        lambda: app.server.lookup(app.atm.get_user_token().value).subject,  # type: ignore[union-attr]
        lambda: app.server.lookup(current_user_token.value).subject,  # type: ignore[union-attr]
        lambda: current_login.subject,
        lambda: bool(current_login) and current_login.subject,
    ]
    found = []
    for ask in asked:
        try:
            found.append(str(ask()))
        except LoginRequired as error:
            found.append(str(error.reason))
    return sorted(set(found))


def in_a_thread(job: Callable[[], Any]) -> Any:
    """Do it in a new thread; give what it returns or raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(job())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]
