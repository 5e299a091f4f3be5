"""A17: nobody gets the token of another user, nor one that is over, whatever is kept in ``g``."""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from flask import Flask, g, session

from flask_atm.decorators import requires_login, requires_token
from flask_atm.extension import ATM
from flask_atm.globals import current_grant, current_login, current_user_token
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.vault import record_key
from flask_atm.meaning import meant
from flask_atm.state import STATE_KEY, State
from flask_atm.testing import FakeClock
from flask_atm.tokens import TokenParameters
from tests.grants.support import grant_from
from tests.grants.tools import FAST, WatchedStore, metadata, refreshes, settings, together
from tests.servers import Reply, RotatingTokenServer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer(clock=clock) as running:
        running.always(Reply(body=metadata(running)), "/.well-known/openid-configuration")
        yield running


class App:
    """An application with two providers, which are one server."""

    def __init__(self, server: RotatingTokenServer, clock: FakeClock, **arguments: Any) -> None:
        self.server = server
        self.flask = Flask(__name__)
        other = {
            name.removeprefix("ATM_").lower(): value
            for name, value in settings(server).items()
            if name in ("ATM_ISSUER", "ATM_CLIENT_ID", "ATM_CLIENT_SECRET")
        }
        self.flask.config.update(
            settings(server),
            ATM_PROVIDERS={"other": other},
            ATM_APIS={"api": {"base_url": f"{server.url}/api/"}},
        )
        self.store = WatchedStore(MemoryStore(clock=clock))
        self.atm = ATM(self.flask, store=self.store, clock=clock, engine=FAST, **arguments)

    @property
    def state(self) -> State:
        state = self.flask.extensions[STATE_KEY]
        assert isinstance(state, State)
        return state

    def sign_in(self, subject: str, provider: str = "oidc") -> str:
        """Give the grant id of a new sign-in."""
        response = self.server.issue(subject)
        if provider == "oidc":
            return grant_from(self.state, response, sub=subject)
        twin = self.state.provider("oidc").tokens
        grant_id = grant_from(self.state, response, sub=subject)
        snapshot = twin.open(grant_id)
        assert snapshot is not None
        tokens = self.state.provider(provider).tokens
        other_id = f"{provider}.{grant_id.partition('.')[2]}"
        key = record_key(other_id)
        sealed = tokens.vault.seal(key, snapshot.grant, version=1)
        assert self.store.create(key, sealed, ends_at=snapshot.grant.ends_at)
        return other_id

    def handle(self, grant_id: str) -> str:
        return f"{self.state.store_id()}.{grant_id.partition('.')[2]}"


@pytest.fixture
def app(server: RotatingTokenServer, clock: FakeClock) -> App:
    return App(server, clock)


def test_what_was_read_for_a_request_is_not_used_when_it_is_old(
    app: App, clock: FakeClock, server: RotatingTokenServer
) -> None:
    """A slow view looks at current_login first, and asks for a token a while later."""
    grant_id = app.sign_in("alice")
    with app.flask.test_request_context():
        session["_atm"] = {"oidc": app.handle(grant_id)}
        clock.advance(230)
        assert current_login.subject == "alice"
        clock.advance(100)
        token = current_user_token._get_current_object()  # type: ignore[attr-defined]
        assert server.lookup(token.value) is not None
        assert token.expires_in <= 300.1
        assert len(refreshes(server)) == 1


def _get(found: Any, _: int) -> Any:
    return found.get(TokenParameters())


def test_what_was_read_is_used_once_by_threads_of_one_view(app: App) -> None:
    grant_id = app.sign_in("alice")
    for _ in range(30):
        with app.flask.test_request_context():
            session["_atm"] = {"oidc": app.handle(grant_id)}
            found: Any = current_grant()

            class Slow(list[Any]):
                """Lets another thread in between the look and the pop."""

                def __bool__(self) -> bool:
                    threading.Event().wait(0.005)
                    return len(self) > 0

                def __len__(self) -> int:
                    length = super().__len__()
                    threading.Event().wait(0.005)
                    return length

            object.__setattr__(found, "_unused", Slow(found._unused))
            results = together(4, partial(_get, found))
            assert [one for one in results if isinstance(one, Exception)] == []


def test_a_token_is_not_served_for_long_after_a_sign_out_elsewhere(
    app: App, clock: FakeClock
) -> None:
    """A stream or a socket keeps its context for hours."""
    grant_id = app.sign_in("alice")
    with app.flask.test_request_context():
        session["_atm"] = {"oidc": app.handle(grant_id)}
        assert current_user_token.value
        app.state.provider().tokens.end(grant_id)
        clock.advance(6)
        with pytest.raises(Exception, match="ended"):
            assert current_user_token.value


def test_a_named_grant_is_meant_whatever_the_view_is_guarded_for(app: App) -> None:
    alice, bob = app.sign_in("alice"), app.sign_in("bob", provider="other")

    @requires_login(provider="oidc")
    def view() -> list[str]:
        found = [
            app.atm.get_user_token(grant_id=bob).claims["sub"],
            app.atm.user_session(
                "https://api.example", grant_id=bob
            )._authorizer.source.login.subject,  # type: ignore[attr-defined]
        ]
        with app.atm.use_grant(bob):
            found += [current_login.subject, current_user_token.claims["sub"]]
        return [*found, current_login.subject]

    with app.flask.test_request_context():
        session["_atm"] = {"oidc": app.handle(alice)}
        assert view() == ["bob", "bob", "bob", "bob", "alice"]


def test_a_guard_inside_a_job_means_the_grant_of_the_job(app: App) -> None:
    bob = app.sign_in("bob", provider="other")

    @requires_token(provider="other")
    def step() -> str:
        return str(current_user_token.claims["sub"])

    with app.flask.app_context(), app.atm.use_grant(bob):
        assert step() == "bob"


def test_a_job_for_many_users_keeps_few_of_them_in_memory(app: App) -> None:
    with app.flask.app_context():
        for number in range(300):
            grant_id = app.sign_in(str(number))
            assert app.atm.get_user_token(grant_id=grant_id).claims["sub"] == str(number)
        assert len(g._atm[1]) <= 100


def test_a_loader_that_names_another_grant_within_a_request_is_believed(
    server: RotatingTokenServer, clock: FakeClock
) -> None:
    """The application signs its user in as another one, in the middle of a view."""
    present: list[str] = []
    app = App(server, clock, grant_loader=lambda provider: present[-1])
    api = app.atm.api("api")
    for name in ("alice", "bob"):
        present.append(app.sign_in(name))
    alice, bob = present
    with app.flask.test_request_context():
        for grant_id, name in ((alice, "alice"), (bob, "bob"), (alice, "alice")):
            present.append(grant_id)
            for _ in range(2):
                assert current_login.subject == name
                assert current_user_token.claims["sub"] == name
                assert api.get("me").json()["sub"] == name


def test_no_grant_id_shows_in_what_is_kept(app: App) -> None:
    grant_id = app.sign_in("alice")
    with app.flask.test_request_context():
        session["_atm"] = {"oidc": app.handle(grant_id)}
        assert current_user_token.value
        shown = repr(current_grant()) + repr(g._atm_token)
        assert grant_id.partition(".")[2] not in shown
    with app.flask.app_context(), app.atm.use_grant(grant_id):
        assert grant_id.partition(".")[2] not in repr(meant())
