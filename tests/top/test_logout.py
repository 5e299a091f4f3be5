"""Sign-out: the requirement lines I, and what the interface promises of logout."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import session

from flask_atm import signals
from flask_atm.errors import LoginRequired, StoreError
from flask_atm.grants.stores import MemoryStore
from flask_atm.testing import FakeClock
from tests.servers import FaultyServer, OIDCServer, Reply

from .support import HERE, PAGE, Site, cookies, make_site, provider_settings, query_of


@pytest.fixture
def site(oidc: OIDCServer) -> Site:
    return make_site(oidc)


@pytest.fixture
def local(oidc: OIDCServer) -> Site:
    """A site that signs out here alone."""
    return make_site(oidc, ATM_LOGOUT_AT_PROVIDER=False)


def signed_in(site: Site) -> Any:
    client = site.client()
    site.sign_in(client)
    assert client.get("/who").text == "alice"
    return client


# -- I1, I10: refreshes


def test_i1_a_logout_during_a_refresh_wins(oidc: OIDCServer) -> None:
    clock = FakeClock()
    site = make_site(oidc, atm={"clock": clock}, ATM_LOGOUT_AT_PROVIDER=False)
    client = signed_in(site)
    grant = client.get_cookie("session").value
    clock.advance(290)
    oidc.hold("token", "after", {"grant_type": "refresh_token"})
    other = site.client()
    other.set_cookie("session", grant)
    with ThreadPoolExecutor(1) as pool:
        refresh = pool.submit(other.get, "/token")
        oidc.wait_held(1)
        assert client.post("/oidc/logout", headers=HERE).status_code == 303
        oidc.release()
        assert refresh.result().status_code in (200, 401)
    assert client.get("/who").text == other.get("/who").text == "nobody"
    # The old refresh token, and the one that came too late.
    assert len(oidc.requests_to("revocation")) == 2


def test_i10_a_refresh_token_that_was_revoked_means_one_sign_in(oidc: OIDCServer) -> None:
    clock = FakeClock()
    site = make_site(oidc, atm={"clock": clock})
    client = signed_in(site)
    oidc.revoke_grants(client=site.registration)
    clock.advance(301)
    sent: list[str] = []
    with signals.grant_revoked.connected_to(lambda app, **kw: sent.append(kw["provider"])):
        answers = [client.get("/token").status_code for _ in range(3)]
    assert answers == [401, 401, 401]
    assert sent == ["oidc"]
    assert client.get("/token").json["reason"] in {"invalid_grant", "ended"}
    assert len(oidc.token_requests(grant_type="refresh_token")) == 1


# -- I2: revocation


def test_i2_the_refresh_token_is_revoked_at_logout(local: Site) -> None:
    client = signed_in(local)
    events: list[dict[str, Any]] = []
    with signals.user_logged_out.connected_to(lambda app, **kw: events.append(kw)):
        response = client.post("/oidc/logout", headers=HERE)
    assert (response.status_code, response.location) == (303, "/")
    assert response.headers["Cache-Control"] == "no-store"
    assert client.get("/who").text == "nobody"
    assert [event["claims"]["sub"] for event in events] == ["alice"]
    assert len(local.provider.requests_to("revocation")) == 1


def test_i2_with_the_revocation_endpoint_down_the_next_logout_revokes(local: Site) -> None:
    first, second = signed_in(local), local.client()
    local.sign_in(second, account="bob")
    local.provider.fault("revocation", status=503)
    assert first.post("/oidc/logout", headers=HERE).location == "/"
    assert first.get("/who").text == "nobody"
    assert second.post("/oidc/logout", headers=HERE).location == "/"
    statuses = [record["status"] for record in local.provider.requests_to("revocation")]
    assert statuses[1:] == [200, 200]  # the first one was the fault's


def test_i2_a_silent_revocation_endpoint_does_not_hold_up_the_logout(local: Site) -> None:
    client = signed_in(local)
    local.provider.hold("revocation", "before")
    assert client.post("/oidc/logout", headers=HERE).location == "/"
    assert client.get("/who").text == "nobody"
    local.provider.release()


def test_revocation_can_be_switched_off(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_REVOKE_ON_LOGOUT=False, ATM_LOGOUT_AT_PROVIDER=False)
    signed_in(site).post("/oidc/logout", headers=HERE)
    assert oidc.requests_to("revocation") == []


# -- I3: who asks


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.com"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://evil.localhost"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.com"},
    ],
)
def test_i3_a_logout_from_elsewhere_is_refused(site: Site, headers: dict[str, str]) -> None:
    client = signed_in(site)
    response = client.post("/oidc/logout", headers=headers, data={"token": "x", "next": "/"})
    assert response.status_code == 403
    assert cookies(response, "session") == []
    assert client.get("/who").text == "alice"


def test_i3_a_get_only_asks(site: Site) -> None:
    client = signed_in(site)
    response = client.get("/oidc/logout?next=/bye&evil=1", headers=PAGE)
    assert response.status_code == 200
    assert '<form method="post" action="/oidc/logout">' in response.text
    assert 'name="next" value="/bye"' in response.text
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
    assert client.get("/who").text == "alice"


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}]
)
def test_i3_a_page_of_ours_may_sign_out(local: Site, headers: dict[str, str]) -> None:
    client = signed_in(local)
    assert client.post("/oidc/logout", headers=headers).status_code == 303
    assert client.get("/who").text == "nobody"


def form_token(client: Any) -> str:
    text = client.get("/oidc/logout").text
    return str(text.partition('name="token" value="')[2].partition('"')[0])


def test_i3_a_form_may_sign_out_these_sign_ins_only(local: Site) -> None:
    alice, mallory = signed_in(local), local.client()
    local.sign_in(mallory, account="mallory")
    token = form_token(mallory)
    assert alice.post("/oidc/logout", data={"token": token}).status_code == 403
    assert alice.post("/oidc/logout", data={"token": form_token(alice)}).status_code == 303
    assert alice.get("/who").text == "nobody"


def test_logout_goes_to_next_or_after_logout(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_LOGOUT_AT_PROVIDER=False, ATM_AFTER_LOGOUT="who")
    for next_url, landed in [("/bye", "/bye"), ("//evil.com", "/who"), ("", "/who")]:
        client = signed_in(site)
        response = client.post("/oidc/logout", headers=HERE, data={"next": next_url})
        assert response.location == landed


# -- at the provider


def test_i3_logout_at_the_provider_and_back(site: Site) -> None:
    browser = site.browser()
    browser.open("/me")
    response = browser.client.post("/oidc/logout", headers=HERE, data={"next": "/bye"})
    assert response.location.startswith(f"{site.provider.issuer}/session/end?")
    query = query_of(response.location)
    assert query["client_id"] == site.registration.client_id
    assert query["post_logout_redirect_uri"] == "http://localhost/oidc/logged-out"
    assert query["id_token_hint"].count(".") == 2
    assert browser.client.get("/who").text == "nobody"
    # Revoking first would break the logout of others at some servers.
    assert site.provider.requests_to("revocation") == []
    back = browser.follow(response.location)
    assert (back.status_code, back.location) == (302, "/bye")
    assert len(site.provider.requests_to("revocation")) == 1
    # The session at the provider is over too.
    assert browser.follow(site.begin(browser.client)).location == "/me"
    assert len(site.provider.requests_to("interaction")) == 2


def test_i3_coming_back_without_the_state_does_nothing(site: Site) -> None:
    client = signed_in(site)
    state = query_of(client.post("/oidc/logout", headers=HERE, data={"next": "/bye"}).location)[
        "state"
    ]
    for path in ("/oidc/logged-out", "/oidc/logged-out?state=other"):
        assert client.get(path).location == "/"
    assert site.client().get(f"/oidc/logged-out?state={state}").location == "/"
    assert site.provider.requests_to("revocation") == []
    assert client.get(f"/oidc/logged-out?state={state}").location == "/bye"
    assert len(site.provider.requests_to("revocation")) == 1
    assert client.get(f"/oidc/logged-out?state={state}").location == "/"


def test_who_does_not_come_back_is_revoked_after_a_minute(oidc: OIDCServer) -> None:
    clock = FakeClock()
    site = make_site(oidc, atm={"clock": clock})
    signed_in(site).post("/oidc/logout", headers=HERE)
    for seconds, revoked in [(59, 0), (2, 1)]:
        clock.advance(seconds)
        with site.app.app_context():
            site.state.provider("oidc").tokens.outbox.drain()
        assert len(oidc.requests_to("revocation")) == revoked


def test_an_id_token_of_almost_4_kb_goes_along(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    oidc.fault("token", id_token={"claims": {"groups": ["g" * 20] * 90}})
    client = signed_in(site)
    response = client.post("/oidc/logout", headers=HERE, data={"next": "/bye"})
    hint = query_of(response.location)["id_token_hint"]
    assert 3000 < len(hint) <= 4096
    # The provider takes it, and sends the browser back.
    back = urlsplit(oidc.visit(response.location).url)
    assert client.get(f"{back.path}?{back.query}").location == "/bye"


def test_a_long_id_token_is_left_out(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    oidc.fault("token", id_token={"claims": {"groups": ["g" * 20] * 200}})
    location = signed_in(site).post("/oidc/logout", headers=HERE).location
    query = query_of(location)
    assert "id_token_hint" not in query
    assert query["client_id"] == site.registration.client_id


def test_without_the_provider_the_logout_is_local(oidc: OIDCServer) -> None:
    oidc.settings(metadata={"end_session_endpoint": None})
    site = make_site(oidc)
    client = signed_in(site)
    assert client.post("/oidc/logout", headers=HERE).location == "/"
    assert len(oidc.requests_to("revocation")) == 1


# -- what goes and what stays


def test_connected_accounts_stay(oidc: OIDCServer) -> None:
    keys, _ = provider_settings(oidc, "http://localhost/oidc/callback/github")
    site = make_site(
        oidc,
        ATM_LOGOUT_AT_PROVIDER=False,
        ATM_PROVIDERS={"github": {**keys, "sign_in": False, "scope": "openid"}},
    )
    client = signed_in(site)
    site.sign_in(client, "/oidc/login/github")
    client.get("/basket")
    client.post("/oidc/logout", headers=HERE)
    with client.session_transaction() as left:
        assert set(left["_atm"]) == {"github"}
        assert left["basket"] == "full"


def test_one_of_several_sign_ins(oidc: OIDCServer) -> None:
    keys, _ = provider_settings(oidc, "http://localhost/oidc/callback/other")
    site = make_site(
        oidc,
        ATM_PROVIDERS={"other": {**keys, "logout_at_provider": False}},
        ATM_LOGOUT_AT_PROVIDER=False,
    )
    client = signed_in(site)
    site.sign_in(client, "/oidc/login/other")
    with client.session_transaction() as known:
        handles = dict(known["_atm"])
    with site.app.test_request_context():
        session["_atm"] = handles
        assert site.atm.logout("/bye", provider="other").location == "/bye"
        assert set(session["_atm"]) == {"oidc"}
    assert client.get("/who").text == "alice"
    client.post("/oidc/logout", headers=HERE)
    with client.session_transaction() as left:
        assert "_atm" not in left


def test_nobody_can_sign_out_too(site: Site) -> None:
    assert site.client().post("/oidc/logout", headers=HERE).location == "/"


class Failing(MemoryStore):
    """A store that can be made to refuse deletion."""

    fails = False

    def delete(self, *args: Any, **kwargs: Any) -> bool:
        if self.fails:
            raise StoreError("down")
        return super().delete(*args, **kwargs)


def test_with_the_store_down_the_browser_is_signed_out_all_the_same(
    oidc: OIDCServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = Failing()
    site = make_site(oidc, atm={"store": store}, ATM_LOGOUT_AT_PROVIDER=False)
    client = signed_in(site)
    store.fails = True
    assert client.post("/oidc/logout", headers=HERE).location == "/"
    assert client.get("/who").text == "nobody"
    assert "not removed from the store" in caplog.text


# -- revoke_grant


def test_revoke_grant_takes_parameters_of_the_revocation(site: Site) -> None:
    client = signed_in(site)
    with client.session_transaction() as known:
        handle = known["_atm"]["oidc"]
    grant_id = f"oidc.{handle.partition('.')[2]}"
    with site.app.app_context():
        with pytest.raises(TypeError, match="extra"):
            site.atm.revoke_grant(grant_id, extra={"why": 1})
        site.atm.revoke_grant(grant_id, extra={"why": "left"})
    (sent,) = site.provider.requests_to("revocation")
    assert "why" in sent["parameters"]
    assert sent["status"] == 200


def test_revoke_grant_ends_it_here_and_there(site: Site) -> None:
    client = signed_in(site)
    with client.session_transaction() as known:
        handle = known["_atm"]["oidc"]
    grant_id = f"oidc.{handle.partition('.')[2]}"
    with site.app.app_context():
        site.atm.revoke_grant(grant_id)
        site.atm.revoke_grant(grant_id)
    assert len(site.provider.requests_to("revocation")) == 1
    assert client.get("/who").text == "nobody"


def test_revoke_grant_of_the_browser(site: Site) -> None:
    client = signed_in(site)
    with client.session_transaction() as known:
        value = known["_atm"]
    with site.app.test_request_context():
        session["_atm"] = value
        site.atm.revoke_grant()
        assert "_atm" not in session
        site.atm.revoke_grant()  # without a grant there is nothing to do
    with site.app.app_context(), pytest.raises(LoginRequired, match="use_grant"):
        site.atm.revoke_grant()


def test_a_server_without_revocation_is_no_problem(oidc: OIDCServer) -> None:
    oidc.settings(
        metadata={"revocation_endpoint": None}, oauth_metadata={"revocation_endpoint": None}
    )
    site = make_site(oidc, ATM_LOGOUT_AT_PROVIDER=False)
    assert signed_in(site).post("/oidc/logout", headers=HERE).location == "/"


def test_the_end_session_endpoint_may_have_a_query(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_END_SESSION_ENDPOINT=f"{oidc.issuer}/session/end?policy=b2c")
    location = signed_in(site).post("/oidc/logout", headers=HERE).location
    assert query_of(location)["policy"] == "b2c"
    assert urlsplit(location).path == "/session/end"
    assert json.dumps(query_of(location)).count("client_id") == 1


def test_without_routes_the_provider_sends_nobody_back(oidc: OIDCServer) -> None:
    with FaultyServer(default=Reply(200, {})):
        site = make_site(oidc, ATM_ROUTES=False)
    with site.app.test_request_context():
        assert site.atm.logout().location == "/"
