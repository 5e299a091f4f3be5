"""@requires_login and @requires_token on every kind of view."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Blueprint, Flask, Response, send_file, stream_with_context
from flask.typing import ResponseReturnValue
from flask.views import MethodView

from flask_atm.decorators import requires_login, requires_token
from flask_atm.globals import current_login, current_user_token
from flask_atm.meaning import meant
from tests.servers import OIDCServer

from .support import PAGE, Site, make_site, provider_settings


def whose() -> str:
    return f"{current_login.provider} {current_login.claims['sub']}"


def add_views(app: Flask) -> None:
    @app.get("/bare")
    @requires_login
    def bare() -> str:
        """Says who."""
        return whose()

    @app.get("/called")
    @requires_login()
    def called() -> str:
        return whose()

    @app.get("/other")
    @requires_login(provider="other")
    def other() -> str:
        return whose()

    @app.get("/async")
    @requires_login(provider="other")
    async def asynchronous() -> str:
        return whose()

    @app.get("/async-token")
    @requires_token(provider="other")
    async def asynchronous_token() -> str:
        return current_user_token.provider

    @app.get("/resource")
    @requires_token(resource="https://api.example/a", scope="read")
    def resource() -> dict[str, Any]:
        return {"resource": meant().parameters.resource, "scope": current_user_token.scope}

    class Account(MethodView):
        decorators = [requires_login(provider="other")]  # noqa: RUF012

        def get(self) -> ResponseReturnValue:
            return whose()

    class Plain(MethodView):
        decorators = [requires_token]  # noqa: RUF012

        async def get(self) -> ResponseReturnValue:
            return whose()

    class Later(MethodView):
        decorators = [requires_token(provider="other")]  # noqa: RUF012

        async def get(self) -> ResponseReturnValue:
            return current_user_token.provider + " " + whose()

    def lines() -> Iterator[str]:
        try:
            yield whose()
            yield f", {current_user_token.provider}"
        finally:
            app.extensions["closed"] = True

    @app.get("/stream/<kind>")
    @requires_token(provider="other")
    def stream(kind: str) -> ResponseReturnValue:
        parts = stream_with_context(lines())
        kinds: dict[str, Any] = {
            "iterator": parts,
            "tuple": (parts, {"X-Own": "yes"}),
            "response": Response(parts),
        }
        return cast(ResponseReturnValue, kinds[kind])

    @app.get("/file")
    @requires_login(provider="other")
    def file() -> ResponseReturnValue:
        return send_file(__file__, mimetype="text/plain")

    app.add_url_rule("/later", view_func=Later.as_view("later"))
    app.add_url_rule("/account", view_func=Account.as_view("account"))
    app.add_url_rule("/plain", view_func=Plain.as_view("plain"))
    assert bare.__doc__ == "Says who."
    guards: dict[str, Any] = {
        "guarded": requires_login,
        "strict": requires_token(provider="other"),
        "decorated": requires_login(lambda: None),
    }
    for name, guard in guards.items():
        blueprint = Blueprint(name, __name__, url_prefix=f"/{name}")
        blueprint.before_request(guard)
        blueprint.add_url_rule("/", "index", lambda: f"inside {whose()}")
        blueprint.add_url_rule("/bare", "bare", requires_token(lambda: f"bare {whose()}"))
        app.register_blueprint(blueprint)


PATHS = ["/bare", "/called", "/other", "/async", "/async-token", "/resource", "/account", "/plain"]
PATHS += ["/later", "/stream/iterator", "/stream/tuple", "/stream/response", "/file"]
GUARDED = ["/guarded/", "/strict/", "/decorated/"]


@pytest.fixture
def site(oidc: OIDCServer) -> Site:
    other, _ = provider_settings(oidc, "http://localhost/oidc/callback/other")
    return make_site(
        oidc,
        before=add_views,
        ATM_PROVIDERS={"other": other},
        ATM_SCOPE="openid read",
        ATM_RESOURCE="https://api.example/a",
    )


def signed_in_twice(site: Site) -> Any:
    client = site.client()
    site.sign_in(client)
    site.sign_in(client, "/oidc/login/other", account="bob")
    return client


@pytest.mark.parametrize("path", PATHS + GUARDED)
def test_nobody_gets_in_without_a_sign_in(site: Site, path: str) -> None:
    client = site.client()
    assert client.get(path).status_code == 401
    response = client.get(path, headers=PAGE)
    assert response.status_code == 302
    assert response.location.startswith(site.provider.issuer)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/bare", "oidc alice"),
        ("/called", "oidc alice"),
        ("/other", "other bob"),
        ("/async", "other bob"),
        ("/async-token", "other"),
        ("/account", "other bob"),
        ("/plain", "oidc alice"),
        ("/later", "other other bob"),
        ("/stream/iterator", "other bob, other"),
        ("/stream/tuple", "other bob, other"),
        ("/stream/response", "other bob, other"),
        ("/guarded/", "inside oidc alice"),
        ("/strict/", "inside other bob"),
        ("/strict/bare", "bare other bob"),
        ("/decorated/", "inside oidc alice"),
    ],
)
def test_inside_the_proxies_mean_the_decorators_provider(site: Site, path: str, text: str) -> None:
    assert signed_in_twice(site).get(path).text == text


def test_a_stream_can_be_left_early_and_a_file_stays_one(site: Site) -> None:
    client = signed_in_twice(site)
    response = client.get("/stream/response", buffered=False)
    response.close()
    assert site.app.extensions["closed"]
    with client.get("/file") as file:
        assert file.data == Path(__file__).read_bytes()


def test_what_a_guard_says_holds_for_its_own_request_only(site: Site) -> None:
    client = signed_in_twice(site)
    with site.app.app_context():
        # Flask keeps one g for both.
        assert client.get("/strict/").text == "inside other bob"
        assert client.get("/who").text == "alice"


def test_a_sign_in_at_another_provider_does_not_count(site: Site) -> None:
    client = site.client()
    site.sign_in(client)
    for path in ("/other", "/async", "/account", "/strict/"):
        response = client.get(path)
        assert response.status_code == 401
        problem: Any = response.json
        assert problem["login_url"] == "/oidc/login/other"


def test_requires_token_asks_for_its_parameters(site: Site) -> None:
    client = site.client()
    site.sign_in(client)
    answer: Any = client.get("/resource").json
    assert answer["resource"] == ["https://api.example/a"]
    assert answer["scope"].split() == ["read"]


def test_requires_login_never_uses_the_network(site: Site) -> None:
    client = signed_in_twice(site)
    site.provider.stop_listening()
    assert client.get("/bare").text == "oidc alice"
    assert client.get("/async").text == "other bob"


def test_nothing_is_left_of_the_meaning(site: Site) -> None:
    client = signed_in_twice(site)
    client.get("/other")
    assert client.get("/who").text == "alice"
    assert meant().provider is None


@pytest.mark.parametrize("bad", [{"scope": 'a"b'}, {"scope": "a\\b"}])
def test_bad_arguments_are_errors_at_once(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="scope"):
        requires_token(**bad)
