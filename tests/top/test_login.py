"""Sign-in at a real provider: the requirement lines G, and what the interface promises of login."""

import itertools
import logging
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from flask import Flask, Response, make_response
from flask import session as flask_session
from flask.sessions import SecureCookieSessionInterface
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from flask_atm import signals
from flask_atm.destinations import local_path
from flask_atm.errors import (
    ConfigurationError,
    LoginFailed,
    LoginRequired,
    StepUpRequired,
    StoreError,
)
from flask_atm.extension import ATM
from flask_atm.globals import current_login
from flask_atm.grants.stores import MemoryStore
from flask_atm.login.recent import Recent
from flask_atm.state import STATE_KEY, State
from flask_atm.testing import FakeClock
from flask_atm.tokens import Login
from tests.servers import FaultyServer, OIDCServer, Reply

from .support import PAGE, Site, cookies, jar, make_site, provider_settings, query_of


@pytest.fixture
def site(oidc: OIDCServer) -> Site:
    return make_site(oidc)


def with_query(path: str, **changes: str | None) -> str:
    """A path with other parameters; None takes one away."""
    parts = urlsplit(path)
    query = {**query_of(path), **changes}
    text = "&".join(f"{k}={quote(v, safe='')}" for k, v in query.items() if v is not None)
    return f"{parts.path}?{text}"


def refused(response: TestResponse) -> bool:
    """Whether this is the page of a sign-in that failed, with nothing signed in."""
    return response.status_code == 400 and "Sign-in failed" in response.text


# -- G: state


@pytest.mark.parametrize("spoil", ["foreign", "missing", "twice", "empty", "other browser"])
def test_g1_without_its_state_a_code_is_never_sent(site: Site, spoil: str) -> None:
    client = site.client()
    path = site.answer(site.begin(client))
    spoilt = {
        "foreign": lambda: client.get(with_query(path, state="A" * 43), headers=PAGE),
        "missing": lambda: client.get(with_query(path, state=None), headers=PAGE),
        "twice": lambda: client.get(f"{path}&state=x", headers=PAGE),
        "empty": lambda: client.get(with_query(path, state=""), headers=PAGE),
        "other browser": lambda: site.client().get(path, headers=PAGE),
    }
    response = spoilt[spoil]()
    assert refused(response)
    assert response.headers["Cache-Control"] == "no-store"
    assert site.code_requests() == 0
    assert client.get("/who").text == "nobody"


def test_g1_a_used_state_is_refused_after_ten_minutes(oidc: OIDCServer) -> None:
    clock = FakeClock()
    site = make_site(oidc, atm={"clock": clock})
    client = site.client()
    path = site.answer(site.begin(client))
    assert client.get(path, headers=PAGE).location == "/me"
    clock.advance(601)
    assert refused(client.get(path, headers=PAGE))
    assert site.code_requests() == 1


@pytest.mark.parametrize("name", ["code", "iss", "error"])
def test_g1_no_parameter_may_come_twice(site: Site, name: str) -> None:
    client = site.client()
    path = site.answer(site.begin(client))
    extra = f"&{name}=x" if name in query_of(path) else f"&{name}=x&{name}=y"
    assert refused(client.get(path + extra, headers=PAGE))
    assert site.code_requests() == 0


def test_g1_a_state_serves_one_provider_only(oidc: OIDCServer) -> None:
    other, _ = provider_settings(oidc, "http://localhost/oidc/callback/other")
    site = make_site(oidc, ATM_PROVIDERS={"other": other})
    client = site.client()
    path = site.answer(site.begin(client))
    moved = path.replace("/oidc/callback", "/oidc/callback/other")
    assert refused(client.get(moved, headers=PAGE))
    assert site.code_requests() == 0


def test_g1_looking_at_the_callback_uses_nothing(site: Site) -> None:
    client = site.client()
    path = site.answer(site.begin(client))
    assert client.head(path).status_code == 405
    assert site.code_requests() == 0
    assert client.get(path, headers=PAGE).location == "/me"


def test_g2_of_twenty_tabs_the_last_five_can_sign_in(site: Site) -> None:
    client = site.client()
    client.get("/basket")
    session = client.get_cookie("session")
    paths = [site.answer(site.begin(client, f"/oidc/login?next=/tab/{i}")) for i in range(20)]
    assert client.get_cookie("session") == session
    pending = [cookie for cookie in jar(client) if "pending" in cookie.key]
    assert len(pending) == 5
    assert {cookie.path for cookie in pending} == {"/oidc/callback"}
    assert all(refused(client.get(path, headers=PAGE)) for path in paths[:15])
    landed = [client.get(path, headers=PAGE).location for path in paths[15:]]
    assert landed == [f"/tab/{i}" for i in range(15, 20)]


def test_g2_pending_sign_ins_with_long_ways_back_leave_room_in_the_header(site: Site) -> None:
    """Servers take 8 kB of cookies; one that refuses them would refuse every callback."""
    client = site.client()
    ways = [f"/tab/{i}?{'x' * 1000}" for i in range(5)]
    paths = [site.answer(site.begin(client, f"/oidc/login?next={quote(way)}")) for way in ways]
    assert sum(len(f"{c.key}={c.value}; ") for c in jar(client)) < 4096
    assert refused(client.get(paths[0], headers=PAGE))
    landed = [client.get(path, headers=PAGE).location for path in paths[-2:]]
    assert landed == ways[-2:]


def test_g2_a_pending_sign_in_is_a_small_sealed_cookie(site: Site) -> None:
    client = site.client()
    response = client.get("/oidc/login?next=/me", headers=PAGE)
    (cookie,) = cookies(response, "atm_pending_")
    assert {"HttpOnly", "Path=/oidc/callback", "SameSite=Lax", "Max-Age=600"} <= set(
        cookie.split("; ")
    )
    assert len(cookie.partition(";")[0]) < 500
    query = query_of(response.location)
    assert query["state"] not in str(response.headers.getlist("Set-Cookie"))
    assert query["nonce"] not in str(response.headers.getlist("Set-Cookie"))


def test_g2_on_https_the_cookie_has_the_secure_prefix(oidc: OIDCServer) -> None:
    site = make_site(
        oidc,
        callback="https://app.example/oidc/callback",
        ATM_EXTERNAL_URL="https://app.example",
    )
    client = site.client()
    response = client.get("/oidc/login?next=/me", headers=PAGE)
    (cookie,) = cookies(response, "__Secure-atm_pending_")
    assert "Secure" in cookie.split("; ")
    # The name that plain pages may set does not count.
    name, _, value = cookie.partition(";")[0].partition("=")
    answer = urlsplit(oidc.visit(response.location).url)
    path = f"{answer.path}?{answer.query}"
    thief = site.client()
    thief.set_cookie(name.removeprefix("__Secure-"), value, path="/oidc/callback")
    assert refused(thief.get(path, headers=PAGE))
    assert client.get(path, headers=PAGE).location == "/me"


def test_g3_an_error_without_its_state_is_ignored(site: Site) -> None:
    client = site.client()
    site.begin(client)
    path = "/oidc/callback?error=access_denied&error_description=EVIL&state=" + "A" * 43
    response = client.get(path, headers=PAGE)
    assert refused(response)
    assert "EVIL" not in response.text
    assert "access_denied" not in response.text


def test_g3_an_error_with_its_state_is_shown_escaped(oidc: OIDCServer) -> None:
    oidc.settings(
        interaction_error={"error": "access_denied", "error_description": "<b>no & never</b>"}
    )
    site = make_site(oidc)
    client = site.client()
    response = site.sign_in(client)
    assert refused(response)
    assert "&lt;b&gt;no &amp; never&lt;/b&gt;" in response.text
    assert "access_denied" in response.text


def test_g3_addresses_in_what_a_provider_says_are_not_logged(
    oidc: OIDCServer, caplog: pytest.LogCaptureFixture
) -> None:
    description = "User 'alice@example.com' is not in the tenant. Trace: 123"
    oidc.settings(interaction_error={"error": "access_denied", "error_description": description})
    site = make_site(oidc)
    assert "alice@example.com" in site.sign_in(site.client()).text
    assert "alice" not in caplog.text
    assert "is not in the tenant. Trace: 123" in caplog.text


def test_g4_state_nonce_and_verifier_are_random_and_pkce_is_s256(site: Site) -> None:
    queries = [query_of(site.begin(site.client())) for _ in range(3)]
    for name in ("state", "nonce", "code_challenge"):
        values = {query[name] for query in queries}
        assert len(values) == 3
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", value) for value in values)
    assert {query["code_challenge_method"] for query in queries} == {"S256"}
    assert {query["response_type"] for query in queries} == {"code"}


def test_g4_a_server_without_s256_is_a_configuration_error(oidc: OIDCServer) -> None:
    oidc.settings(metadata={"code_challenge_methods_supported": ["plain"]})
    site = make_site(oidc)
    with pytest.raises(ConfigurationError, match="S256"):
        site.client().get("/oidc/login", headers=PAGE)


# -- G: who answers


@pytest.mark.parametrize("issuer", [None, "https://evil.example", "", "HTTP://127.0.0.1"])
def test_g5_the_issuer_of_the_answer_is_checked(site: Site, issuer: str | None) -> None:
    client = site.client()
    path = site.answer(site.begin(client))
    assert query_of(path)["iss"] == site.provider.issuer
    assert refused(client.get(with_query(path, iss=issuer), headers=PAGE))
    assert site.code_requests() == 0
    assert client.get(path, headers=PAGE).location == "/me"


def test_g5_an_answer_of_another_provider_is_refused(oidc: OIDCServer) -> None:
    with OIDCServer() as second:
        other, _ = provider_settings(second, "http://localhost/oidc/callback/other")
        site = make_site(oidc, ATM_PROVIDERS={"other": other})
        client = site.client()
        path = site.answer(site.begin(client))
        moved = with_query(path, iss=second.issuer)
        assert refused(client.get(moved, headers=PAGE))
        assert site.code_requests() == 0


def test_g5_every_provider_has_a_redirect_uri_of_its_own(oidc: OIDCServer) -> None:
    other, _ = provider_settings(oidc, "http://localhost/oidc/callback/other")
    third, _ = provider_settings(oidc, "http://localhost/oidc/callback/third")
    site = make_site(oidc, ATM_PROVIDERS={"other": other, "third": third})
    client = site.client()
    paths = ["/oidc/login", "/oidc/login/oidc", "/oidc/login/other", "/oidc/login/third"]
    uris = [query_of(site.begin(client, path))["redirect_uri"] for path in paths]
    assert [urlsplit(uri).path for uri in uris] == [
        "/oidc/callback",
        "/oidc/callback",
        "/oidc/callback/other",
        "/oidc/callback/third",
    ]


def test_g5_without_advertised_iss_none_is_needed(oidc: OIDCServer) -> None:
    oidc.settings(metadata={"authorization_response_iss_parameter_supported": None})
    site = make_site(oidc)
    client = site.client()
    path = with_query(site.answer(site.begin(client)), iss=None)
    assert client.get(path, headers=PAGE).location == "/me"


# -- G: where the browser goes


def payloads() -> list[str]:
    """Ways to write another host that readers of URLs have fallen for."""
    hosts = ["evil.com", "evil.com/", "localhost@evil.com", "evil.com:80", "[::1]", "3627734734"]
    starts = [
        *("//", "///", "////", "/\\", "\\/", "\\\\", "/\t/", "/\n/", "/\r/", "\t//", " //", "/ /"),
        *("http:", "http:/", "http://", "https://", "HTTP://", "hTTps:\\\\", "https:/\\", "ftp://"),
        *("//localhost@", "/%2f", "/%2F%2F", "/%5c", "/%5C%5c", "/%09/", "/%0a/", "/%0d%0a/"),
        *("/./", "/../", "/..//", "/%2e%2e//", "/.%2e/", "/%252f", "/%25252F", "/%255c", "/a/..//"),
        *("/／", "/＼", "//。", "／／", "⁄⁄", "/\u2028/", "/%ef%bc%8f", "/\x00/", "/%00/", "/\x7f"),
        *("javascript:alert(1)//", "JaVaScRiPt:", "java\tscript:", "data:text/html,", "vbscript:"),
        *("blob:", "file:///", "?//", "#//", "@", ".", "..//", "/%68ttp:\\", "/a\\", "/%61%5c"),
        *("/a%0d%0aSet-Cookie:x=y//", "/a\r\nLocation: //", "/a%c2%85", "/a\x85", "/a b//"),
    ]
    ends = ["", "/me", "?next=/me", "#/me"]
    return ["".join(parts) for parts in itertools.product(starts, hosts, ends)]


def is_at_home(url: str) -> bool:
    """Whether a URL stays on this host for any reader: its own idea of it, not the code's."""
    decoded = unquote(unquote(unquote(url.split("?")[0].split("#")[0])))
    return (
        re.fullmatch(r"/[\x21-\x7e]*", url) is not None
        and "\\" not in url + decoded
        and not decoded.startswith("//")
        and not re.search(r"[\x00-\x1f\x7f-\x9f]", decoded)
        and not urlsplit(url).netloc
    )


def test_g6_next_leads_to_a_path_of_this_application_or_nowhere(site: Site) -> None:
    corpus = payloads()
    assert len(set(corpus)) >= 600
    accepted = [payload for payload in corpus if local_path(payload) is not None]
    assert not [payload for payload in accepted if not is_at_home(payload)]
    assert not [payload for payload in accepted if payload.startswith("/\\")]
    for good in ("/", "/me", "/a/b?c=d&e=%0A#f", "/%C3%A4", "/x?u=https://evil.com/", "/a%20b"):
        assert local_path(good) == good


def test_g6_what_is_no_path_leads_to_after_login(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_AFTER_LOGIN="who")
    for payload in ("//evil.com", "/\\evil.com", "https://evil.com/", "javascript:alert(1)", None):
        client = site.client()
        path = f"/oidc/login?next={quote(payload)}" if payload else "/oidc/login"
        assert site.sign_in(client, path).location == "/who"


def test_g6_next_has_at_most_one_kilobyte(site: Site) -> None:
    assert (
        site.sign_in(site.client(), f"/oidc/login?next=/{'a' * 1023}").location == "/" + "a" * 1023
    )
    assert site.sign_in(site.client(), f"/oidc/login?next=/{'a' * 1024}").location == "/"


# -- G: tokens


def test_g8_without_an_id_token_the_sign_in_fails(site: Site) -> None:
    site.provider.fault("token", patch={"id_token": None})
    client = site.client()
    response = site.sign_in(client)
    assert refused(response)
    assert "no ID token" in response.text
    assert client.get("/who").text == "nobody"


def test_g9_userinfo_of_another_user_is_refused(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_USERINFO=True)
    oidc.fault("userinfo", patch={"sub": "mallory"})
    client = site.client()
    assert refused(site.sign_in(client))
    assert client.get("/who").text == "nobody"


def test_userinfo_completes_the_claims_and_does_not_change_them(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_USERINFO=True)
    oidc.fault("userinfo", patch={"email": "changed@example.com", "shoe_size": 44})
    logins: list[dict[str, Any]] = []
    with signals.user_logged_in.connected_to(lambda app, **kw: logins.append(kw)):
        assert site.sign_in(site.client()).location == "/me"
    assert logins[0]["claims"]["shoe_size"] == 44
    assert logins[0]["claims"]["iss"] == oidc.issuer


@pytest.mark.parametrize(
    "claims",
    [{"nonce": "other"}, {"aud": "other"}, {"sub": ""}, {"iss": "https://evil.example"}],
    ids=["nonce", "aud", "sub", "iss"],
)
def test_h7_a_sign_in_with_a_bad_id_token_fails(site: Site, claims: dict[str, Any]) -> None:
    site.provider.fault("token", id_token={"claims": claims})
    client = site.client()
    assert refused(site.sign_in(client))
    assert client.get("/who").text == "nobody"


def test_h6_an_unsigned_id_token_is_refused(site: Site) -> None:
    site.provider.fault("token", id_token={"header": {"alg": "none"}})
    assert refused(site.sign_in(site.client()))


def test_h7_max_age_needs_a_recent_auth_time(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_AUTHORIZE_PARAMS={"max_age": "100"})
    assert site.sign_in(site.client()).location == "/me"
    oidc.fault("token", id_token={"claims": {"auth_time": 1}})
    assert refused(site.sign_in(site.client()))
    oidc.fault("token", id_token={"claims": {"auth_time": None}})
    assert refused(site.sign_in(site.client()))


def test_h7_a_max_age_of_zero_counts_too(oidc: OIDCServer) -> None:
    def add_enter(app: Flask) -> None:
        app.add_url_rule("/enter", "enter", lambda: app.extensions["atm"].login("/me", max_age=0))

    site = make_site(oidc, before=add_enter)
    assert site.sign_in(site.client(), "/enter").location == "/me"
    oidc.fault("token", id_token={"claims": {"auth_time": 1}})
    assert refused(site.sign_in(site.client(), "/enter"))


def test_h10_keys_that_rotate_while_a_user_signs_in(site: Site) -> None:
    assert site.sign_in(site.client()).location == "/me"
    client = site.client()
    path = site.answer(site.begin(client))
    site.provider.rotate_keys(keep=False)
    site.provider.reset()
    assert client.get(path, headers=PAGE).location == "/me"
    assert len(site.provider.requests_to("jwks")) == 1


def test_h1_metadata_of_another_issuer_are_no_sign_in(oidc: OIDCServer) -> None:
    oidc.settings(metadata={"issuer": f"{oidc.issuer}/"})
    response = make_site(oidc).client().get("/oidc/login", headers=PAGE)
    assert response.status_code == 502
    assert oidc.issuer not in response.text


def test_h3_without_discovery_a_sign_in_has_to_wait(oidc: OIDCServer) -> None:
    oidc.stop_listening()
    client = make_site(oidc).client()  # the start is not held up
    for path in ("/me", "/oidc/login"):
        response = client.get(path, headers=PAGE)
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) >= 1
    oidc.listen()
    assert make_site(oidc).client().get("/me", headers=PAGE).status_code == 302


def test_h3_old_metadata_serve_while_there_are_no_new_ones(oidc: OIDCServer) -> None:
    clock = FakeClock()
    site = make_site(oidc, atm={"clock": clock})
    site.begin(site.client())
    oidc.fault("discovery", status=500, times=None)
    clock.advance(2 * 3600)
    assert site.begin(site.client()).startswith(oidc.issuer)


def test_the_token_endpoint_being_away_is_no_failed_sign_in(site: Site) -> None:
    site.provider.fault("token", status=503)
    client = site.client()
    response = site.sign_in(client)
    assert response.status_code == 503
    assert "Retry-After" in response.headers
    assert site.sign_in(client).location == "/me"


def test_a_refused_code_fails_with_a_reference_that_the_log_has(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.provider.fault(
        "token", status=400, body={"error": "invalid_grant", "error_description": "<i>no</i>"}
    )
    client = site.client()
    path = site.answer(site.begin(client))
    errors: list[LoginFailed] = []
    with signals.login_failed.connected_to(lambda app, **kw: errors.append(kw["error"])):
        response = client.get(path, headers=PAGE)
    assert refused(response)
    assert "&lt;i&gt;no" in response.text
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert errors[0].reference is not None
    assert errors[0].reference in response.text
    (record,) = [r for r in caplog.records if errors[0].reference in r.getMessage()]
    assert record.levelno == logging.WARNING
    assert query_of(path)["code"] not in caplog.text


def test_a_wrong_secret_is_a_failed_sign_in_that_names_the_cure(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_CLIENT_SECRET="wrong")
    response = site.sign_in(site.client())
    assert refused(response)
    assert "client_auth" in response.text


# -- G: hosts


@pytest.mark.parametrize(
    "host", ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "localhost:1@evil.com", "a b"]
)
def test_g10_a_host_that_nobody_configured_is_not_used(site: Site, host: str) -> None:
    for path in ("/oidc/login", "/me"):
        response = site.client().get(path, headers={**PAGE, "Host": host})
        assert response.status_code == 500
        assert all(key in response.text for key in ("ATM_EXTERNAL_URL", "TRUSTED_HOSTS"))
        assert "evil" not in response.text


def test_g10_forwarded_headers_are_not_believed(site: Site) -> None:
    headers = {**PAGE, "X-Forwarded-Host": "evil.com", "Forwarded": "host=evil.com"}
    response = site.client().get("/oidc/login", headers=headers)
    assert query_of(response.location)["redirect_uri"] == "http://localhost/oidc/callback"


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1", "127.0.0.1:80", "[::1]:5000"])
def test_g10_loopback_hosts_need_no_configuration(site: Site, host: str) -> None:
    response = site.client().get("/oidc/login", headers={**PAGE, "Host": host})
    uri = urlsplit(query_of(response.location)["redirect_uri"])
    assert uri.hostname in {"localhost", "127.0.0.1", "::1"}
    assert uri.path == "/oidc/callback"


def test_g10_the_external_url_decides(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_EXTERNAL_URL="https://app.example.com/shop")
    client = site.client()
    for base in ("http://evil.com/", "http://evil.com/shop"):
        response = client.get("/oidc/login", base_url=base, headers=PAGE)
        uri = query_of(response.location)["redirect_uri"]
        assert uri == "https://app.example.com/shop/oidc/callback"


def test_g10_server_name_decides(oidc: OIDCServer) -> None:
    site = make_site(oidc, SERVER_NAME="app.example.com")
    response = site.client().get("/oidc/login", base_url="https://evil.com", headers=PAGE)
    uri = query_of(response.location)["redirect_uri"]
    assert uri == "https://app.example.com/oidc/callback"


def test_g10_trusted_hosts_decide(oidc: OIDCServer) -> None:
    site = make_site(oidc, TRUSTED_HOSTS=["app.example.com"])
    client = site.client()
    good = client.get("/oidc/login", base_url="https://app.example.com", headers=PAGE)
    uri = query_of(good.location)["redirect_uri"]
    assert uri == "https://app.example.com/oidc/callback"
    assert client.get("/oidc/login", base_url="https://evil.com", headers=PAGE).status_code == 400


def test_g16_codes_do_not_travel_over_plain_http(oidc: OIDCServer) -> None:
    site = make_site(oidc, SERVER_NAME="app.example.com")
    response = site.client().get("/oidc/login", base_url="http://app.example.com", headers=PAGE)
    assert response.status_code == 500
    assert "ProxyFix" in response.text


def test_g16_unless_the_host_is_named(oidc: OIDCServer) -> None:
    hosts = {"allowed_http_hosts": ["intranet.example"]}
    site = make_site(oidc, SERVER_NAME="intranet.example", ATM_BACK_CHANNEL=hosts)
    response = site.client().get("/oidc/login", base_url="http://intranet.example", headers=PAGE)
    uri = query_of(response.location)["redirect_uri"]
    assert uri == "http://intranet.example/oidc/callback"


# -- G: twice


def test_g11_a_second_click_goes_where_the_first_one_went(site: Site) -> None:
    client = site.client()
    path = site.answer(site.begin(client))
    signed_in: list[Any] = []
    with signals.user_logged_in.connected_to(lambda app, **kw: signed_in.append(kw)):
        first, second = client.get(path, headers=PAGE), client.get(path, headers=PAGE)
    assert (first.location, second.location) == ("/me", "/me")
    assert site.code_requests() == 1
    assert len(signed_in) == 1
    assert client.get("/who").text == "alice"


def test_g11_two_clicks_at_the_same_moment(site: Site) -> None:
    client = site.client()
    path = site.answer(site.begin(client))
    brought = jar(client)
    site.provider.hold("token", when="after")

    def click() -> TestResponse:
        browser = site.client()
        for cookie in brought:
            browser.set_cookie(cookie.key, cookie.value, path=cookie.path)
        response = browser.get(path, headers=PAGE)
        assert browser.get("/who").text == "alice"
        return response

    with ThreadPoolExecutor(2) as pool:
        clicks = [pool.submit(click) for _ in range(2)]
        site.provider.wait_held(1)
        site.provider.release()
        landed = [one.result() for one in clicks]
    assert [one.location for one in landed] == ["/me", "/me"]
    assert site.code_requests() == 1


def test_g11_a_second_click_on_a_failure_fails_too(site: Site) -> None:
    client = site.client()
    path = site.answer(site.begin(client))
    site.provider.fault("token", status=400, body={"error": "invalid_grant"})
    first, second = client.get(path, headers=PAGE), client.get(path, headers=PAGE)
    assert refused(first)
    assert refused(second)
    assert site.code_requests() == 1
    reference = re.search(r"Reference: <code>(\w+)", first.text)
    assert reference is not None
    assert reference[1] in second.text


def test_g11_going_back_after_signing_out_signs_nobody_in(site: Site) -> None:
    client = site.client()
    path = site.answer(site.begin(client))
    client.get(path, headers=PAGE)
    client.post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
    assert client.get(path, headers=PAGE).location == "/me"
    assert client.get("/who").text == "nobody"


# -- G: who was there before


def handle(client: Any) -> str:
    with client.session_transaction() as session:
        return str(session["_atm"]["oidc"])


def test_g12_the_same_user_gets_a_new_grant(site: Site) -> None:
    client = site.client()
    client.get("/basket")
    site.sign_in(client)
    old = handle(client)
    ended: list[Any] = []
    with signals.user_logged_out.connected_to(lambda app, **kw: ended.append(kw)):
        assert site.sign_in(client).location == "/me"
    assert handle(client) != old
    assert not ended
    assert client.get("/basket").json["basket"] == "full"  # type: ignore[index]
    # The newer grant shares the session of the server, so the old token waits in the outbox.
    assert site.provider.requests_to("revocation") == []
    thief = site.client()
    with thief.session_transaction() as session:
        session["_atm"] = {"oidc": old}
    assert thief.get("/who").text == "nobody"


def test_g12_another_user_begins_from_nothing(oidc: OIDCServer) -> None:
    github, _ = provider_settings(oidc, "http://localhost/oidc/callback/github")
    site = make_site(
        oidc, ATM_PROVIDERS={"github": {**github, "sign_in": False, "scope": "openid"}}
    )
    client = site.client()
    client.get("/basket")
    site.sign_in(client)
    site.sign_in(client, "/oidc/login/github")
    events: list[tuple[str, str]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda app, **kw: events.append((name, kw["claims"]["sub"]))

    out, into = note("out"), note("in")
    with signals.user_logged_out.connected_to(out), signals.user_logged_in.connected_to(into):
        response = site.sign_in(client, account="bob")
    assert response.location == "/"
    assert events == [("out", "alice"), ("in", "bob")]
    with client.session_transaction() as session:
        assert set(session) == {"_atm"}
        assert set(session["_atm"]) == {"oidc"}
    assert client.get("/who").text == "bob"
    assert len(oidc.requests_to("revocation")) == 2


def end(how: str, site: Site, clock: FakeClock, grant_id: str) -> None:
    """Let a grant end, so that its browser learns of it by its next request."""
    if how == "refused":
        site.provider.revoke_grants(client=site.registration)
        clock.advance(301)
    elif how == "revoked":
        site.atm.revoke_grant(grant_id)
    elif how == "too old":
        clock.advance(1001)
        site.provider.advance(1001)
    else:
        site.state.store.delete(sha256(grant_id.encode()).hexdigest())


@pytest.mark.parametrize("how", ["refused", "revoked", "too old", "lost"])
@pytest.mark.parametrize("account", ["alice", "bob"])
def test_g12_also_after_a_sign_in_that_had_ended_nobody_inherits_from_another(
    oidc: OIDCServer, how: str, account: str
) -> None:
    clock = FakeClock()
    github, _ = provider_settings(oidc, "http://localhost/oidc/callback/github")
    account_of_github = {**github, "sign_in": False, "scope": "openid"}
    site = make_site(
        oidc,
        atm={"clock": clock},
        ATM_GRANT_LIFETIME=1000,
        ATM_PROVIDERS={"github": account_of_github},
    )
    client = site.client()
    client.get("/basket")
    site.sign_in(client)
    site.sign_in(client, "/oidc/login/github")
    with site.app.app_context():
        end(how, site, clock, f"oidc.{handle(client).partition('.')[2]}")
    assert client.get("/token").status_code == 401
    response = site.sign_in(client, account=account)
    with client.session_transaction() as session:
        if account == "alice":
            assert response.location == "/me"
            assert (set(session), set(session["_atm"])) == ({"_atm", "basket"}, {"oidc", "github"})
        else:
            assert response.location == "/"
            assert (set(session), set(session["_atm"])) == ({"_atm"}, {"oidc"})


def test_g12_an_old_answer_does_not_undo_a_later_sign_in(oidc: OIDCServer) -> None:
    def add_leave(app: Flask) -> None:
        @app.get("/leave")
        def leave() -> str:  # how an application signs out that does not know better
            flask_session.clear()
            return ""

    site = make_site(oidc, before=add_leave)
    client = site.client()
    old = site.answer(site.begin(client))
    client.get(old, headers=PAGE)
    client.get("/leave")
    site.sign_in(client, account="bob")
    client.get("/basket")
    assert client.get(old, headers=PAGE).location == "/"
    assert client.get("/who").text == "bob"


def test_d11_a_planted_session_is_left_at_sign_in(site: Site) -> None:
    attacker = site.client()
    site.sign_in(attacker, account="mallory")
    planted = attacker.get_cookie("session")
    assert planted is not None
    victim = site.client()
    victim.set_cookie("session", planted.value)
    site.sign_in(victim)
    assert victim.get("/who").text == "alice"
    assert attacker.get("/who").text == "nobody"


def test_d11_server_side_sessions_get_a_new_id(oidc: OIDCServer) -> None:
    regenerated: list[object] = []

    class ServerSide(SecureCookieSessionInterface):
        """As Flask-Session has it."""

        def regenerate(self, session: object) -> None:
            regenerated.append(session)

    def own(app: Flask) -> None:
        app.session_interface = ServerSide()

    site = make_site(oidc, before=own)
    site.sign_in(site.client())
    assert len(regenerated) == 1


class Unwilling(MemoryStore):
    """A store that takes nothing new."""

    def create(self, key: str, *args: Any, **kwargs: Any) -> bool:
        raise StoreError("down")


def test_g11_a_code_is_not_sent_while_its_state_cannot_be_remembered(oidc: OIDCServer) -> None:
    site = make_site(oidc, atm={"store": Unwilling()})
    assert site.sign_in(site.client()).status_code == 503
    assert site.code_requests() == 0


def test_d9_nothing_of_a_sign_in_is_kept_by_caches(site: Site) -> None:
    client = site.client()
    begun = client.get("/oidc/login", headers=PAGE)
    done = client.get(site.answer(begun.location), headers=PAGE)
    assert begun.headers["Cache-Control"] == done.headers["Cache-Control"] == "no-store"


# -- G: forms, time


def test_g13_an_answer_can_come_as_a_form(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_AUTHORIZE_PARAMS={"response_mode": "form_post"})
    client = site.client()
    begun = client.get("/oidc/login?next=/me", headers=PAGE)
    (cookie,) = cookies(begun, "atm_pending_")
    assert {"SameSite=None", "Secure"} <= set(cookie.split("; "))
    visit = oidc.visit(begun.location)
    assert visit.form is not None
    response = client.post(urlsplit(visit.url).path, data=visit.form, headers=PAGE)
    assert (response.status_code, response.location) == (303, "/me")
    assert client.get("/who").text == "alice"


def test_g13_a_form_from_another_site_keeps_the_session_of_this_one(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_AUTHORIZE_PARAMS={"response_mode": "form_post"})
    client = site.client()
    client.get("/basket")
    begun = client.get("/oidc/login?next=/me", headers=PAGE)
    visit = oidc.visit(begun.location)
    # A post from another site carries the cookies with SameSite=None alone.
    poster = site.client()
    (pending,) = [c for c in jar(client) if "pending" in c.key]
    poster.set_cookie(pending.key, pending.value, path=pending.path)
    response = poster.post(urlsplit(visit.url).path, data=visit.form, headers=PAGE)
    assert response.status_code == 303
    assert "session" not in [c.key for c in jar(poster)]
    assert set(query_of(response.location)) == {"state"}
    # The next request is a GET, which carries all of them.
    again = poster.post(urlsplit(visit.url).path, data=visit.form, headers=PAGE)
    assert again.location == response.location
    assert "session" not in [c.key for c in jar(poster)]
    assert client.get(response.location, headers=PAGE).location == "/me"
    assert client.get("/who").text == "alice"
    assert client.get("/basket").json["basket"] == "full"  # type: ignore[index]
    assert site.code_requests() == 1


@pytest.mark.parametrize("mode", ["query", "form_post"])
def test_g13_a_strict_session_is_sent_for_by_a_page_of_ours(oidc: OIDCServer, mode: str) -> None:
    """Browsers keep such cookies back until a page of this site asks, redirects included."""
    site = make_site(
        oidc, ATM_AUTHORIZE_PARAMS={"response_mode": mode}, SESSION_COOKIE_SAMESITE="Strict"
    )
    client = site.client()
    client.get("/basket")
    visit = oidc.visit(client.get("/oidc/login?next=/me", headers=PAGE).location)
    from_elsewhere = site.client()
    for cookie in jar(client):
        assert (cookie.same_site != "Strict") == ("pending" in cookie.key)
        if cookie.same_site == "Strict":
            continue
        from_elsewhere.set_cookie(cookie.key, cookie.value, path=cookie.path)
    parts = urlsplit(visit.url)
    if mode == "query":
        response = from_elsewhere.get(f"{parts.path}?{parts.query}", headers=PAGE)
    else:
        response = from_elsewhere.post(parts.path, data=visit.form, headers=PAGE)
    assert response.status_code == 200
    assert "session" not in [cookie.key for cookie in jar(from_elsewhere)]
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    url = response.headers["Refresh"].removeprefix("0; url=")
    assert f'href="{url}"' in response.text
    assert client.get(url, headers={**PAGE, "Sec-Fetch-Site": "same-origin"}).location == "/me"
    assert client.get("/who").text == "alice"
    assert client.get("/basket").json["basket"] == "full"  # type: ignore[index]
    assert site.code_requests() == 1


def test_g13_a_state_alone_signs_nobody_in(site: Site) -> None:
    client = site.client()
    state = query_of(site.begin(client))["state"]
    assert refused(client.get(f"/oidc/callback?state={state}", headers=PAGE))


def test_g14_a_sign_in_that_took_too_long_is_refused(oidc: OIDCServer) -> None:
    clock = FakeClock()
    site = make_site(oidc, atm={"clock": clock})
    client = site.client()
    path = site.answer(site.begin(client))
    clock.advance(601)
    assert refused(client.get(path, headers=PAGE))
    assert site.code_requests() == 0


# -- what is asked for


def test_parameters_are_merged_and_resources_repeated(oidc: OIDCServer) -> None:
    resources = ["https://api.example/a", "https://api.example/b"]
    site = make_site(
        oidc,
        ATM_RESOURCE=resources,
        ATM_AUDIENCE="api",
        ATM_AUTHORIZE_PARAMS={"prompt": "consent", "ui_locales": "de"},
    )
    with site.app.test_request_context():
        url = site.atm.login(
            "/me", prompt=None, login_hint="bob", max_age=300, claims={"id_token": {"acr": None}}
        ).location
    query = parse_qs(urlsplit(url).query)
    assert query["resource"] == resources
    assert query["audience"] == ["api"]
    assert query["ui_locales"] == ["de"]
    assert query["login_hint"] == ["bob"]
    assert query["max_age"] == ["300"]
    assert query["claims"] == ['{"id_token":{"acr":null}}']
    assert "prompt" not in query


@pytest.mark.parametrize("name", ["state", "nonce", "client_id", "code_challenge", "request_uri"])
def test_what_is_ours_cannot_be_given(site: Site, name: str) -> None:
    with site.app.test_request_context(), pytest.raises(ValueError, match=name):
        site.atm.login(**{name: "x"})


@pytest.mark.parametrize(
    ("setting", "supported", "asked"),
    [
        ("auto", ["openid", "offline_access"], True),
        ("auto", ["openid"], False),
        (True, ["openid"], True),
        (False, ["openid", "offline_access"], False),
    ],
)
def test_offline_access(
    oidc: OIDCServer, setting: bool | str, supported: list[str], asked: bool
) -> None:
    oidc.settings(metadata={"scopes_supported": supported})
    site = make_site(oidc, ATM_OFFLINE_ACCESS=setting)
    query = query_of(site.begin(site.client()))
    assert ("offline_access" in query["scope"].split()) == asked
    assert "prompt" not in query


def test_a_sign_in_without_refresh_token_is_warned_about_once(
    oidc: OIDCServer, caplog: pytest.LogCaptureFixture
) -> None:
    oidc.settings(refresh_tokens="never")
    site = make_site(oidc)
    for _ in range(2):
        assert site.sign_in(site.client()).location == "/me"
    assert caplog.text.count("ATM_OFFLINE_ACCESS") == 1


def test_a_scope_for_one_sign_in(site: Site) -> None:
    client = site.client()
    with site.app.test_request_context():
        response = site.app.make_response(site.atm.login("/me", scope="profile read"))
    assert query_of(response.location)["scope"].split()[:3] == ["openid", "profile", "read"]
    assert client.get("/who").text == "nobody"


# -- connected accounts, several providers


def test_a_connected_account_is_no_sign_in(oidc: OIDCServer) -> None:
    with FaultyServer(default=Reply(200, {"login": "octocat", "id": 7})) as github_api:
        keys = {
            "authorization_endpoint": f"{oidc.issuer}/auth",
            "token_endpoint": f"{github_api.url}/token",
            "userinfo_endpoint": f"{github_api.url}/user",
            "client_id": "octo",
            "sign_in": False,
            "userinfo": True,
            "scope": "repo",
        }
        token = {"access_token": "gho_1", "token_type": "bearer", "scope": "repo"}
        github_api.always(Reply(200, token), path="/token")
        site = make_site(oidc, ATM_PROVIDERS={"github": keys})
        client = site.client()
        events: list[Any] = []
        with signals.user_logged_in.connected_to(lambda app, **kw: events.append(kw)):
            query = query_of(site.begin(client, "/oidc/login/github?next=/me"))
            assert "nonce" not in query
            assert query["scope"] == "repo"
            path = f"/oidc/callback/github?code=abc&state={query['state']}"
            assert client.get(path, headers=PAGE).location == "/me"
        assert not events
        (sent,) = github_api.wait_for(1, path="/token")
        assert sent.parameter("code_verifier") is not None
        with client.session_transaction() as session:
            assert set(session["_atm"]) == {"github"}
        assert client.get("/who").text == "nobody"


@pytest.mark.parametrize("next_user", ["alice", "bob"])
def test_a_connected_account_stays_for_its_user_only(oidc: OIDCServer, next_user: str) -> None:
    with FaultyServer(default=Reply(200, {"access_token": "gho_1", "scope": "repo"})) as forge:
        keys = {
            "authorization_endpoint": f"{oidc.issuer}/auth",
            "token_endpoint": f"{forge.url}/token",
            "client_id": "octo",
            "sign_in": False,
        }
        site = make_site(oidc, ATM_PROVIDERS={"github": keys})
        client = site.client()
        site.sign_in(client, account="alice")
        query = query_of(site.begin(client, "/oidc/login/github"))
        client.get(f"/oidc/callback/github?code=abc&state={query['state']}", headers=PAGE)
        with client.session_transaction() as session:
            assert set(session["_atm"]) == {"oidc", "github"}
        client.post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
        with client.session_transaction() as session:
            assert set(session["_atm"]) == {"github"}

        site.sign_in(client, account=next_user)

        with client.session_transaction() as session:
            expected = {"oidc", "github"} if next_user == "alice" else {"oidc"}
            assert set(session["_atm"]) == expected


def test_several_providers_sign_in_beside_each_other(oidc: OIDCServer) -> None:
    other, _ = provider_settings(oidc, "http://localhost/oidc/callback/other")
    site = make_site(oidc, ATM_PROVIDERS={"other": other})
    client = site.client()
    site.sign_in(client)
    site.sign_in(client, "/oidc/login/other", account="bob")
    assert client.get("/who").text == "alice"
    with client.session_transaction() as session:
        assert set(session["_atm"]) == {"oidc", "other"}
        assert all(len(f"{k}{v}") < 150 for k, v in session["_atm"].items())


def test_an_unknown_provider_is_not_found(site: Site) -> None:
    for path in ("/oidc/login/nobody", "/oidc/login/UPPER", "/oidc/callback/nobody?state=x"):
        assert site.client().get(path).status_code == 404


# -- on_login


def test_on_login_sees_the_user_before_anything_is_saved(oidc: OIDCServer) -> None:
    seen: list[Login] = []
    site = make_site(oidc, atm={"on_login": seen.append})
    client = site.client()
    assert site.sign_in(client).location == "/me"
    (login,) = seen
    assert login.subject == "alice"
    assert handle(client).endswith(login.grant_id.partition(".")[2])


def test_on_login_may_refuse(oidc: OIDCServer) -> None:
    def refuse(login: Login) -> None:
        raise LoginFailed("You are not a member.", error="unknown_user")

    site = make_site(oidc, atm={"on_login": refuse})
    client = site.client()
    response = site.sign_in(client)
    assert refused(response)
    assert "You are not a member." in response.text
    assert client.get("/who").text == "nobody"


def test_on_login_may_answer_itself(oidc: OIDCServer) -> None:
    def answer(login: Login) -> Response:
        return make_response("fill in this form", 200)

    site = make_site(oidc, atm={"on_login": answer})
    client = site.client()
    path = site.answer(site.begin(client))
    response = client.get(path, headers=PAGE)
    assert (response.status_code, response.text) == (200, "fill in this form")
    assert response.headers["Cache-Control"] == "no-store"
    assert client.get("/who").text == "nobody"
    assert client.get(path, headers=PAGE).location == "/me"


# -- loops


class Forgetful(MemoryStore):
    """A store that loses every grant at once, as another instance's would be."""

    def read(self, key: str) -> Any:
        return super().read(key) if ":" in key or " " in key or self.keeps else None

    keeps = True


def test_a_loop_of_sign_ins_ends_in_a_page(oidc: OIDCServer) -> None:
    clock = FakeClock()
    store = Forgetful()
    site = make_site(oidc, atm={"clock": clock, "store": store})
    browser = site.browser()
    assert browser.open("/me").text == "alice"
    store.keeps = False
    response = browser.open("/me")
    assert response.status_code == 400
    assert "ATM_STORE" in response.text
    clock.advance(31)
    assert browser.client.get("/me", headers=PAGE).status_code == 302


def test_the_third_sign_in_within_a_minute_is_a_loop() -> None:
    known = Recent().with_sign_in("oidc", 0.0).with_sign_in("oidc", 20.0)
    assert known.is_loop("oidc", 55.0)
    assert not known.is_loop("oidc", 61.0)
    assert not known.is_loop("other", 21.0)
    assert not known.without_sign_ins(["oidc"]).is_loop("oidc", 21.0)


def test_tabs_that_sign_in_side_by_side_are_no_loop(site: Site) -> None:
    client = site.client()
    paths = [site.answer(site.begin(client, "/me")) for _ in range(5)]
    assert [client.get(path, headers=PAGE).location for path in paths] == ["/me"] * 5


def test_signing_out_and_in_again_is_no_loop(site: Site) -> None:
    browser = site.browser()
    browser.open("/me")
    browser.client.post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
    assert browser.client.get("/me", headers=PAGE).status_code == 302


def test_a_sign_in_that_the_user_asked_for_is_no_loop(oidc: OIDCServer) -> None:
    store = Forgetful()
    site = make_site(oidc, atm={"store": store})
    client = site.client()
    site.sign_in(client)
    store.keeps = False
    assert client.get("/me", headers=PAGE).status_code == 302


# -- step-up


def add_vault(app: Flask) -> None:
    @app.get("/vault")
    def vault() -> str:
        if not bool(current_login):
            raise LoginRequired
        if current_login.claims.get("acr") != "urn:example:mfa":
            raise StepUpRequired(acr_values=("urn:example:mfa",), max_age=600)
        return "gold"

    @app.get("/safe")
    def safe() -> str:
        raise StepUpRequired(acr_values=("urn:example:hardware",))


def test_a_step_up_asks_for_more_and_gets_it(oidc: OIDCServer) -> None:
    site = make_site(oidc, before=add_vault)
    client = site.client()
    site.sign_in(client)
    location = client.get("/vault", headers=PAGE).location
    query = query_of(location)
    assert (query["acr_values"], query["max_age"]) == ("urn:example:mfa", "600")
    assert client.get(site.answer(location), headers=PAGE).location == "/vault"


@pytest.mark.parametrize(
    "claims",
    [
        {"acr": "urn:example:basic"},
        {"acr": None},
        {"acr": "urn:example:mfa", "auth_time": None},
        {"acr": "urn:example:mfa", "auth_time": 1},
    ],
)
def test_a_step_up_is_verified(oidc: OIDCServer, claims: dict[str, Any]) -> None:
    site = make_site(oidc, before=add_vault)
    client = site.client()
    site.sign_in(client)
    path = site.answer(client.get("/vault", headers=PAGE).location)
    oidc.fault("token", id_token={"claims": claims})
    assert refused(client.get(path, headers=PAGE))


def test_there_is_one_step_up_in_thirty_seconds(oidc: OIDCServer) -> None:
    clock = FakeClock()
    site = make_site(oidc, before=add_vault, atm={"clock": clock})
    client = site.client()
    site.sign_in(client)
    client.get(site.answer(client.get("/vault", headers=PAGE).location), headers=PAGE)
    response = client.get("/safe", headers=PAGE)
    assert refused(response)
    assert "acr_values" in response.text
    clock.advance(31)
    assert client.get("/safe", headers=PAGE).status_code == 302


# -- anything at all


@settings(max_examples=2000, deadline=None)
@given(st.text(alphabet=st.sampled_from("/\\%2fF5cC.:@?#ae\t\n ä／"), max_size=12))
def test_n1_any_next_stays_at_home(url: str) -> None:
    for candidate in (url, f"/{url}"):
        found = local_path(candidate)
        assert found is None or is_at_home(found)


PARTS = st.text(max_size=20) | st.just("A" * 43)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["state", "code", "iss", "error", "x"]), PARTS), st.booleans()
)
def test_n1_any_answer_is_refused_properly(
    any_app: Flask, answer: dict[str, str], as_form: bool
) -> None:
    options: dict[str, Any] = {"data": answer} if as_form else {"query_string": answer}
    method = "POST" if as_form else "GET"
    client = any_app.test_client()
    assert refused(client.open("/oidc/callback", method=method, headers=PAGE, **options))


@pytest.fixture(scope="module")
def any_app() -> Flask:
    """An application whose provider is never asked anything."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="a secret of 32 characters or more!!",
        ATM_ISSUER="https://login.example",
        ATM_CLIENT_ID="app",
        ATM_STORE="memory",
    )
    ATM(app)
    return app


STATE = "s" * 43
NAME = f"atm_pending_{sha256(STATE.encode()).hexdigest()[:16]}"
SEALED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("pnvritsmaul"), inner, max_size=9)
    ),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(SEALED)
def test_n1_what_another_version_sealed_is_no_sign_in(any_app: Flask, value: Any) -> None:
    state: State = any_app.extensions[STATE_KEY]
    client = any_app.test_client()
    recent_name = f"atm_recent_{state.ring.digest('browser')[:8]}"
    for name, record in [(NAME, STATE), (recent_name, ""), ("atm_logout", STATE)]:
        sealed = state.ring.seal_json(value, purpose=f"cookie {name}", record=record)
        client.set_cookie(name, urlsafe_b64encode(sealed).decode(), path="/")
    assert refused(client.get(f"/oidc/callback?state={STATE}&code=x", headers=PAGE))
    assert client.get(f"/oidc/logged-out?state={STATE}").location == "/"


# -- Authlib


def test_the_registry_is_our_own(site: Site) -> None:
    assert "authlib.integrations.flask_client" not in site.app.extensions
    with site.app.test_request_context():
        assert site.atm.oauth.oidc is site.atm.oauth.create_client("oidc")
        with pytest.raises(AttributeError, match="nobody"):
            _ = site.atm.oauth.nobody
        response = site.atm.oauth.oidc.authorize_redirect("http://localhost/oidc/callback")
    assert query_of(response.location)["code_challenge_method"] == "S256"


def test_keys_of_authlib_are_not_read(oidc: OIDCServer) -> None:
    site = make_site(oidc, OIDC_CLIENT_ID="other", OIDC_AUTHORIZE_URL="https://evil.example/")
    location = site.begin(site.client())
    assert location.startswith(oidc.issuer)
    assert query_of(location)["client_id"] == site.registration.client_id


def test_nothing_secret_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = site.client()
    location = site.begin(client)
    path = site.answer(location)
    client.get(path, headers=PAGE)
    ours = [r.getMessage() for r in caplog.records if "/auth?" not in r.getMessage()]
    assert len(ours) > 3
    for secret in (query_of(path)["code"], query_of(path)["state"], query_of(location)["nonce"]):
        assert secret not in "".join(ours)  # the others are the test's own browser


def test_a_callback_route_of_ones_own(oidc: OIDCServer) -> None:
    def own_routes(app: Flask) -> None:
        app.add_url_rule("/back", "back", lambda: app.extensions["atm"].callback())

        @app.get("/enter")
        def enter() -> Response:
            answer = app.extensions["atm"].login("/me", redirect_uri="http://localhost/back")
            assert isinstance(answer, Response)
            return answer

    site = make_site(oidc, before=own_routes, callback="http://localhost/back", ATM_ROUTES=False)
    client = site.client()
    assert site.sign_in(client, "/enter").location == "/me"
    assert client.get("/who").text == "alice"
    with site.app.test_request_context(), pytest.raises(ConfigurationError, match="redirect_uri"):
        site.atm.login()
