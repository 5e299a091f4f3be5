"""``AuthorizedSession`` and ``TokenAuth`` against a real server: the lines of E, and J1."""

import io
import logging
import multiprocessing
import pickle
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from flask_atm.authorized_session import AuthorizedSession
from flask_atm.calls.connections import Connections
from flask_atm.calls.origins import destination
from flask_atm.calls.token_auth import Authorizer, TokenAuth
from flask_atm.errors import (
    InsufficientScope,
    LoginRequired,
    OriginNotAllowed,
    ProtocolError,
    ServerUnavailable,
    StepUpRequired,
)
from flask_atm.protocols import RequestContext
from flask_atm.tokens import AccessToken, TokenParameters

from .oauth.test_back_channel import Authority
from .servers import (
    Drip,
    Exchange,
    FaultyServer,
    Hang,
    Reply,
    Request,
    redirect,
    refusing_url,
    respond,
)

CANARY = "c4n4ry-t0k3n"
REFUSED = Reply(401, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


class Source:
    """Tokens in memory: token-1, token-2 …; a rejected one is replaced, once for all."""

    def __init__(self, *, renewable: bool = True, error: Exception | None = None) -> None:
        self.asked: list[TokenParameters] = []
        self.rejected: list[str] = []
        self.renewals = 0
        self.renewable = renewable
        self.error = error
        self._lock = threading.Lock()

    @property
    def value(self) -> str:
        return f"{CANARY}-{self.renewals + 1}"

    def get(
        self,
        parameters: TokenParameters,
        *,
        rejected: str | None = None,
        deadline: float | None = None,
    ) -> AccessToken:
        with self._lock:
            self.asked.append(parameters)
            if rejected is not None:
                self.rejected.append(rejected)
            if self.error is not None:
                raise self.error
            if self.renewable and (rejected == self.value or parameters.force_renewal):
                self.renewals += 1
            return AccessToken(value=self.value, expires_at=time.time() + 300)


@pytest.fixture
def api() -> Iterator[FaultyServer]:
    with FaultyServer(default=Reply(body={"hello": "me"})) as server:
        yield server


@pytest.fixture
def stranger() -> Iterator[FaultyServer]:
    with FaultyServer(default=Reply(body="gotcha")) as server:
        yield server


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def session(api: FaultyServer, source: Source) -> Iterator[AuthorizedSession]:
    with AuthorizedSession(source, f"{api.url}/v1") as made:
        yield made


def tokens(server: FaultyServer) -> list[str | None]:
    return [
        (request.header("Authorization") or "").removeprefix(f"Bearer {CANARY}-")
        for request in server.requests
    ]


def only(*values: str) -> Any:
    """Answer 401 unless the token is one of these."""

    def answer(request: Request) -> Reply:
        accepted = [f"Bearer {CANARY}-{value}" for value in values]
        return Reply(200, request.body) if request.header("Authorization") in accepted else REFUSED

    return respond(answer)


# -- the URL


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("latest", "/v1/latest"),
        ("/latest", "/v1/latest"),
        (b"latest", "/v1/latest"),
        ("", "/v1/"),
        ("/", "/v1/"),
        ("?page=2", "/v1/?page=2"),
        ("items:search", "/v1/items:search"),
        ("a/b?next=../x#y", "/v1/a/b?next=../x"),
        ("a//b", "/v1/a//b"),
        ("a..b/...", "/v1/a..b/..."),
        ("100%25", "/v1/100%25"),
        ("search?q=a\\b", "/v1/search?q=a%5Cb"),
        (" latest", "/v1/latest"),
        ("javascript:alert(1)", "/v1/javascript:alert(1)"),
    ],
)
def test_a_relative_url_is_appended(
    api: FaultyServer, session: AuthorizedSession, url: str | bytes, target: str
) -> None:
    assert session.get(url).status_code == 200
    assert api.requests[0].target == target
    assert tokens(api) == ["1"]


@pytest.mark.parametrize(
    "url",
    [
        "..",
        "../admin",
        "/../admin",
        "a/../../admin",
        "%2e%2e/admin",
        "%2E./admin",
        "%252e%252e/admin",
        "..%2fadmin",
        "..%5cadmin",
        "..;/admin",
        "a\\..\\admin",
        "\\evil.example/",
        "/\\evil.example/",
        "//evil.example/",
        "///evil.example/",
        "http:evil.example",
        "http:/evil.example",
        "http:\\\\evil.example",
        "https:///evil.example",
    ],
)
def test_e3_a_relative_url_cannot_leave_the_path(
    api: FaultyServer, source: Source, session: AuthorizedSession, url: str
) -> None:
    with pytest.raises(OriginNotAllowed, match="nothing was sent"):
        session.get(url)
    assert not api.requests
    assert not source.asked


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/",
        "http://api.example.com/v1/",
        "https://api.example.com:8443/v1/",
        "https://api.example.com./v1/",
        "https://api@evil.example/",
        "https://api.example.com@evil.example/",
        "https://user:pw@api.example.com/v1/",
        "https://api.example.com\\@evil.example/",
        "https://evil.example\\@api.example.com/",
        "https://evil.example#@api.example.com/",
        "https://api.example.com.evil.example/",
        "https://api.example.com%2eevil.example/",
        "https://\u0430pi.example.com/",
        "https://b\u00fccher.example/",
        "https://*.example.com/",
        "HTTPS://EVIL.EXAMPLE/",
        " https://evil.example/",
        "https://api.example.com:99999/",
        "https://[::1]/",
        "ftp://api.example.com/",
        "file:///etc/passwd",
    ],
)
def test_e3_no_token_leaves_for_a_foreign_origin(source: Source, url: str) -> None:
    session = AuthorizedSession(source, "https://api.example.com/v1/")
    with pytest.raises(OriginNotAllowed) as caught:
        session.get(url)
    assert not source.asked
    assert "pw" not in str(caught.value)


def test_e3_the_same_origin_may_be_written_otherwise(
    api: FaultyServer, session: AuthorizedSession
) -> None:
    assert session.get(f"{api.url.upper()}/other").status_code == 200
    assert api.requests[0].target == "/other"


def test_a_prepared_request_is_checked_too(source: Source, session: AuthorizedSession) -> None:
    request = requests.Request("GET", "https://evil.example/").prepare()
    with pytest.raises(OriginNotAllowed):
        session.send(request)
    assert not source.asked


def test_a_request_object_can_be_prepared_twice(session: AuthorizedSession) -> None:
    request = requests.Request("GET", "x")
    first, second = session.prepare_request(request), session.prepare_request(request)
    assert first.url == second.url == f"{session.base_url}x"
    assert session.send(first).status_code == 200


def test_an_allowed_origin_gets_the_token(
    api: FaultyServer, stranger: FaultyServer, source: Source
) -> None:
    session = AuthorizedSession(source, api.url, allowed_origins=[stranger.url])
    assert session.get(f"{stranger.url}/x").text == "gotcha"
    assert tokens(stranger) == ["1"]


def test_plain_http_goes_to_loopback_and_named_origins_only(source: Source) -> None:
    with pytest.raises(OriginNotAllowed, match="allowed_origins"):
        AuthorizedSession(source, "http://api.internal:8080/")
    AuthorizedSession(
        source, "http://api.internal:8080/", allowed_origins="http://api.internal:8080"
    )
    for host in ("localhost", "127.0.0.1:5000", "[::1]:80"):
        AuthorizedSession(source, f"http://{host}")


@pytest.mark.parametrize(
    ("base_url", "origins"),
    [
        ("api.example.com", ()),
        ("/v1", ()),
        ("ftp://x/", ()),
        ("https://", ()),
        ("https://u:p@x/", ()),
        ("https://x/?a", ()),
        ("https://x/#a", ()),
        ("https://x/", ["https://y/path"]),
        ("https://x/", ["y"]),
    ],
)
def test_a_base_url_or_origin_that_is_none_is_refused(
    source: Source, base_url: str, origins: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        AuthorizedSession(source, base_url, allowed_origins=origins)


# -- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_e1_e13_a_redirect_to_another_origin_raises(
    api: FaultyServer, stranger: FaultyServer, session: AuthorizedSession, status: int, method: str
) -> None:
    api.add(redirect(status, f"{stranger.url}/steal"))
    with pytest.raises(OriginNotAllowed):
        session.request(method, "x", data=b"body" if method == "POST" else None)
    assert stranger.connections_opened == 0
    assert len(api.requests) == 1


def test_e1_also_through_an_origin_that_is_allowed(
    api: FaultyServer, stranger: FaultyServer, source: Source
) -> None:
    session = AuthorizedSession(source, api.url, allowed_origins=[stranger.url])
    api.add(redirect(302, f"{stranger.url}/x"))
    stranger.add(redirect(302, "https://evil.example/"))
    with pytest.raises(OriginNotAllowed):
        session.get("x")
    assert tokens(api) == tokens(stranger) == ["1"]


def test_e1_a_redirect_from_http_to_https_of_one_host_raises(
    api: FaultyServer, session: AuthorizedSession
) -> None:
    api.add(redirect(302, "https://127.0.0.1/"))
    with pytest.raises(OriginNotAllowed):
        session.get("x")


def test_e1_a_redirect_that_is_not_followed_is_returned(
    api: FaultyServer, stranger: FaultyServer, session: AuthorizedSession
) -> None:
    api.always(redirect(302, f"{stranger.url}/x"))
    assert session.get("x", allow_redirects=False).status_code == 302
    answer = session.head("x")
    assert answer.status_code == 302
    assert answer.next is not None
    assert "Authorization" not in answer.next.headers
    with pytest.raises(OriginNotAllowed):
        session.send(answer.next)


def test_e1_cookies_do_not_follow_a_redirect(api: FaultyServer, session: AuthorizedSession) -> None:
    api.add(Reply(303, headers=[("Location", "/v1/done"), ("Set-Cookie", "sid=1; Path=/")]))
    answer = session.post("x", data=b"1")
    assert answer.request.method == "GET"
    assert [one.status_code for one in answer.history] == [303]
    assert api.requests[1].header("Cookie") is None
    assert tokens(api) == ["1", "1"]


def test_too_many_redirects_raise(api: FaultyServer, session: AuthorizedSession) -> None:
    api.always(redirect(302, "/v1/x"))
    session.max_redirects = 3
    with pytest.raises(requests.TooManyRedirects):
        session.get("x")
    assert len(api.requests) == 4


def test_e10_a_redirect_does_not_send_half_a_body(
    api: FaultyServer, session: AuthorizedSession
) -> None:
    api.add(redirect(307, "/v1/y"))
    file = a_file()
    assert session.post("x", data=file).request.url == f"{api.url}/v1/y"
    assert [one.body for one in api.requests] == [b"body", b"body"]
    api.add(redirect(307, "/v1/y"))
    with pytest.raises(requests.exceptions.UnrewindableBodyError):
        session.post("x", data=iter([b"a"]))
    assert len(api.requests) == 3


# -- what a caller must not bring


@pytest.mark.parametrize(
    "options",
    [
        {"auth": ("u", "p")},
        {"auth": lambda request: request},
        {"headers": {"Authorization": "Basic x"}},
        {"headers": {"dpop": "x"}},
        {"headers": {"Cookie": "a=b"}},
        {"headers": {"host": "evil.example"}},
        {"cookies": {"a": "b"}},
        {"verify": False},
    ],
)
def test_credentials_of_the_callers_own_raise(
    api: FaultyServer, session: AuthorizedSession, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"leave it out|leave out|no place|CA bundle"):
        session.get("x", **options)
    assert not api.requests


def test_they_raise_on_the_session_and_a_prepared_request_too(
    api: FaultyServer, source: Source
) -> None:
    session = AuthorizedSession(source, api.url)
    session.headers["Authorization"] = "Bearer mine"
    with pytest.raises(ValueError, match="Authorization"):
        session.get("x")
    session = AuthorizedSession(source, api.url)
    session.auth = ("u", "p")
    with pytest.raises(ValueError, match="auth="):
        session.get("x")
    request = requests.Request("GET", f"{api.url}/x", headers={"DPoP": "x"}).prepare()
    with pytest.raises(ValueError, match="DPoP header"):
        AuthorizedSession(source, api.url).send(request)
    with pytest.raises(ValueError, match="cookies"):
        session.cookies.set("a", "b")
    assert not api.requests


def test_what_was_sent_can_be_sent_again(api: FaultyServer, session: AuthorizedSession) -> None:
    answer = session.get("x")
    assert session.send(answer.request).status_code == 200
    assert tokens(api) == ["1", "1"]


def test_e4_netrc_and_the_environment_do_not_replace_the_token(
    api: FaultyServer, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert requests.get(api.url, timeout=5).request.headers["Authorization"].startswith("Basic")
    AuthorizedSession(source, api.url).get("x")
    assert api.requests[-1].header("Authorization") == f"Bearer {CANARY}-1"


def test_proxies_are_read_once_per_origin_and_no_proxy_holds(
    api: FaultyServer, stranger: FaultyServer, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", stranger.url)
    there = "http://api.example"
    connections = Connections()
    session = AuthorizedSession(source, there, allowed_origins=there, connections=connections)
    assert session.get("x").text == "gotcha"
    assert stranger.requests[0].target == f"{there}/x"
    monkeypatch.setenv("no_proxy", "api.example")
    assert session.get("x").text == "gotcha"
    assert Connections().route(there).proxies == {}
    # Loopback is never reached through a proxy of the environment.
    monkeypatch.delenv("no_proxy")
    session = AuthorizedSession(source, api.url, connections=Connections())
    assert session.get("x").json() == {"hello": "me"}
    own = Connections(proxies={"http": stranger.url})
    assert AuthorizedSession(source, api.url, connections=own).get("x").text == "gotcha"
    answer = AuthorizedSession(source, api.url).get("x", proxies={"http": stranger.url})
    assert answer.text == "gotcha"


def test_the_ca_bundle_is_that_of_the_environment_or_of_the_api(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/env.pem")
    connections = Connections()
    assert connections.route("https://api.example.com").verify == "/env.pem"
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    assert connections.route("https://api.example.com").verify == "/env.pem"
    assert connections.route("https://other.example.com").verify is True
    assert Connections(ca_bundle="/own.pem").route("https://x").verify == "/own.pem"


# -- 401 and 403


def test_e5_a_refused_token_is_renewed_once(
    api: FaultyServer, source: Source, session: AuthorizedSession
) -> None:
    api.always(only("2"))
    closed: list[requests.Response] = []

    class Watching(HTTPAdapter):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            closed.append(super().send(*args, **kwargs))
            return closed[-1]

    class Watched(AuthorizedSession):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mount("http://", Watching())

    answer = Watched(source, api.url).get("x", stream=True)
    assert answer.status_code == 200
    assert tokens(api) == ["1", "2"]
    assert source.rejected == [f"{CANARY}-1"]
    assert closed[0].raw.closed
    assert not closed[1].raw.closed
    answer.close()
    assert session.get("y").status_code == 200
    assert tokens(api) == ["1", "2", "2"]


def test_e5_the_connection_is_used_again(
    api: FaultyServer, source: Source, session: AuthorizedSession
) -> None:
    api.always(only("2"))
    assert session.get("x").status_code == 200
    assert api.connections_opened == 1


def test_e5_after_a_redirect_only_the_refused_request_is_repeated(
    api: FaultyServer, session: AuthorizedSession
) -> None:
    api.always(redirect(303, "/v1/done"), path="/v1/orders")
    api.add(REFUSED, path="/v1/done")
    assert session.post("orders", data=b"1").status_code == 200
    assert [(one.method, one.path) for one in api.requests] == [
        ("POST", "/v1/orders"),
        ("GET", "/v1/done"),
        ("GET", "/v1/done"),
    ]


def test_e6_parallel_refusals_lead_to_one_renewal(api: FaultyServer, source: Source) -> None:
    api.always(only("2"))
    connections = Connections(pool_size=32)
    start = threading.Barrier(32)

    def call(number: int) -> int:
        start.wait()
        session = AuthorizedSession(source, api.url, connections=connections)
        return session.get("x").status_code

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(call, range(32))) == {200}
    assert source.renewals == 1


def test_e7_a_call_is_sent_twice_at_most(api: FaultyServer, source: Source) -> None:
    refused = Reply(401, "no", {"WWW-Authenticate": "Bearer"})
    api.always(refused)
    answer = AuthorizedSession(source, api.url).get("x")
    assert (answer.status_code, answer.text) == (401, "no")
    assert tokens(api) == ["1", "2"]
    assert len(source.rejected) == 1


def test_e7_the_same_token_again_means_the_401_is_returned(api: FaultyServer) -> None:
    api.always(Reply(401, "no"))
    answer = AuthorizedSession(Source(renewable=False), api.url).get("x", stream=True)
    assert (answer.status_code, answer.text) == (401, "no")
    assert len(api.requests) == 1


def test_renewal_can_be_switched_off(api: FaultyServer, source: Source) -> None:
    api.always(REFUSED)
    assert AuthorizedSession(source, api.url, renew_on_401=False).get("x").status_code == 401
    assert not source.rejected


def test_e8_a_nonce_challenge_without_a_proof_is_returned(
    api: FaultyServer, source: Source, session: AuthorizedSession
) -> None:
    headers = [("WWW-Authenticate", 'dpop error="use_dpop_nonce"'), ("DPoP-Nonce", "n")]
    api.always(Reply(401, headers=headers))
    assert session.get("x").status_code == 401
    assert not source.rejected


def test_e8_two_challenge_headers_are_read_one_by_one(
    api: FaultyServer, source: Source, session: AuthorizedSession
) -> None:
    headers = [
        ("WWW-Authenticate", 'Basic realm="a, Bearer error=insufficient_scope'),
        ("www-authenticate", 'bearer error="invalid_token"'),
    ]
    api.add(Reply(401, headers=headers))
    assert session.get("x").status_code == 200
    assert len(source.rejected) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_e9_insufficient_scope_raises(
    api: FaultyServer, source: Source, session: AuthorizedSession, status: int
) -> None:
    challenge = 'Bearer error="insufficient_scope", scope="invoices:write"'
    api.always(Reply(status, "why", {"WWW-Authenticate": challenge}))
    with pytest.raises(InsufficientScope) as caught:
        session.get("x")
    assert caught.value.scope == "invoices:write"
    response: Any = caught.value.response
    assert response.text == "why"
    assert not source.rejected


def test_e9_insufficient_user_authentication_raises(
    api: FaultyServer, source: Source, session: AuthorizedSession
) -> None:
    challenge = (
        'Bearer error="insufficient_user_authentication", acr_values="gold silver", max_age="60"'
    )
    api.always(Reply(401, headers={"WWW-Authenticate": challenge}))
    with pytest.raises(StepUpRequired) as caught:
        session.get("x")
    assert (caught.value.acr_values, caught.value.max_age) == (("gold", "silver"), 60)
    assert caught.value.response is not None
    assert not source.rejected


@pytest.mark.parametrize("status", [401, 403])
def test_e9_other_refusals_are_returned(
    api: FaultyServer, source: Source, session: AuthorizedSession, status: int
) -> None:
    api.always(Reply(status, headers={"WWW-Authenticate": 'Basic realm="x"'}))
    assert session.get("x").status_code == status
    assert not source.rejected


def test_hooks_see_what_the_caller_sees(api: FaultyServer, session: AuthorizedSession) -> None:
    seen: list[int] = []

    def hook(response: requests.Response, **_: Any) -> None:
        seen.append(response.status_code)
        response.raise_for_status()

    session.hooks["response"].append(hook)
    api.add(REFUSED, redirect(302, "/v1/y"))
    assert session.get("x").status_code == 200
    assert seen == [302, 200]


# -- bodies


class Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError("pipe")


def a_file() -> io.BytesIO:
    file = io.BytesIO(b"head|body")
    file.seek(5)
    return file


@pytest.mark.parametrize(
    "options",
    [
        {"data": b"body"},
        {"data": "body"},
        {"data": {"a": "b"}},
        {"json": {"a": ["b"]}},
        {"files": {"f": ("f.txt", b"body")}},
        {"data": a_file()},
    ],
    ids=["bytes", "text", "form", "json", "multipart", "file"],
)
def test_e10_a_body_is_sent_again_as_it_was(
    api: FaultyServer, session: AuthorizedSession, options: dict[str, Any]
) -> None:
    api.always(only("2"))
    answer = session.post("x", **options)
    assert answer.status_code == 200
    first, second = api.requests
    assert first.body == second.body != b""
    assert first.header("Content-Length") == second.header("Content-Length")
    assert first.header("Content-Type") == second.header("Content-Type")
    if isinstance(options.get("data"), io.BytesIO):
        assert first.body == b"body"


@pytest.mark.parametrize("body", [iter([b"a", b"b"]), Unseekable(b"ab")], ids=["generator", "pipe"])
def test_e10_what_cannot_be_rewound_is_sent_once(
    api: FaultyServer, source: Source, session: AuthorizedSession, body: Any
) -> None:
    api.always(only("2"))
    assert session.post("x", data=body).status_code == 401
    assert len(api.requests) == 1
    assert session.get("x").status_code == 200
    assert tokens(api) == ["1", "2"]


def test_e10_then_the_401_counts_and_not_the_failed_renewal(api: FaultyServer) -> None:
    source = Source()
    api.always(REFUSED)

    def body() -> Iterator[bytes]:
        yield b"a"
        source.error = LoginRequired()

    assert AuthorizedSession(source, api.url).post("x", data=body()).status_code == 401
    assert len(source.rejected) == 1


# -- cookies


def test_e11_cookies_of_the_api_are_not_kept(api: FaultyServer) -> None:
    api.always(Reply(headers=[("Set-Cookie", "user=a; Path=/")]))
    connections = Connections()
    for _ in range(2):
        session = AuthorizedSession(Source(), api.url, connections=connections)
        assert session.get("x").cookies["user"] == "a"
        session.get("x")
        assert len(session.cookies) == 0
    assert [one.header("Cookie") for one in api.requests] == [None] * 4


# -- the token


@pytest.mark.parametrize("error", [LoginRequired(), ServerUnavailable(retry_after=3)])
def test_e12_without_a_token_nothing_is_sent(api: FaultyServer, error: Exception) -> None:
    with pytest.raises(type(error)):
        AuthorizedSession(Source(error=error), api.url).get("x")
    assert not api.requests


def test_e12_an_error_while_renewing_is_raised(api: FaultyServer, source: Source) -> None:
    def refuse(exchange: Exchange) -> None:
        source.error = LoginRequired(reason="invalid_grant")
        REFUSED(exchange)

    api.add(refuse)
    with pytest.raises(LoginRequired):
        AuthorizedSession(source, api.url).get("x")
    assert len(api.requests) == 1


@pytest.mark.parametrize("value", ["", "a\r\nX: y", "tök", "a\x00"])
def test_e12_a_value_that_no_header_can_carry_is_no_token(api: FaultyServer, value: str) -> None:
    class Odd(Source):
        @property
        def value(self) -> str:
            return value

    with pytest.raises(ProtocolError, match="nothing was sent") as caught:
        AuthorizedSession(Odd(), api.url).get("x")
    assert not api.requests
    assert not value or value not in str(caught.value)


def test_with_token_changes_one_call(
    api: FaultyServer, source: Source, session: AuthorizedSession
) -> None:
    session.with_token(scope="admin", force_renewal=True, proof_claims={"a": 1}).get("x")
    session.get("x")
    assert source.asked[0].scope == ("admin",)
    assert source.asked[0].force_renewal
    assert source.asked[0].proof_claims == {"a": 1}
    assert source.asked[1] == TokenParameters()
    assert tokens(api) == ["2", "2"]
    assert api.connections_opened == 1


def test_a_forced_renewal_is_one_also_after_a_redirect(
    api: FaultyServer, source: Source, session: AuthorizedSession
) -> None:
    api.add(redirect(302, "/v1/y"))
    session.with_token(force_renewal=True).get("x")
    assert tokens(api) == ["2", "2"]
    assert source.renewals == 1


def test_a_customizer_sees_the_request_and_changes_the_parameters(
    api: FaultyServer, source: Source
) -> None:
    seen: list[RequestContext] = []

    def customize(context: RequestContext, parameters: TokenParameters) -> TokenParameters:
        seen.append(context)
        return parameters.replace(audience="tenant")

    session = AuthorizedSession(
        source,
        api.url,
        parameters=TokenParameters.of(scope="a"),
        customizer=customize,
        api="invoices",
    )
    session.post("x", headers={"X-Tenant": "t"})
    (context,) = seen
    assert (context.method, context.url, context.api) == ("POST", f"{api.url}/x", "invoices")
    assert context.incoming is False
    assert context.headers["X-Tenant"] == "t"
    assert source.asked == [TokenParameters.of(scope="a", audience="tenant")]


def test_bad_arguments_raise_at_once(api: FaultyServer, source: Source) -> None:
    with pytest.raises(TypeError, match="customizer"):
        AuthorizedSession(source, api.url, customizer="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout"):
        AuthorizedSession(source, api.url, timeout=0)
    odd: Any = lambda context, parameters: None  # noqa: E731
    with pytest.raises(TypeError, match="TokenParameters"):
        AuthorizedSession(source, api.url, customizer=odd).get("x")
    with pytest.raises(ValueError, match="scope"):
        AuthorizedSession(source, api.url).with_token(scope='"')
    assert not api.requests


# -- time


@pytest.mark.timed
@pytest.mark.parametrize(
    "behaviour",
    [
        Hang(),
        Drip(0.05, "headers"),
        Drip(0.05, "body", Reply(body="x" * 200)),
        Drip(
            0.05, "body", Reply(body=b"1\r\nx\r\n" * 90, headers={"Transfer-Encoding": "chunked"})
        ),
    ],
    ids=["silence", "headers", "body", "chunks"],
)
def test_e14_a_slow_api_is_left_in_time(api: FaultyServer, source: Source, behaviour: Any) -> None:
    api.always(behaviour)
    session = AuthorizedSession(source, api.url, timeout=0.5)
    begun = time.monotonic()
    with pytest.raises(requests.Timeout):
        session.get("x")
    assert 0.4 < time.monotonic() - begun < 0.9


def test_e14_a_cut_body_is_no_short_success(api: FaultyServer, source: Source) -> None:
    def drip(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")  # ends where the connection does
        for _ in range(100):
            exchange.pause(0.05)
            exchange.send(b"x")

    api.always(drip)
    with pytest.raises(requests.Timeout):
        AuthorizedSession(source, api.url, timeout=0.4).get("x")


def test_e14_with_stream_the_time_ends_with_the_headers(api: FaultyServer, source: Source) -> None:
    api.always(Drip(0.02, "body", Reply(body="x" * 40)))
    with AuthorizedSession(source, api.url, timeout=0.4).get("x", stream=True) as answer:
        assert answer.content == b"x" * 40


@pytest.mark.timed
def test_e14_the_second_sending_has_what_is_left(api: FaultyServer, source: Source) -> None:
    api.add(Reply(401, delay=0.3))
    api.always(Hang())
    begun = time.monotonic()
    with pytest.raises(requests.Timeout):
        AuthorizedSession(source, api.url, timeout=0.6).get("x")
    assert 0.5 < time.monotonic() - begun < 1


def test_e14_getting_the_token_has_its_own_budget(api: FaultyServer) -> None:
    asked = threading.Event()

    class Slow(Source):
        def get(self, *args: Any, **kwargs: Any) -> AccessToken:
            asked.wait(0.5)  # nobody sets it
            return super().get(*args, **kwargs)

    assert AuthorizedSession(Slow(), api.url, timeout=0.3).get("x").status_code == 200


@pytest.mark.timed
def test_e14_the_time_of_one_call_can_be_its_own(api: FaultyServer, source: Source) -> None:
    api.always(Hang())
    session = AuthorizedSession(source, api.url, timeout=30)
    for timeout in (0.3, (5, 0.3), (None, 0.3)):
        begun = time.monotonic()
        with pytest.raises(requests.Timeout):
            session.get("x", timeout=timeout)
        assert time.monotonic() - begun < 1


@pytest.mark.timed
def test_e14_a_retry_of_the_application_ends_in_time(api: FaultyServer, source: Source) -> None:
    class Patient(AuthorizedSession):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mount("http://", HTTPAdapter(max_retries=Retry(total=100, backoff_factor=0)))

    def close(exchange: Exchange) -> None:
        exchange.pause(0.02)
        exchange.close()

    api.always(close)
    begun = time.monotonic()
    with pytest.raises(requests.Timeout):
        Patient(source, api.url, timeout=0.4).get("x")
    assert time.monotonic() - begun < 1
    api.always(Hang())
    with pytest.raises(requests.Timeout):
        Patient(source, api.url, timeout=0.3).get("x")


def test_e14_a_connection_that_went_on_is_not_cut(api: FaultyServer, source: Source) -> None:
    """The deadline of a call that is over must not end the next one on the same connection."""
    connections = Connections(pool_size=1)
    AuthorizedSession(source, api.url, timeout=0.2, connections=connections).get("x")
    api.add(Reply(body="late", delay=0.5))
    session = AuthorizedSession(source, api.url, timeout=5, connections=connections)
    assert session.get("x").text == "late"
    assert api.connections_opened == 1


def test_the_watching_thread_ends_by_itself(api: FaultyServer, source: Source) -> None:
    before = set(threading.enumerate())
    session = AuthorizedSession(source, api.url, timeout=0.2)
    session.get("x")
    watching = [
        one for one in set(threading.enumerate()) - before if one.name == "flask-atm-watchdog"
    ]
    assert len(watching) == 1
    watching[0].join(10)
    assert not watching[0].is_alive()
    assert session.get("x").status_code == 200


# -- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.mark.timed
def test_e14_tls_is_verified_and_left_in_time(authority: Authority, source: Source) -> None:
    with FaultyServer(default=only("2"), tls=authority.server()) as api:
        with pytest.raises(requests.exceptions.SSLError):
            AuthorizedSession(source, api.url).get("x")
        assert not api.requests
        connections = Connections(ca_bundle=str(authority.bundle))
        session = AuthorizedSession(source, api.url, timeout=0.5, connections=connections)
        assert session.get("x").status_code == 200
        assert {one.connection for one in api.requests} == {api.connections_opened}
        for where in ("headers", "body"):
            api.add(Drip(0.05, where, Reply(body="x" * 200)))
            begun = time.monotonic()
            with pytest.raises(requests.Timeout):
                session.get("x")
            assert 0.4 < time.monotonic() - begun < 1


# -- connections


def test_sessions_are_made_per_call_and_connections_per_application(
    api: FaultyServer, source: Source
) -> None:
    connections = Connections()
    for _ in range(20):
        with AuthorizedSession(source, api.url, connections=connections) as session:
            session.get("x")
    assert api.connections_opened == 1
    assert api.open_connections == 1
    connections.close()
    api.wait_closed()


def test_a_session_of_its_own_closes_its_connections(api: FaultyServer, source: Source) -> None:
    with AuthorizedSession(source, api.url) as session:
        session.get("x")
    api.wait_closed()


def test_bo7_an_adapter_of_the_first_instance_serves_all(api: FaultyServer, source: Source) -> None:
    class Invoices(AuthorizedSession):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mount("http://", HTTPAdapter(max_retries=Retry(2, status_forcelist=[503])))

        def latest(self) -> Any:
            return self.get("latest").json()

    connections = Connections()
    api.add(Reply(503), Reply(503))
    assert Invoices(source, api.url, connections=connections).latest() == {"hello": "me"}
    assert Invoices(source, api.url, connections=connections).latest() == {"hello": "me"}
    assert api.connections_opened == 1
    assert len(api.requests) == 4
    first, second = (Invoices(source, api.url, connections=connections) for _ in range(2))
    assert first.get_adapter(api.url) is second.get_adapter(api.url)
    plain = AuthorizedSession(source, api.url, connections=connections)
    assert plain.get_adapter(api.url) is not first.get_adapter(api.url)


def test_shared_connections_refuse_changes_later(api: FaultyServer, source: Source) -> None:
    session = AuthorizedSession(source, api.url)
    with pytest.raises(RuntimeError, match="__init__ of a subclass"):
        session.mount("http://", HTTPAdapter())
    with pytest.raises(TypeError):
        session.adapters["http://"] = HTTPAdapter()


def _in_child(session: AuthorizedSession, results: Any) -> None:
    results.put([session.get("child").status_code, session.get("child").status_code])


def test_a15_connections_are_remade_after_a_fork(api: FaultyServer, source: Source) -> None:
    context = multiprocessing.get_context("fork")
    session = AuthorizedSession(source, api.url, connections=Connections())
    session.get("parent")
    results = context.Queue()
    child = context.Process(target=_in_child, args=(session, results))
    child.start()
    assert results.get(timeout=20) == [200, 200]
    child.join(20)
    session.get("parent")
    used = {(one.path, one.connection) for one in api.requests}
    assert used == {("/parent", 1), ("/child", 2)}


def test_every_attribute_of_a_requests_session_is_there(api: FaultyServer, source: Source) -> None:
    session = AuthorizedSession(source, api.url)
    assert [name for name in vars(requests.Session()) if not hasattr(session, name)] == []
    assert session.headers == requests.Session().headers


# -- J1


def test_j1_the_token_shows_nowhere(
    api: FaultyServer, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with refusing_url() as refusing:
        _use_and_look(api, source, refusing, caplog)


def _use_and_look(
    api: FaultyServer, source: Source, refusing: str, caplog: pytest.LogCaptureFixture
) -> None:
    session = AuthorizedSession(source, f"{api.url}/v1", allowed_origins=[refusing])
    api.add(REFUSED, redirect(302, "/v1/y"))
    answer = session.get("x")
    assert answer.request.headers["Authorization"] == f"Bearer {CANARY}-2"
    shown = [repr(answer.request.headers), repr(answer.request.headers.copy()), repr(vars(session))]
    assert "Bearer ***" in shown[0]
    api.always(Hang())
    for url in ("x", f"{refusing}/x"):
        with pytest.raises(requests.RequestException) as caught:
            session.get(url, timeout=0.2)
        trace = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        shown += trace.format()
    assert "GET /v1/y" in caplog.text
    assert CANARY not in "".join(shown) + caplog.text
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(session)


# -- atm.auth


@pytest.fixture
def auth(api: FaultyServer, source: Source) -> TokenAuth:
    return TokenAuth(Authorizer(source=source), destination(api.url))


def test_auth_puts_the_token_on_a_foreign_session(api: FaultyServer, auth: TokenAuth) -> None:
    with requests.Session() as foreign:
        foreign.auth = auth
        assert foreign.get(f"{api.url}/x").status_code == 200
    assert tokens(api) == ["1"]


def test_e3_auth_raises_for_another_origin(
    stranger: FaultyServer, source: Source, auth: TokenAuth
) -> None:
    with pytest.raises(OriginNotAllowed):
        requests.get(stranger.url, auth=auth, timeout=5)
    assert not stranger.requests
    assert not source.asked


@pytest.mark.parametrize("body", [b"body", a_file()], ids=["bytes", "file"])
def test_e5_e10_auth_renews_once_and_rewinds(api: FaultyServer, auth: TokenAuth, body: Any) -> None:
    api.always(only("2"))
    answer = requests.post(f"{api.url}/x", data=body, auth=auth, timeout=5)
    assert answer.status_code == 200
    assert answer.text == "body"
    assert [one.status_code for one in answer.history] == [401]
    assert tokens(api) == ["1", "2"]


def test_e7_auth_sends_twice_at_most(api: FaultyServer, source: Source, auth: TokenAuth) -> None:
    api.always(REFUSED)
    assert requests.get(api.url, auth=auth, timeout=5).status_code == 401
    assert len(api.requests) == 2
    quiet = TokenAuth(Authorizer(source=source), destination(api.url), renew_on_401=False)
    assert requests.get(api.url, auth=quiet, timeout=5).status_code == 401
    assert len(api.requests) == 3


def test_e9_auth_raises_insufficient_scope(api: FaultyServer, auth: TokenAuth) -> None:
    api.always(Reply(403, headers={"WWW-Authenticate": "Bearer error=insufficient_scope"}))
    with pytest.raises(InsufficientScope):
        requests.get(api.url, auth=auth, timeout=5)


def test_e1_auth_does_not_follow_a_redirect_to_another_origin(
    api: FaultyServer, stranger: FaultyServer, source: Source, auth: TokenAuth
) -> None:
    api.add(redirect(307, f"{stranger.url}/steal"))
    stranger.add(redirect(307, f"{api.url}/back"))
    api.always(REFUSED, path="/back")
    answer = requests.post(f"{api.url}/x", data=b"1", auth=auth, timeout=5)
    assert answer.status_code == 401
    assert stranger.requests[0].header("Authorization") is None
    assert [one.header("Authorization") for one in api.requests][1:] == [None]
    assert not source.rejected


def test_e1_auth_follows_a_redirect_of_its_origin(
    api: FaultyServer, source: Source, auth: TokenAuth
) -> None:
    api.add(redirect(302, "/y"), REFUSED)
    assert requests.get(f"{api.url}/x", auth=auth, timeout=5).status_code == 200
    assert tokens(api) == ["1", "1", "2"]


def test_e1_auth_takes_the_token_off_before_https_of_the_same_host(
    api: FaultyServer, auth: TokenAuth
) -> None:
    api.always(redirect(302, api.url.replace("http:", "https:")))
    with requests.Session() as foreign:
        foreign.auth = auth
        answer = foreign.get(f"{api.url}/x", allow_redirects=False)
    assert answer.next is not None
    assert "Authorization" not in answer.next.headers
