"""``ATM``: one object for several applications, its sessions, its tokens, its answers."""

import logging
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from flask_atm.authorized_session import AuthorizedSession
from flask_atm.decorators import requires_token
from flask_atm.errors import (
    ConfigurationError,
    InsufficientScope,
    LoginRequired,
    OriginNotAllowed,
    ServerUnavailable,
    StoreError,
)
from flask_atm.extension import ATM
from flask_atm.globals import current_login
from flask_atm.grants.stores import MemoryStore
from flask_atm.protocols import RequestContext
from flask_atm.state import STATE_KEY
from flask_atm.testing import FakeClock
from flask_atm.tokens import TokenParameters
from tests.browser import Browser
from tests.grants.tools import WatchedStore, together
from tests.servers import FaultyServer, OIDCServer, Reply

from .support import PAGE, Site, make_site, provider_settings

A, B = "https://api.example/a", "https://api.example/b"


@pytest.fixture
def api() -> Iterator[FaultyServer]:
    with FaultyServer(default=Reply(body={"hello": "me"})) as server:
        yield server


class Invoices(AuthorizedSession):
    """A typed client."""

    def subject(self) -> str:
        return str(self.get("who").json()["sub"])


def add_views(app: Flask) -> None:
    atm: ATM = app.extensions.get("atm") or ATM()
    it = atm.api("it")
    typed = atm.api("it", Invoices)
    mine = atm.api("mine")

    @app.get("/api/<path:path>")
    def call(path: str) -> Any:
        return it.get(path).json()

    @app.get("/typed")
    def call_typed() -> Any:
        assert isinstance(typed, Invoices)
        return {"sub": typed.subject(), "type": type(typed._get_current_object()).__name__}  # type: ignore[attr-defined]

    @app.get("/same")
    def same() -> Any:
        ours: Any = it
        objects = {id(ours._get_current_object()) for _ in range(5)}
        return {"objects": len(objects)}

    @app.get("/as-a")
    @requires_token(resource=A)
    def as_a() -> Any:
        return it.get("x").json()

    @app.get("/mine")
    def call_mine() -> Any:
        return mine.get("x").json()

    @app.get("/auth/<name>")
    def auth(name: str) -> Any:
        base_url = app.config["ATM_APIS"][name]["base_url"]
        with requests.Session() as session:
            session.trust_env = False
            session.auth = app.extensions["atm"].auth(name)
            return session.get(base_url, timeout=10).json()

    @app.get("/user-session")
    def user_session() -> Any:
        base_url = app.config["ATM_APIS"]["it"]["base_url"]
        return app.extensions["atm"].user_session(base_url).get("x").json()


def site_with_apis(oidc: OIDCServer, api_url: str | None = None, **more: Any) -> Site:
    url = api_url or oidc.api_url
    machine = oidc.add_client()
    client = {
        "issuer": oidc.issuer,
        "client_id": machine.client_id,
        "client_secret": machine.client_secret,
    }
    apis = {
        "it": {"base_url": url},
        "mine": {"base_url": url, "token": "client", "client": "machine", "resource": A},
        "ours": {"base_url": url, "token": "client", "resource": B, "headers": {"X-Own": "yes"}},
    }
    return make_site(oidc, before=add_views, ATM_CLIENTS={"machine": client}, ATM_APIS=apis, **more)


def signed_in(site: Site, account: str = "alice") -> Any:
    client = site.client()
    site.sign_in(client, account=account)
    return client


def visitor(site: Site) -> Any:
    return site.client()


# -- several applications, one ATM


def two_applications(oidc: OIDCServer, atm: ATM, **config: Any) -> list[tuple[Flask, str]]:
    """A factory that is called twice, with one ATM and one session at module level."""
    it = atm.api("it")

    def create_app(**config: Any) -> Flask:
        app = Flask("twin")
        app.config.update(config)
        atm.init_app(app)

        @app.get("/call")
        def call() -> Any:
            answer = it.get("x").json()
            return {"who": current_login.subject, "sub": answer["sub"], "by": answer["client_id"]}

        return app

    made = []
    for secret_key in ("one " * 10, "two " * 10):
        settings, client = provider_settings(oidc, "http://localhost/oidc/callback")
        app = create_app(
            TESTING=True,
            SECRET_KEY=secret_key,
            ATM_STORE="memory",
            ATM_APIS={"it": {"base_url": oidc.api_url}},
            **{f"ATM_{name.upper()}": value for name, value in settings.items()},
            **config,
        )
        made.append((app, client.client_id))
    return made


def test_one_atm_serves_two_applications_side_by_side_without_mixing(oidc: OIDCServer) -> None:
    atm = ATM()
    apps = two_applications(oidc, atm)
    assert vars(atm).keys().isdisjoint({"app", "_app"})
    assert apps[0][0].extensions[STATE_KEY] is not apps[1][0].extensions[STATE_KEY]
    cookies = {}
    for app, client_id in apps:
        for account in ("alice", "bob"):
            browser = Browser(app, oidc)
            at_provider = browser.client.get("/oidc/login", headers=PAGE).location
            browser.follow(f"{at_provider}&account={account}")
            cookie = browser.client.get_cookie("session")
            assert cookie is not None
            cookies[client_id, account] = (app, cookie.value)
    oidc.reset()
    calls = list(cookies) * 25
    random.Random(2).shuffle(calls)

    def call(who: tuple[str, str]) -> bool:
        app, cookie = cookies[who]
        client = app.test_client()
        client.set_cookie("session", cookie)
        client_id, account = who
        answer = client.get("/call").json
        return bool(answer == {"who": account, "sub": account, "by": client_id})

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(call, calls)) == {True}
    # Nobody is signed in at the other one.
    (one, its_cookie), (two, _) = cookies[apps[0][1], "alice"], cookies[apps[1][1], "alice"]
    assert one is not two
    stranger = two.test_client()
    stranger.set_cookie("session", its_cookie)
    assert stranger.get("/call").status_code == 401


def test_two_application_contexts_at_once_keep_their_own_session(oidc: OIDCServer) -> None:
    atm = ATM()
    (one, one_id), (two, two_id) = two_applications(oidc, atm)
    with one.app_context():
        assert atm.get_client_token().client_id == one_id
        with two.app_context():
            assert atm.get_client_token().client_id == two_id
        assert atm.get_client_token().client_id == one_id


def test_a_second_atm_on_one_application_is_refused(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    for call in (lambda: ATM(site.app), lambda: site.atm.init_app(site.app)):
        with pytest.raises(RuntimeError, match="create ATM\\(\\) once"):
            call()
    assert site.app.extensions["atm"] is site.atm


def test_init_app_asks_nobody() -> None:
    with FaultyServer() as server:
        app = Flask("quiet")
        app.config.update(
            SECRET_KEY="k" * 7 + "y" * 40,
            TESTING=True,
            ATM_STORE="memory",
            ATM_ISSUER=server.url,
            ATM_CLIENT_ID="app",
            ATM_CLIENTS={"c": {"issuer": server.url, "client_id": "c", "client_secret": "s"}},
            ATM_APIS={"it": {"base_url": server.url}},
        )
        atm = ATM(app)
        with app.test_request_context():
            assert atm.api("it") is not None
            assert not bool(current_login)
        assert server.connections_opened == 0


# -- where the file lies


def file_app(folder: Path, **config: Any) -> Flask:
    app = Flask("filed", instance_path=str(folder))
    app.config.update(
        SECRET_KEY="f3cf1ae79ee3bbd77d3a5a0be2eb1cf26a1f3b7a",
        ATM_ISSUER="https://login.example",
        ATM_CLIENT_ID="app",
    )
    app.config.update(config)
    return app


@pytest.mark.parametrize("store", [None, "sqlite:///{}/below/grants.sqlite3"])
def test_an_instance_folder_that_cannot_be_written_names_the_cure(
    tmp_path: Path, store: str | None
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    config = {} if store is None else {"ATM_STORE": store.format(in_the_way)}
    with pytest.raises(ConfigurationError) as raised:
        ATM(file_app(in_the_way / "instance", **config))
    (problem,) = raised.value.problems
    assert str(in_the_way) in problem
    for cure in ("ATM_STORE", "instance_path", "writable"):
        assert cure in problem


def test_the_default_store_is_a_file_in_the_instance_folder(tmp_path: Path) -> None:
    app = file_app(tmp_path / "new" / "instance")
    atm = ATM(app)
    with app.app_context():
        assert atm.health()["store"] == "ok"
    assert (tmp_path / "new" / "instance" / "flask_atm.sqlite3").stat().st_mode & 0o777 == 0o600


# -- sessions of a user


def test_a_named_session_is_one_object_per_context_and_may_be_typed(oidc: OIDCServer) -> None:
    site = site_with_apis(oidc)
    client = signed_in(site)
    assert client.get("/api/x").json["sub"] == "alice"
    assert client.get("/typed").json == {"sub": "alice", "type": "Invoices"}
    assert client.get("/same").json["objects"] == 1
    with pytest.raises(LoginRequired, match="application context") as raised:
        bool(site.atm.api("it").headers)
    assert raised.value.reason == "outside_request"


def test_sessions_in_views_share_the_connections_of_the_application(
    oidc: OIDCServer, api: FaultyServer
) -> None:
    site = site_with_apis(oidc, api.url)
    clients = [signed_in(site, account) for account in ("alice", "bob", "carol")]
    for _ in range(5):
        for client in clients:
            assert client.get("/api/x").json == {"hello": "me"}
            assert client.get("/user-session").json == {"hello": "me"}
    assert api.connections_opened == 1
    assert len({request.header("Authorization") for request in api.requests}) == 3


def test_an_application_context_shared_by_two_users_has_a_session_for_each(
    oidc: OIDCServer,
) -> None:
    site = site_with_apis(oidc)
    alice, bob = signed_in(site), signed_in(site, "bob")
    with site.app.app_context():
        for _ in range(3):
            assert alice.get("/api/x").json["sub"] == "alice"
            assert bob.get("/api/x").json["sub"] == "bob"


def test_a_session_asks_for_what_the_decorator_names(oidc: OIDCServer) -> None:
    site = site_with_apis(oidc, ATM_RESOURCE=[A, B])
    client = signed_in(site)
    assert client.get("/as-a").json["aud"] == A
    assert client.get("/api/x").json["aud"] != A


def test_a_session_by_grant_id_needs_no_request(oidc: OIDCServer) -> None:
    site = site_with_apis(oidc, ATM_RESOURCE=[A, B])
    with signed_in(site) as client:
        client.get("/who")
        grant_id = current_login.grant_id
    with site.app.app_context():
        session = site.atm.user_session(oidc.api_url, grant_id=grant_id, resource=B)
        assert session.get("x").json()["aud"] == B
        assert session.with_token(resource=A).get("x").json()["aud"] == A
        with site.atm.use_grant(grant_id):
            assert site.atm.api("it").get("x").json()["sub"] == "alice"
        token = site.atm.get_user_token(grant_id=grant_id, resource=A)
        assert (token.grant_id, token.provider, token.refreshable) == (grant_id, "oidc", True)
        with pytest.raises(InsufficientScope):
            site.atm.get_user_token(grant_id=grant_id, resource="https://api.example/c")
        with pytest.raises(LoginRequired):
            site.atm.user_session(oidc.api_url, grant_id="oidc.nobody")
        with pytest.raises(OriginNotAllowed):
            session.get("https://evil.example/")


def test_without_a_sign_in_no_session_is_made(oidc: OIDCServer) -> None:
    site = site_with_apis(oidc)
    client = site.client()
    for path in ("/api/x", "/typed", "/user-session", "/auth/it", "/as-a"):
        assert client.get(path).status_code == 401
    assert oidc.requests_to("api") == []


def test_a_foreign_session_gets_its_token_by_auth(oidc: OIDCServer, fake_clock: FakeClock) -> None:
    site = site_with_apis(oidc, atm={"clock": fake_clock})
    client = signed_in(site)
    assert client.get("/auth/it").json["sub"] == "alice"
    machine = site.app.config["ATM_CLIENTS"]["machine"]["client_id"]
    assert visitor(site).get("/auth/mine").json["sub"] == machine
    own = site.registration.client_id
    assert visitor(site).get("/auth/ours").json["sub"] == own
    fake_clock.advance(5)
    oidc.reset()
    oidc.fault("api", status=401, headers={"WWW-Authenticate": "Bearer"})
    assert visitor(site).get("/auth/ours").json["sub"] == own
    assert [one["sent_status"] for one in oidc.requests_to("api")] == [401, 200]
    assert len(oidc.token_requests()) == 1


# -- tokens of the application


def test_client_tokens_by_name_by_provider_and_by_default(oidc: OIDCServer) -> None:
    site = site_with_apis(
        oidc,
        ATM_CLIENT_TOKEN_SCOPE="read",
        ATM_CLIENT_TOKEN_RESOURCE=A,
    )
    machine = site.app.config["ATM_CLIENTS"]["machine"]["client_id"]
    own = site.registration.client_id
    with site.app.app_context():
        named = site.atm.get_client_token("machine", resource=B, scope="write")
        assert (named.client_id, named.scope) == (machine, "write")
        default = site.atm.get_client_token()
        assert (default.client_id, default.scope) == (own, "read")
        assert site.atm.get_client_token(provider="oidc").value == default.value
        with pytest.raises(ValueError, match="not both"):
            site.atm.get_client_token("machine", provider="oidc")
        for session, who in (
            (site.atm.client_session(oidc.api_url, client="machine", resource=A), machine),
            (site.atm.client_session(oidc.api_url), own),
            (site.atm.client_session(oidc.api_url, provider="oidc"), own),
            (site.atm.api("mine"), machine),
            (site.atm.api("ours"), own),
        ):
            answer = session.get("x").json()
            assert (answer["sub"], answer["client_id"]) == (who, who)
        assert site.atm.api("ours").get("x").json()["headers"]["x-own"] == "yes"
        sent = len(oidc.token_requests())
        site.atm.get_client_token()
        assert len(oidc.token_requests()) == sent


def test_client_tokens_need_no_request_and_no_user(oidc: OIDCServer) -> None:
    site = site_with_apis(oidc)
    machine = site.app.config["ATM_CLIENTS"]["machine"]["client_id"]
    # A user's own sign-in changes nothing about who the application is.
    assert signed_in(site).get("/mine").json["sub"] == machine
    assert visitor(site).get("/mine").json["sub"] == machine


def test_forgotten_client_tokens_are_not_used_again(oidc: OIDCServer) -> None:
    site = site_with_apis(oidc)
    with site.app.app_context():
        first = [site.atm.get_client_token("machine").value, site.atm.get_client_token().value]
        site.atm.forget_client_tokens("machine")
        second = [site.atm.get_client_token("machine").value, site.atm.get_client_token().value]
        assert second[0] != first[0]
        assert second[1] == first[1]
        site.atm.forget_client_tokens()
        third = [site.atm.get_client_token("machine").value, site.atm.get_client_token().value]
        assert set(third).isdisjoint(second)


def test_applications_with_clients_only_need_next_to_nothing(oidc: OIDCServer) -> None:
    machine = oidc.add_client()
    app = Flask("worker", instance_path="/nonexistent")
    client = {
        "token_endpoint": f"{oidc.issuer}/token",
        "client_id": machine.client_id,
        "client_secret": machine.client_secret,
    }
    app.config["ATM_CLIENTS"] = {"worker": client}
    atm = ATM(app)
    with app.app_context():
        token = atm.get_client_token("worker")
        assert token.client_id == machine.client_id
        assert atm.client_session(oidc.api_url, client="worker").get("x").status_code == 200
        with pytest.raises(ConfigurationError, match="ATM_ISSUER"):
            atm.get_client_token()
    assert not app.blueprints


# -- callables


def test_a_customizer_sees_the_incoming_request_for_tokens_and_the_outgoing_one_for_sessions(
    oidc: OIDCServer,
) -> None:
    seen: list[RequestContext] = []

    def customize(context: RequestContext, parameters: TokenParameters) -> TokenParameters:
        seen.append(context)
        return parameters.replace(resource=(A,)) if context.incoming else parameters

    site = site_with_apis(oidc, atm={"customizer": customize})

    @site.app.get("/mine-token")
    def mine_token() -> str:
        token = site.atm.get_client_token("machine")
        return f"{token.client_id}"

    site.client().get("/mine-token?tenant=7", headers={"X-Tenant": "t"})
    with site.app.app_context():
        token = site.atm.get_client_token("machine")
        session = site.atm.client_session(oidc.api_url, client="machine", resource=B)
        assert session.get("x").json()["aud"] == B
    incoming, outside, outgoing = seen
    assert incoming.incoming
    assert (incoming.method, incoming.url) == ("GET", "http://localhost/mine-token?tenant=7")
    assert incoming.headers["X-Tenant"] == "t"
    assert (outside.incoming, outside.method, outside.url) == (True, None, None)
    assert (outgoing.incoming, outgoing.url) == (False, f"{oidc.api_url}/x")
    with site.app.app_context():
        assert (
            AuthorizedSession(_Fixed(token.authorization), oidc.api_url, renew_on_401=False)
            .get("x")
            .json()["aud"]
            == A
        )


class _Fixed:
    """A token that is known."""

    def __init__(self, authorization: str) -> None:
        self._value = authorization.partition(" ")[2]

    def get(self, parameters: Any, *, rejected: Any = None, deadline: Any = None) -> Any:
        from flask_atm.tokens import AccessToken

        return AccessToken(value=self._value, expires_at=9e9)


def test_loaders_know_providers_and_clients_that_the_configuration_does_not(
    oidc: OIDCServer,
) -> None:
    tenant, registered = provider_settings(oidc, "http://localhost/oidc/callback/tenant")
    machine = oidc.add_client()
    asked: list[str] = []
    known: dict[str, dict[str, Any]] = {}

    def load(name: str) -> dict[str, Any] | None:
        asked.append(name)
        return known.get(name)

    site = make_site(
        oidc,
        atm={
            "provider_loader": load,
            "client_loader": load,
            "default_provider": lambda: "tenant",
        },
    )
    for _ in range(2):
        with site.app.app_context(), pytest.raises(ConfigurationError, match="known: oidc"):
            site.atm.get_client_token(provider="tenant")
    assert asked == ["tenant", "tenant"]  # a failure is not remembered
    known["tenant"] = tenant
    known["worker"] = {
        "issuer": oidc.issuer,
        "client_id": machine.client_id,
        "client_secret": machine.client_secret,
    }
    with site.app.app_context():
        for _ in range(2):
            assert site.atm.get_client_token().client_id == registered.client_id
            assert site.atm.get_client_token("worker").client_id == machine.client_id
    assert asked == ["tenant", "tenant", "tenant", "worker"]
    client = site.client()
    assert site.sign_in(client, "/oidc/login?next=/me").location == "/me"
    assert client.get("/who").text == "alice"


@pytest.mark.parametrize(
    "name",
    ["customizer", "on_login", "provider_loader", "client_loader", "grant_loader", "http_session"],
)
def test_what_cannot_be_called_is_refused_at_once(name: str) -> None:
    odd: dict[str, Any] = {name: "x"}
    with pytest.raises(TypeError, match=name):
        ATM(**odd)


@pytest.mark.parametrize("name", ["cache", "oauth", "client_signer", "dpop_keys", "cache_key"])
def test_what_is_not_built_yet_is_refused_at_once(name: str) -> None:
    odd: dict[str, Any] = {name: object()}
    with pytest.raises(ConfigurationError, match="not available in this version"):
        ATM(**odd)


def test_unknown_names_are_errors_that_name_the_known(oidc: OIDCServer) -> None:
    site = site_with_apis(oidc)
    with site.app.test_request_context():
        for call in (
            lambda: site.atm.get_client_token("nobody"),
            lambda: site.atm.auth("nobody"),
            lambda: bool(site.atm.api("nobody").headers),
            lambda: site.atm.get_user_token(provider="nobody"),
        ):
            with pytest.raises(ConfigurationError, match="known: ") as raised:
                call()
            assert "'nobody'" in str(raised.value)


@pytest.mark.parametrize(
    "arguments", [{"scope": 'a"b'}, {"resource": [1]}, {"extra": {"a": 1}}, {"audience": 5}]
)
def test_bad_parameters_are_errors_before_anything_is_sent(
    oidc: OIDCServer, arguments: dict[str, Any]
) -> None:
    site = site_with_apis(oidc)
    with site.app.app_context():
        for call in (site.atm.get_client_token, site.atm.get_user_token):
            with pytest.raises((ValueError, TypeError)):
                call(**arguments)
    assert oidc.token_requests() == []


# -- health


def test_health_tells_outcomes_without_asking_anybody(
    oidc: OIDCServer, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    store = WatchedStore(MemoryStore(clock=fake_clock))
    site = make_site(oidc, atm={"store": store, "clock": fake_clock})
    with site.app.app_context():
        assert site.atm.health() == {"store": "ok", "endpoints": {}}
        site.atm.get_client_token()
        (endpoint,) = site.atm.health()["endpoints"].values()
        assert endpoint["client_id"] == site.registration.client_id
        assert endpoint["paused_for"] == 0
        good = endpoint["last"]
        oidc.fault("token", status=401, body={"error": "invalid_client"}, times=None)
        fake_clock.advance(1000)
        for _ in range(2):
            with pytest.raises(Exception, match=r"\w"):
                site.atm.get_client_token()
        oidc.reset()
        (endpoint,) = site.atm.health()["endpoints"].values()
        assert endpoint["last"] != good
        assert 25 < endpoint["paused_for"] <= 30
        store.down = True
        assert site.atm.health()["store"] == "the store is down"
        assert oidc.stats()["requests"] == []


# -- E6, E7: through the whole of it


def test_e6_128_calls_refused_with_one_token_make_one_renewal(
    oidc: OIDCServer, fake_clock: FakeClock
) -> None:
    site = site_with_apis(oidc, atm={"clock": fake_clock})
    with signed_in(site) as client:
        client.get("/who")
        grant_id = current_login.grant_id
    with site.app.app_context():
        revoked = site.atm.get_user_token(grant_id=grant_id)
    fake_clock.advance(5)
    oidc.reject_at_api(revoked.value)
    oidc.reset()

    def call(_: int) -> tuple[int, str | None]:
        with site.app.app_context():
            answer = site.atm.user_session(oidc.api_url, grant_id=grant_id).get("x")
            return answer.status_code, answer.json().get("sub")

    assert together(128, call) == [(200, "alice")] * 128
    assert len(oidc.token_requests()) == 1
    refused = [one for one in oidc.requests_to("api") if one["sent_status"] == 401]
    assert 1 < len(refused) <= 128
    assert oidc.stats()["replays"] == 0


def test_e7_an_api_that_refuses_everything_costs_two_sendings_and_few_renewals(
    oidc: OIDCServer, fake_clock: FakeClock
) -> None:
    site = site_with_apis(oidc, atm={"clock": fake_clock})
    client = signed_in(site)
    fake_clock.advance(5)
    oidc.settings(api_reject=True)
    oidc.reset()

    with client:
        client.get("/who")
        grant_id = current_login.grant_id
    calls = 1000
    with site.app.app_context():
        session = site.atm.user_session(oidc.api_url, grant_id=grant_id)
        for number in range(calls):
            before = len(oidc.requests_to("api")) if number < 3 else 0
            answer = session.get("x")
            assert answer.status_code == 401
            assert answer.json() == {"error": "invalid_token"}
            if number < 3:
                assert len(oidc.requests_to("api")) - before <= 2
            fake_clock.advance(0.05)  # 50 seconds in all
    renewals = oidc.token_requests()
    # Refused again after a renewal: 10 s of peace, then 20, then 40.
    assert 1 <= len(renewals) <= 4
    assert len(oidc.requests_to("api")) <= calls + len(renewals)
    assert oidc.stats()["replays"] == 0


# -- errors of others


def test_a_provider_that_is_away_is_503_for_client_tokens(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    oidc.stop_listening()
    with site.app.app_context(), pytest.raises(ServerUnavailable) as raised:
        site.atm.get_client_token()
    assert raised.value.retry_after >= 1
    oidc.listen()


def test_a_store_that_fails_does_not_stop_client_tokens(oidc: OIDCServer) -> None:
    store = WatchedStore(MemoryStore())
    store.down = True
    site = make_site(oidc, atm={"store": store})
    with site.app.app_context():
        assert site.atm.get_client_token().value
        with pytest.raises(StoreError):
            site.atm.get_user_token(grant_id="oidc.x")
