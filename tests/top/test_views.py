"""The blueprint's pages, and what errors become in a browser and in its scripts."""

from html.parser import HTMLParser
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, render_template, request
from jinja2 import DictLoader
from werkzeug.exceptions import HTTPException

from flask_atm.errors import (
    ConfigurationError,
    InsufficientScope,
    LoginFailed,
    LoginRequired,
    ProtocolError,
    ServerUnavailable,
    StoreError,
)
from flask_atm.grants.stores import MemoryStore
from tests.servers import OIDCServer

from .support import PAGE, Site, make_site, query_of

MESSAGE = "<script>alert('x')</script> & more"
ERRORS: dict[str, Exception] = {
    "scope": InsufficientScope(MESSAGE, scope="<write>"),
    "failed": LoginFailed(
        MESSAGE, error="<e>", error_description="<d onclick=x>", reference="abcd"
    ),
    "away": ServerUnavailable(MESSAGE, retry_after=7),
    "store": StoreError("redis://:password@host"),
    "protocol": ProtocolError("the server said <b>no</b>"),
}


def add_errors(app: Flask) -> None:
    @app.route("/raise/<name>", methods=["GET", "POST"])
    def fail(name: str) -> str:
        raise ERRORS[name]

    @app.get("/outside")
    def outside() -> str:
        raise LoginRequired("use atm.use_grant(…)", reason="outside_request")


@pytest.fixture
def site(oidc: OIDCServer) -> Site:
    return make_site(oidc, before=add_errors)


# -- a sign-in is required


@pytest.mark.parametrize(
    "headers",
    [
        {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"},
        {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_a_navigation_goes_to_sign_in_and_comes_back(site: Site, headers: dict[str, str]) -> None:
    client = site.client()
    response = client.get("/me?a=%20%C3%A4&b=//x", headers=headers)
    assert response.status_code == 302
    assert response.location.startswith(f"{site.provider.issuer}/auth?")
    assert response.headers["Cache-Control"] == "no-store"
    landed = client.get(site.answer(response.location), headers=PAGE).location
    assert landed == "/me?a=%20%C3%A4&b=//x"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Accept": "*/*"},
        {"Accept": "application/json"},
        {"Accept": "text/html;q=0, */*"},
        {"Accept": "text/html", "Sec-Fetch-Mode": "cors"},
        {"Accept": "text/html", "HX-Request": "true"},
        {"Accept": "text/html", "X-Requested-With": "XMLHttpRequest"},
    ],
)
def test_anything_else_gets_a_problem_document(site: Site, headers: dict[str, str]) -> None:
    response = site.client().get("/me?secret=1", headers=headers)
    assert response.status_code == 401
    assert response.mimetype == "application/problem+json"
    assert response.json == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": "Sign in to continue.",
        "login_url": "/oidc/login",
        "reason": "anonymous",
    }
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("referrer", "landed"),
    [
        ("http://localhost/form?x=1", "/form?x=1"),
        ("https://evil.com/form", "/"),
        ("http://localhost.evil.com/", "/"),
        ("http://localhost@evil.com/", "/"),
        (None, "/"),
    ],
)
def test_a_post_comes_back_to_the_page_with_the_form(
    site: Site, referrer: str | None, landed: str
) -> None:
    client = site.client()
    headers = {**PAGE, "Referer": referrer} if referrer else PAGE
    response = client.post("/me", headers=headers)
    assert response.status_code == 303
    assert client.get(site.answer(response.location), headers=PAGE).location == landed


def test_a_grant_missing_outside_a_request_is_a_mistake_in_the_program(site: Site) -> None:
    with pytest.raises(LoginRequired, match="use_grant"):
        site.client().get("/outside", headers=PAGE)
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    assert site.client().get("/outside", headers=PAGE).status_code == 500


def test_the_default_answer_serves_handlers_of_ones_own(oidc: OIDCServer) -> None:
    def own(app: Flask) -> None:
        @app.errorhandler(LoginRequired)
        def handle(error: LoginRequired) -> Response:
            response = app.extensions["atm"].login_required_response(error)
            assert isinstance(response, Response)
            response.headers["X-Own"] = "yes"
            return response

    response = make_site(oidc, before=own).client().get("/me", headers=PAGE)
    assert response.status_code == 302
    assert response.headers["X-Own"] == "yes"


# -- error pages


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.parametrize(
    ("name", "status"),
    [("scope", 403), ("failed", 400), ("away", 503), ("store", 503), ("protocol", 502)],
)
def test_errors_are_pages_to_browsers_and_problems_to_scripts(
    site: Site, name: str, status: int
) -> None:
    client = site.client()
    page = client.get(f"/raise/{name}", headers=PAGE)
    problem = client.post(f"/raise/{name}", headers={"Accept": "application/json"})
    assert page.status_code == problem.status_code == status
    assert page.mimetype == "text/html"
    assert problem.mimetype == "application/problem+json"
    assert problem.json["status"] == status  # type: ignore[index]
    assert ("Retry-After" in page.headers) == (status == 503)
    for text in (page.text, problem.text):
        assert "password" not in text
        assert "the server said" not in text


@pytest.mark.parametrize("name", list(ERRORS))
def test_j10_pages_hold_no_markup_of_others(site: Site, name: str) -> None:
    page = Page(site.client().get(f"/raise/{name}", headers=PAGE).text)
    assert not {"script", "b", "d", "e", "img", "link", "iframe"} & set(page.tags)
    assert not [
        key for key, _ in page.attributes if key.startswith("on") or key in {"src", "style"}
    ]
    assert ("lang", "en") in page.attributes


def test_a_failed_sign_in_shows_its_reference_and_a_way_on(site: Site) -> None:
    text = site.client().get("/raise/failed", headers=PAGE).text
    assert "abcd" in text
    assert 'href="/oidc/login"' in text


def test_the_application_may_have_its_own_pages(oidc: OIDCServer) -> None:
    def own(app: Flask) -> None:
        add_errors(app)
        pages = {"atm/error.html": "own: {{ error }} {{ reference }}", "atm/logout.html": "bye"}
        app.jinja_loader = DictLoader(pages)

    client = make_site(oidc, before=own).client()
    assert client.get("/raise/failed", headers=PAGE).text == "own: &lt;e&gt; abcd"
    assert client.get("/oidc/logout").text == "bye"


def test_pages_are_there_without_the_routes(oidc: OIDCServer) -> None:
    client = make_site(oidc, before=add_errors, ATM_ROUTES=False).client()
    page = client.get("/raise/failed", headers=PAGE)
    assert (page.status_code, "abcd" in page.text) == (400, True)
    assert "login_url" not in client.get("/me").json  # type: ignore[operator]


def test_pages_are_there_beside_a_blueprint_of_that_name(oidc: OIDCServer) -> None:
    def own(app: Flask) -> None:
        blueprint = Blueprint("atm", __name__, url_prefix="/oidc")
        blueprint.add_url_rule("/login", "login", lambda: app.extensions["atm"].login())
        blueprint.add_url_rule("/callback", "callback", lambda: app.extensions["atm"].callback())
        app.register_blueprint(blueprint)

    with pytest.raises(ConfigurationError, match="ATM_ROUTES"):
        make_site(oidc, before=own)
    site = make_site(oidc, before=own, ATM_ROUTES=False)
    client = site.client()
    assert client.get("/oidc/callback?state=x", headers=PAGE).status_code == 400
    site.sign_in(client, "/oidc/login")
    assert client.get("/who").text == "alice"


class Silent(MemoryStore):
    """A store that can be made not to answer."""

    is_down = False

    def read(self, key: str) -> Any:
        if self.is_down:
            raise StoreError("down")
        return super().read(key)


def test_a_page_that_asks_who_is_signed_in_when_nobody_can_tell(oidc: OIDCServer) -> None:
    def own(app: Flask) -> None:
        page = "{% if current_login %}{{ current_login.subject }}{% endif %} own"
        app.jinja_loader = DictLoader({"atm/error.html": page})
        add_errors(app)

    store = Silent()
    client = make_site(oidc, before=own, atm={"store": store}).client()
    with client.session_transaction() as session:
        session["_atm"] = {"oidc": "store.grant"}
    assert client.get("/raise/failed", headers=PAGE).text == " own"
    store.is_down = True
    response = client.get("/me", headers=PAGE)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "<h1>Not available</h1>" in response.text


def test_macros_know_who_is_signed_in(oidc: OIDCServer) -> None:
    def own(app: Flask) -> None:
        macro = "{% macro who() %}{{ current_login.subject if current_login else 'nobody' }}"
        macro += "{{ ' has a token' if current_user_token }}{% endmacro %}"
        page = "{% from 'macro' import who %}{{ who() }}"
        app.jinja_loader = DictLoader({"macro": macro, "page": page})
        app.add_url_rule("/page", "page", lambda: render_template("page"))

    site = make_site(oidc, before=own)
    client = site.client()
    assert client.get("/page").text == "nobody"
    site.sign_in(client)
    assert client.get("/page").text == "alice has a token"


# -- handlers that were there before


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", [HTTPException, Exception])
def test_a_catch_all_of_the_application_leaves_sign_in_to_us(
    oidc: OIDCServer, when: str, what: type[Exception]
) -> None:
    def own(app: Flask) -> None:
        app.register_error_handler(what, lambda error: ("caught", 500))

    site = make_site(oidc, before=own if when == "before" else add_errors)
    if when == "before":
        add_errors(site.app)
    else:
        own(site.app)
    client = site.client()
    assert client.get("/me", headers=PAGE).status_code == 302
    assert client.get("/me").mimetype == "application/problem+json"
    assert client.get("/raise/store").status_code == 503
    assert client.get("/nowhere").text == "caught"


@pytest.mark.parametrize("what", [LoginRequired, 401])
def test_an_earlier_handler_stays(oidc: OIDCServer, what: Any) -> None:
    def own(app: Flask) -> None:
        app.register_error_handler(what, lambda error: ("mine", 401))

    response = make_site(oidc, before=own).client().get("/me", headers=PAGE)
    assert (response.status_code, response.text) == (401, "mine")


def test_a_later_handler_wins(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    site.app.register_error_handler(LoginRequired, lambda error: ("mine", 401))
    assert site.client().get("/me", headers=PAGE).text == "mine"


def test_a_catch_all_of_a_blueprint_gives_the_right_status(oidc: OIDCServer) -> None:
    def own(app: Flask) -> None:
        api = Blueprint("api", __name__, url_prefix="/api")

        @api.errorhandler(HTTPException)
        def handle(error: HTTPException) -> tuple[dict[str, Any], int]:
            return {"code": error.code}, error.code or 500

        @api.get("/me")
        def me() -> str:
            raise LoginRequired

        app.register_blueprint(api)

    response = make_site(oidc, before=own).client().get("/api/me", headers=PAGE)
    assert (response.status_code, response.json) == (401, {"code": 401})


# -- the blueprint


def test_csrf_protection_of_the_application_leaves_our_routes_out(oidc: OIDCServer) -> None:
    """As Flask-WTF has it: a list of blueprints, looked at before each request."""

    class Protect:
        def __init__(self) -> None:
            self.exempted: set[Any] = set()

        def exempt(self, view: Any) -> None:
            self.exempted.add(view)

    site = make_site(oidc)
    protect = site.app.extensions["csrf"] = Protect()  # comes after the ATM

    @site.app.before_request
    def check() -> tuple[str, int] | None:
        blueprint = site.app.blueprints.get(request.blueprint or "")
        if request.method == "POST" and blueprint not in protect.exempted:
            return "csrf", 400
        return None

    client = site.client()
    assert client.post("/oidc/logout", headers={"Origin": "http://localhost"}).status_code == 303
    assert client.post("/oidc/backchannel-logout").get_json()["error"] == "invalid_request"
    assert client.post("/me").text == "csrf"


def test_the_prefix_can_be_changed(oidc: OIDCServer) -> None:
    callback = "http://localhost/auth/callback"
    site = make_site(oidc, callback=callback, ATM_URL_PREFIX="/auth")
    client = site.client()
    assert query_of(site.begin(client, "/auth/login"))["redirect_uri"] == callback
    assert client.get("/oidc/login").status_code == 404


@pytest.mark.parametrize(
    ("after_login", "landed"),
    [("/", "/shop/"), ("/home", "/shop/home"), ("/shop/home", "/shop/home"), ("who", "/shop/who")],
)
def test_mounted_below_a_path_a_sign_in_does_not_lead_out_of_it(
    oidc: OIDCServer, after_login: str, landed: str
) -> None:
    site = make_site(
        oidc, callback="http://localhost/shop/oidc/callback", ATM_AFTER_LOGIN=after_login
    )
    client, base_url = site.client(), "http://localhost/shop"
    begun = client.get("/oidc/login", base_url=base_url, headers=PAGE)
    path = site.answer(begun.location).removeprefix("/shop")
    assert client.get(path, base_url=base_url, headers=PAGE).location == landed


def test_mounted_below_a_path_everything_is_found(oidc: OIDCServer) -> None:
    site = make_site(oidc, callback="http://localhost/shop/oidc/callback")
    client = site.client()
    response = client.get("/me", base_url="http://localhost/shop", headers=PAGE)
    path = site.answer(response.location)
    assert path.startswith("/shop/oidc/callback?")
    landed = client.get(path.removeprefix("/shop"), base_url="http://localhost/shop", headers=PAGE)
    assert landed.location == "/shop/me"
    problem = site.client().get("/me", base_url="http://localhost/shop")
    assert problem.json["login_url"] == "/shop/oidc/login"  # type: ignore[index]
