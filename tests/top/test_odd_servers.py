"""Sign-ins and sign-outs at providers that say odd things, or nothing."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from flask_atm.errors import ProtocolError, ServerUnavailable
from flask_atm.grants.vault import record_key
from flask_atm.testing import FakeClock
from flask_atm.tokens import TokenParameters
from tests.servers import OIDCServer

from .support import HERE, PAGE, make_site, provider_settings, query_of

# -- the token endpoint answers the code


@pytest.mark.parametrize(
    ("patch", "text"),
    [
        ({"access_token": None}, "no access token"),
        ({"access_token": 5}, "no access token"),
        ({"id_token": "no.id.token"}, "ID token"),
        ({"id_token": 5}, "no ID token"),
    ],
    ids=str,
)
def test_an_answer_that_is_none_is_a_failed_sign_in(
    oidc: OIDCServer, patch: dict[str, Any], text: str
) -> None:
    site = make_site(oidc)
    oidc.fault("token", patch=patch)
    client = site.client()
    response = site.sign_in(client)
    assert response.status_code == 400
    assert text in response.text
    assert client.get("/who").text == "nobody"
    assert site.sign_in(client).location == "/me"


@pytest.mark.parametrize("fault", [{"cut": True}, {"status": 502, "body": "<html>"}], ids=str)
def test_no_answer_is_no_failed_sign_in(oidc: OIDCServer, fault: dict[str, Any]) -> None:
    site = make_site(oidc)
    oidc.fault("token", **fault)
    client = site.client()
    response = site.sign_in(client)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert client.get("/who").text == "nobody"


def test_keys_that_cannot_be_had_mean_come_back_later(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    oidc.fault("jwks", status=503, times=None)
    client = site.client()
    assert site.sign_in(client).status_code == 503
    assert client.get("/who").text == "nobody"


def test_a_key_that_nobody_knows_is_a_failed_sign_in(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    oidc.fault("token", id_token={"header": {"kid": "nobody's"}})
    client = site.client()
    assert site.sign_in(client).status_code == 400
    assert client.get("/who").text == "nobody"


# -- userinfo


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"status": 503}, 503),
        ({"status": 429}, 503),
        ({"cut": True}, 503),
        ({"status": 403, "body": {"error": "no"}}, 400),
        ({"status": 200, "body": "<html>"}, 400),
        ({"status": 200, "body": "[]"}, 400),
        ({"status": 302, "headers": {"Location": "/elsewhere"}}, 400),
    ],
    ids=str,
)
def test_userinfo_that_is_none_signs_nobody_in(
    oidc: OIDCServer, fault: dict[str, Any], status: int
) -> None:
    site = make_site(oidc, ATM_USERINFO=True)
    oidc.fault("userinfo", **fault)
    client = site.client()
    assert site.sign_in(client).status_code == status
    assert client.get("/who").text == "nobody"
    assert site.sign_in(client).location == "/me"


@pytest.mark.parametrize("missing", ["userinfo_endpoint", "authorization_endpoint"])
def test_metadata_without_an_endpoint_that_is_needed_name_the_cure(
    oidc: OIDCServer, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    oidc.settings(metadata={missing: None}, oauth_metadata={missing: None})
    site = make_site(oidc, ATM_USERINFO=True)
    client = site.client()
    response = client.get("/oidc/login", headers=PAGE)
    if missing == "userinfo_endpoint":
        response = client.get(site.answer(response.location), headers=PAGE)
    assert response.status_code == 502
    assert f"ATM_{missing.upper()}" in caplog.text
    assert client.get("/who").text == "nobody"


# -- what is asked for


def test_parameters_of_every_kind_are_written_as_servers_read_them(oidc: OIDCServer) -> None:
    site = make_site(oidc)
    details = [{"type": "payment", "amount": 1}]
    with site.app.test_request_context():
        url = site.atm.login(
            authorization_details=details, acr_values=["gold", "silver"], flag=True, off=False
        ).location
    query = parse_qs(urlsplit(url).query)
    assert query["authorization_details"] == ['[{"type":"payment","amount":1}]']
    assert (query["acr_values"], query["flag"], query["off"]) == (
        ["gold silver"],
        ["true"],
        ["false"],
    )


@pytest.mark.parametrize("max_age", ["soon", "-1", "1.5", ""])
def test_a_max_age_that_is_no_number_of_seconds_is_refused(oidc: OIDCServer, max_age: str) -> None:
    site = make_site(oidc)
    with site.app.test_request_context(), pytest.raises(ValueError, match="max_age"):
        site.atm.login(max_age=max_age)


# -- sign-out


def test_a_provider_that_is_gone_from_the_configuration_is_left_too(oidc: OIDCServer) -> None:
    other, _ = provider_settings(oidc, "http://localhost/oidc/callback/other")
    site = make_site(oidc, ATM_PROVIDERS={"other": other}, ATM_LOGOUT_AT_PROVIDER=False)
    client = site.client()
    site.sign_in(client)
    site.sign_in(client, "/oidc/login/other", account="bob")
    later = make_site(oidc, ATM_LOGOUT_AT_PROVIDER=False, atm={"store": site.state.store})
    browser = later.client()
    with client.session_transaction() as before, browser.session_transaction() as after:
        after["_atm"] = before["_atm"]
    assert browser.post("/oidc/logout", headers=HERE).location == "/"
    with browser.session_transaction() as left:
        assert "_atm" not in left


def test_a_provider_that_is_away_keeps_nobody_from_signing_out(
    oidc: OIDCServer, fake_clock: FakeClock
) -> None:
    site = make_site(oidc, atm={"clock": fake_clock})
    client = site.client()
    site.sign_in(client)
    # Another process, which has no metadata yet.
    other = make_site(
        oidc,
        atm={"clock": fake_clock, "store": site.state.store},
        ATM_CLIENT_ID=site.registration.client_id,
        ATM_CLIENT_SECRET=site.registration.client_secret,
    )
    browser = other.client()
    with client.session_transaction() as before, browser.session_transaction() as after:
        after["_atm"] = before["_atm"]
    oidc.stop_listening()
    response = browser.post("/oidc/logout", headers=HERE)
    assert (response.status_code, response.location) == (303, "/")
    assert client.get("/who").text == "nobody"
    # What is to be revoked waits until the provider is back.
    oidc.listen()
    fake_clock.advance(100)
    assert site.state.provider().tokens.outbox.drain().revoked == 1
    assert len(oidc.requests_to("revocation")) == 1


def test_without_an_external_url_the_provider_is_left_without_a_way_back(
    oidc: OIDCServer, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(oidc)
    client = site.client()
    site.sign_in(client)
    headers = {"Sec-Fetch-Site": "same-origin", "Host": "nobody.example"}
    with client.session_transaction() as kept:
        handles = kept["_atm"]
    with site.app.test_request_context("/", headers=headers) as context:
        context.session["_atm"] = handles
        query = query_of(site.atm.logout().location)
    assert query["client_id"] == site.registration.client_id
    assert not {"post_logout_redirect_uri", "state"} & set(query)
    assert "cannot send browsers back" in caplog.text


def test_an_entry_of_the_outbox_that_does_not_open_is_kept(
    oidc: OIDCServer, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(oidc, ATM_LOGOUT_AT_PROVIDER=False)
    oidc.fault("revocation", status=503, times=None)
    client = site.client()
    site.sign_in(client)
    client.post("/oidc/logout", headers=HERE)
    oidc.clear_faults()
    oidc.reset()
    # The key that has sealed it is gone for a while.
    stranger = make_site(oidc, atm={"store": site.state.store}, SECRET_KEY="another " * 6)
    assert stranger.state.provider().tokens.outbox.drain().revoked == 0
    assert oidc.requests_to("revocation") == []
    assert site.state.provider().tokens.outbox.drain().revoked == 1
    assert len(oidc.requests_to("revocation")) == 1


def test_a_record_that_does_not_open_is_removed_at_sign_out(oidc: OIDCServer) -> None:
    site = make_site(oidc, ATM_LOGOUT_AT_PROVIDER=False)
    client = site.client()
    site.sign_in(client)
    with client.session_transaction() as kept:
        key = record_key(f"oidc.{kept['_atm']['oidc'].partition('.')[2]}")
    store = site.state.store
    stored = store.read(key)
    assert stored is not None
    assert store.update(key, b"garbage", expected_version=stored.control.version) == "ok"
    assert client.get("/who").text == "nobody"
    assert client.post("/oidc/logout", headers=HERE).location == "/"
    left = store.read(key)
    assert left is None or left.control.tombstone


# -- tokens of the application


def test_metadata_without_a_token_endpoint_name_the_cure(oidc: OIDCServer) -> None:
    missing = {"token_endpoint": None}
    oidc.settings(metadata=missing, oauth_metadata=missing)
    site = make_site(oidc)
    with site.app.app_context():
        with pytest.raises(ProtocolError, match="ATM_TOKEN_ENDPOINT"):
            site.atm.get_client_token()
        with pytest.raises((ProtocolError, ServerUnavailable)):
            site.state.provider().client_tokens.get(TokenParameters())
