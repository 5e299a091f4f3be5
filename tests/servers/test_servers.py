"""The servers of the tests do what they say."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import os
import pickle
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from . import (
    ClientRegistration,
    CloseIdle,
    Cut,
    Drip,
    FaultyServer,
    Flood,
    GzipBomb,
    Hang,
    Held,
    OIDCError,
    OIDCRemote,
    OIDCServer,
    Raw,
    Reply,
    RotatingTokenServer,
    redirect,
    refusing_url,
    respond,
    silent_url,
)
from .oidc import install, new_session, sha256

A, B, C = "https://api.example/a", "https://api.example/b", "https://api.example/c"
CALLBACK = "http://localhost:5000/oidc/callback"
LOGGED_OUT = "http://localhost:5000/oidc/logged-out"


@pytest.fixture(scope="module")
def shared() -> Iterator[OIDCServer]:
    with OIDCServer() as server:
        yield server


@pytest.fixture
def server(shared: OIDCServer) -> OIDCServer:
    shared.pristine()
    return shared


@pytest.fixture
def client(server: OIDCServer) -> ClientRegistration:
    return server.add_client(CALLBACK, post_logout_redirect_uris=[LOGGED_OUT])


def call_api(server: OIDCRemote, token: str, path: str = "/invoices") -> requests.Response:
    with new_session() as session:
        headers = {"Authorization": f"Bearer {token}"}
        return session.get(server.api_url + path, headers=headers, timeout=10)


def claims(token: str) -> dict[str, Any]:
    decoded: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return decoded


def verified(server: OIDCRemote, id_token: str, client: ClientRegistration) -> dict[str, Any]:
    keys = jwt.PyJWKClient(server.metadata()["jwks_uri"])
    key = keys.get_signing_key_from_jwt(id_token)
    decoded: dict[str, Any] = jwt.decode(
        id_token, key, ["RS256"], audience=client.client_id, issuer=server.issuer
    )
    return decoded


class Prover:
    """A DPoP key."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())

    def __call__(self, method: str, url: str, nonce: str | None, token: str | None = None) -> str:
        payload = {"htm": method, "htu": url, "iat": int(time.time()), "jti": os.urandom(8).hex()}
        if nonce:
            payload["nonce"] = nonce
        if token:
            digest = hashlib.sha256(token.encode()).digest()
            payload["ath"] = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return jwt.encode(payload, self.key, "ES256", {"typ": "dpop+jwt", "jwk": jwk})


# ---- oidc-provider: signing in


def test_signing_in_directly_gives_a_grant_of_the_chosen_account(
    server: OIDCServer, client: ClientRegistration
) -> None:
    tokens = server.sign_in_directly(client, account="bob", nonce="n-1", scope="openid email read")

    assert tokens["token_type"] == "Bearer"
    assert tokens["expires_in"] == 300
    assert set(tokens) >= {"access_token", "refresh_token", "id_token", "scope"}
    found = verified(server, tokens["id_token"], client)
    assert (found["sub"], found["email"], found["nonce"]) == ("bob", "bob@example.com", "n-1")


def test_the_default_account_and_its_claims_are_settings(
    server: OIDCServer, client: ClientRegistration
) -> None:
    server.settings(
        account="carol",
        accounts={"carol": {"name": "Carol the Great"}},
        id_token_claims={"https://example.com/roles": ["admin"]},
    )

    found = claims(server.sign_in_directly(client)["id_token"])

    assert (found["sub"], found["name"]) == ("carol", "Carol the Great")
    assert found["https://example.com/roles"] == ["admin"]


def test_another_account_may_sign_in_within_the_same_browser(
    server: OIDCServer, client: ClientRegistration
) -> None:
    with new_session() as browser:
        subjects = [
            claims(server.sign_in_directly(client, session=browser, account=name)["id_token"])[
                "sub"
            ]
            for name in ("alice", "bob")
        ]
        again = claims(server.sign_in_directly(client, session=browser)["id_token"])["sub"]

    assert subjects == ["alice", "bob"]
    assert again == "bob"


def authorize_url(server: OIDCServer, client: ClientRegistration, **parameters: str) -> str:
    query = {
        "client_id": client.client_id,
        "response_type": "code",
        "scope": "openid",
        "state": "s",
        "code_challenge": "a" * 43,
        "code_challenge_method": "S256",
        "redirect_uri": CALLBACK,
    }
    request = requests.Request("GET", f"{server.issuer}/auth", params=query | parameters)
    return request.prepare().url or ""


def test_the_callback_carries_state_and_issuer(
    server: OIDCServer, client: ClientRegistration
) -> None:
    visit = server.visit(authorize_url(server, client))

    assert visit.url.startswith(CALLBACK)
    assert visit.parameters.keys() == {"code", "state", "iss"}
    assert visit.parameters["iss"] == server.issuer


def test_the_callback_may_be_posted(server: OIDCServer, client: ClientRegistration) -> None:
    visit = server.visit(authorize_url(server, client, response_mode="form_post"))

    assert visit.url == CALLBACK
    assert visit.form is not None
    assert visit.form.keys() == {"code", "state", "iss"}


def test_prompt_none_without_a_session_is_an_error(
    server: OIDCServer, client: ClientRegistration
) -> None:
    visit = server.visit(authorize_url(server, client, prompt="none"))

    assert visit.parameters["error"] == "login_required"


def test_the_user_may_refuse(server: OIDCServer, client: ClientRegistration) -> None:
    server.settings(interaction_error={"error": "access_denied", "error_description": "no"})

    visit = server.visit(authorize_url(server, client))

    assert visit.parameters["error"] == "access_denied"


def test_the_user_may_deny_a_scope(server: OIDCServer, client: ClientRegistration) -> None:
    server.settings(denied_scopes=["write"])

    tokens = server.sign_in_directly(client, scope="openid read write", resource=A)

    assert tokens["scope"] == "read"


def test_the_asked_for_acr_is_in_the_id_token(
    server: OIDCServer, client: ClientRegistration
) -> None:
    parameters = {"acr_values": "urn:example:mfa", "max_age": "60"}
    tokens = server.sign_in_directly(client, authorize_parameters=parameters)

    found = claims(tokens["id_token"])
    assert found["acr"] == "urn:example:mfa"
    assert found["auth_time"] == pytest.approx(time.time(), abs=5)


def test_a_page_that_stays_at_the_provider_is_returned(server: OIDCServer) -> None:
    visit = server.visit(f"{server.issuer}/auth?client_id=nobody")

    assert visit.response is not None
    assert visit.response.status_code == 400
    assert "invalid_client" in visit.response.text


# ---- oidc-provider: refresh


def test_a_refresh_rotates(server: OIDCServer, client: ClientRegistration) -> None:
    first = server.sign_in_directly(client)

    second = server.refresh(client, first["refresh_token"]).json()
    third = server.refresh(client, second["refresh_token"])

    assert second["refresh_token"] != first["refresh_token"]
    assert third.status_code == 200


def test_a_replay_kills_the_grant_and_is_counted(
    server: OIDCServer, client: ClientRegistration
) -> None:
    first = server.sign_in_directly(client, resource=A, scope="openid read")
    second = server.refresh(client, first["refresh_token"], resource=A).json()

    replay = server.refresh(client, first["refresh_token"])
    after = server.refresh(client, second["refresh_token"])

    assert (replay.status_code, replay.json()["error"]) == (400, "invalid_grant")
    assert (after.status_code, after.json()["error"]) == (400, "invalid_grant")
    assert call_api(server, second["access_token"]).status_code == 401
    stats = server.stats()
    assert stats["replays"] == 1
    assert stats["refresh_tokens_sent_twice"] == 1
    assert stats["tokens"][client.client_id]["refresh_token"]["count"] == 3
    assert any(entry.get("detail") == "refresh token already used" for entry in server.log())


def test_parallel_refreshes_with_one_token_leave_the_grant_dead(
    server: OIDCServer, client: ClientRegistration
) -> None:
    token = server.sign_in_directly(client)["refresh_token"]
    server.latency(token=0.1)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.refresh(client, token), range(8)))

    server.latency(token=0)
    good = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(good) == 1
    assert server.refresh(client, good[0]["refresh_token"]).status_code == 400
    assert server.stats()["max_in_flight_same_refresh_token"] > 1
    assert server.stats()["max_in_flight"]["token"] > 1


def test_rotation_can_be_switched_off(server: OIDCServer, client: ClientRegistration) -> None:
    server.settings(rotate=False)
    token = server.sign_in_directly(client)["refresh_token"]

    answers = [server.refresh(client, token) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].json()["refresh_token"] == token


def test_one_refresh_token_serves_several_resources(
    server: OIDCServer, client: ClientRegistration
) -> None:
    tokens = server.sign_in_directly(client, scope="openid read", resource=[A, B, C])
    token = tokens["refresh_token"]
    audiences = []
    for resource in (A, B, C):
        answer = server.refresh(client, token, resource=resource).json()
        audiences.append(call_api(server, answer["access_token"]).json()["aud"])
        token = answer["refresh_token"]

    assert audiences == [A, B, C]
    assert [record["resource"] for record in server.token_requests()] == [[], [A], [B], [C]]


def test_an_ungranted_resource_burns_the_refresh_token(
    server: OIDCServer, client: ClientRegistration
) -> None:
    token = server.sign_in_directly(client, scope="openid read", resource=A)["refresh_token"]

    refused = server.refresh(client, token, resource=B)
    after = server.refresh(client, token, resource=A)

    assert refused.json()["error"] == "invalid_target"
    assert after.json()["error"] == "invalid_grant"


def test_refreshes_may_leave_the_id_token_out(
    server: OIDCServer, client: ClientRegistration
) -> None:
    server.settings(id_token_on_refresh=False)
    token = server.sign_in_directly(client)["refresh_token"]

    assert "id_token" not in server.refresh(client, token).json()


def test_refresh_tokens_may_need_offline_access(
    server: OIDCServer, client: ClientRegistration
) -> None:
    server.settings(refresh_tokens="offline_access")

    assert "refresh_token" not in server.sign_in_directly(client, scope="openid")
    asked = server.sign_in_directly(client, authorize_parameters={"prompt": "consent"})
    assert "refresh_token" in asked


def test_the_clock_can_be_moved(server: OIDCServer, client: ClientRegistration) -> None:
    server.settings(refresh_token_ttl=1000)
    tokens = server.sign_in_directly(client, scope="openid read", resource=A)

    server.advance(290)
    assert call_api(server, tokens["access_token"]).status_code == 200
    server.advance(11)
    late = call_api(server, tokens["access_token"])
    server.advance(700)

    assert late.status_code == 401
    assert late.headers["WWW-Authenticate"].startswith('Bearer realm="api", error="invalid_token"')
    assert server.now() == pytest.approx(time.time() + 1001, abs=1)
    assert server.refresh(client, tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert server.log()[-1]["detail"] == "refresh token is expired"
    date = server.refresh(client, "x").headers["Date"]
    assert date[-12:-10] == time.strftime("%H", time.gmtime(time.time() + 1001))


# ---- oidc-provider: faults


def test_a_fault_before_processing_spends_nothing(
    server: OIDCServer, client: ClientRegistration
) -> None:
    token = server.sign_in_directly(client)["refresh_token"]
    server.fault("token", status=503, headers={"Retry-After": "7"}, body={"error": "busy"})

    refused = server.refresh(client, token)

    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "7")
    assert refused.json() == {"error": "busy"}
    assert server.refresh(client, token).status_code == 200


def test_an_answer_lost_after_processing_makes_the_retry_a_replay(
    server: OIDCServer, client: ClientRegistration
) -> None:
    token = server.sign_in_directly(client)["refresh_token"]
    server.fault("token", cut=True, when="after")

    with pytest.raises(requests.ConnectionError):
        server.refresh(client, token)

    assert server.refresh(client, token).status_code == 400
    assert server.stats()["replays"] == 1


def test_an_answer_can_be_cut_in_its_body(server: OIDCServer, client: ClientRegistration) -> None:
    token = server.sign_in_directly(client)["refresh_token"]
    server.fault("token", cut="body")

    with pytest.raises(requests.RequestException):
        server.refresh(client, token)

    assert server.token_requests()[-1]["status"] == 200


def test_members_of_the_true_answer_can_be_changed(
    server: OIDCServer, client: ClientRegistration
) -> None:
    token = server.sign_in_directly(client)["refresh_token"]
    server.fault("token", patch={"expires_in": "abc", "id_token": None})

    answer = server.refresh(client, token).json()

    assert answer["expires_in"] == "abc"
    assert "id_token" not in answer
    assert server.refresh(client, answer["refresh_token"]).status_code == 200


def test_the_true_id_token_can_be_changed_and_signed_again(
    server: OIDCServer, client: ClientRegistration
) -> None:
    token = server.sign_in_directly(client)["refresh_token"]
    server.fault("token", id_token={"claims": {"sub": "mallory", "email": None}})

    found = verified(server, server.refresh(client, token).json()["id_token"], client)

    assert found["sub"] == "mallory"
    assert "email" not in found


def test_faults_can_be_aimed_repeated_and_taken_back(
    server: OIDCServer, client: ClientRegistration
) -> None:
    other = server.add_client()
    match = {"client_id": other.client_id}
    server.fault("token", status=500, times=None, skip=1, match=match)

    mine = server.token_request(client, grant_type="client_credentials")
    theirs = [server.token_request(other, grant_type="client_credentials") for _ in range(4)]
    server.clear_faults()

    assert mine.status_code == 200
    assert [answer.status_code for answer in theirs] == [200, 500, 500, 500]
    assert server.token_request(other, grant_type="client_credentials").status_code == 200


def test_a_delay_counts_as_in_flight(server: OIDCServer, client: ClientRegistration) -> None:
    server.latency(token=0.2)
    begin = time.monotonic()

    with ThreadPoolExecutor(3) as pool:
        kind = "client_credentials"
        list(pool.map(lambda _: server.token_request(client, grant_type=kind), range(3)))

    assert time.monotonic() - begin >= 0.2
    assert server.stats()["tokens"][client.client_id][kind] == {
        "count": 3,
        "errors": {},
        "max_in_flight": 3,
    }


def test_token_answers_can_be_held_and_released_one_by_one(
    server: OIDCServer, client: ClientRegistration
) -> None:
    server.hold_token_answers()
    with ThreadPoolExecutor(2) as pool:
        ask = [
            pool.submit(server.token_request, client, grant_type="client_credentials")
            for _ in range(2)
        ]
        assert server.wait_held(2) == 2
        assert not any(one.done() for one in ask)

        assert server.release(1) == 1
        server.wait_requests(1, ended=True)
        assert server.wait_held(1) == 1
        assert server.release() == 1

        assert [one.result().status_code for one in ask] == [200, 200]
    assert server.token_request(client, grant_type="client_credentials").status_code == 200


def test_a_client_that_gives_up_is_noticed_and_its_answer_released(
    server: OIDCServer, client: ClientRegistration
) -> None:
    server.hold_token_answers()
    headers, _ = client.credentials()
    form = {"grant_type": "client_credentials"}
    with new_session() as session, pytest.raises(requests.ReadTimeout):
        session.post(f"{server.issuer}/token", form, headers=headers, timeout=0.2)
    server.wait_held()
    server.release()
    server.wait_requests(1, ended=True)

    (record,) = server.token_requests()
    assert (record["status"], record["client_gone"]) == (200, True)
    assert server.stats()["in_flight"]["token"] == 0


def test_everything_can_be_put_back(server: OIDCServer, client: ClientRegistration) -> None:
    server.settings(rotate=False, dpop_nonce="required", account="bob")
    server.fault("token", status=500, times=None)
    server.hold_token_answers()
    server.latency(token=60)
    server.stop_listening()

    server.pristine()

    assert server.settings()["rotate"] is True
    assert claims(server.sign_in_directly(client)["id_token"])["sub"] == "alice"
    assert server.stats()["endpoints"]["token"] == 1


def test_waiting_for_what_does_not_happen_is_an_error(server: OIDCServer) -> None:
    with pytest.raises(OIDCError, match="0 instead of 1"):
        server.wait_held(1, timeout=0.01)


def test_down_means_refused_and_back_means_the_same_port_and_memory(
    server: OIDCServer, client: ClientRegistration
) -> None:
    tokens = server.sign_in_directly(client, scope="openid read", resource=A)

    server.stop_listening()
    with pytest.raises(requests.ConnectionError, match="refused"):
        server.refresh(client, tokens["refresh_token"])
    assert call_api(server, tokens["access_token"]).status_code == 200
    server.listen()

    assert server.refresh(client, tokens["refresh_token"]).status_code == 200


def test_idle_connections_can_be_closed(server: OIDCServer) -> None:
    url = f"{server.issuer}/jwks"
    with new_session() as session:
        session.get(url, timeout=10)
        session.get(url, timeout=10)
        server.close_idle()
        session.get(url, timeout=10)

    numbers = [record["connection"] for record in server.requests_to("jwks")]
    assert numbers[0] == numbers[1] != numbers[2]


def test_grants_can_be_revoked(server: OIDCServer, client: ClientRegistration) -> None:
    hers, his = (
        server.sign_in_directly(client, account=name, scope="openid read", resource=C)
        for name in ("alice", "bob")
    )

    assert server.revoke_grants(account="alice", client=client) == 1

    assert server.refresh(client, hers["refresh_token"]).json()["error"] == "invalid_grant"
    assert call_api(server, hers["access_token"]).status_code == 401
    assert call_api(server, his["access_token"]).json()["sub"] == "bob"


def test_rotated_keys_sign_and_the_old_ones_stay_if_wanted(
    server: OIDCServer, client: ClientRegistration
) -> None:
    old = jwt.get_unverified_header(server.sign_in_directly(client)["id_token"])["kid"]

    with new_session() as session:
        kids = server.rotate_keys()
        both = session.get(f"{server.issuer}/jwks", timeout=10).json()["keys"]
        now = jwt.get_unverified_header(server.sign_in_directly(client)["id_token"])["kid"]
        server.rotate_keys(keep=False)
        only = session.get(f"{server.issuer}/jwks", timeout=10).json()["keys"]

    assert now in kids
    assert {old, now} <= {key["kid"] for key in both}
    assert {old, now}.isdisjoint({key["kid"] for key in only})


def test_the_provider_signs_what_the_test_wants(
    server: OIDCServer, client: ClientRegistration
) -> None:
    content = {"iss": server.issuer, "aud": client.client_id, "sub": "a", "exp": 4e9, "iat": 1}

    assert verified(server, server.sign(content), client)["sub"] == "a"
    assert jwt.get_unverified_header(server.sign(content, typ="logout+jwt"))["typ"] == "logout+jwt"
    assert jwt.get_unverified_header(server.sign(content, alg="none"))["alg"] == "none"
    with pytest.raises(jwt.PyJWKClientError):
        verified(server, server.sign(content, unknownKey=True), client)


def test_the_discovery_document_can_be_changed(server: OIDCServer) -> None:
    server.settings(metadata={"revocation_endpoint": None, "require_anything": True})

    document = server.metadata()
    other = get(f"{server.issuer}/.well-known/oauth-authorization-server").json()

    assert "revocation_endpoint" not in document
    assert document["require_anything"] is True
    assert "revocation_endpoint" in other
    assert document["authorization_response_iss_parameter_supported"] is True


def test_an_unknown_setting_or_bad_client_is_an_error(server: OIDCServer) -> None:
    with pytest.raises(OIDCError, match="no such setting: rotat"):
        server.settings(rotat=True)
    with pytest.raises(OIDCError, match="redirect_uris"):
        server.add_client("not a URL")


# ---- oidc-provider: other endpoints


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post", "none"])
def test_clients_authenticate_in_their_way(server: OIDCServer, method: str) -> None:
    client = server.add_client(CALLBACK, token_endpoint_auth_method=method)

    assert "access_token" in server.sign_in_directly(client)
    assert server.token_requests()[-1]["client_id"] == client.client_id


def test_client_assertions_are_used_once(server: OIDCServer) -> None:
    client = server.add_client(token_endpoint_auth_method="client_secret_jwt")
    now = int(time.time())
    content: dict[str, Any] = {"iss": client.client_id, "sub": client.client_id, "jti": "once"}
    content |= {"aud": server.issuer, "iat": now, "exp": now + 60}
    assertion = jwt.encode(content, client.client_secret or "", "HS256")

    answers = [
        server.token_request(
            client,
            grant_type="client_credentials",
            client_assertion_type="urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            client_assertion=assertion,
        )
        for _ in range(2)
    ]

    assert [answer.status_code for answer in answers] == [200, 401]
    assert {record["client_id"] for record in server.token_requests()} == {client.client_id}


def test_a_private_key_authenticates(server: OIDCServer) -> None:
    prover = Prover()
    jwk = jwt.algorithms.ECAlgorithm.to_jwk(prover.key.public_key(), as_dict=True)
    client = server.add_client(
        CALLBACK, token_endpoint_auth_method="private_key_jwt", jwks={"keys": [jwk]}
    )
    now = int(time.time())
    content: dict[str, Any] = {"iss": client.client_id, "sub": client.client_id, "jti": "j"}
    content |= {"aud": f"{server.issuer}/token", "iat": now, "exp": now + 60}
    assertion = {
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": jwt.encode(content, prover.key, "ES256"),
    }

    assert client.client_secret is None
    assert "access_token" in server.sign_in_directly(client, token_parameters=assertion)


def test_client_credentials_are_for_the_resource(server: OIDCServer) -> None:
    client = server.add_client()

    answer = server.token_request(
        client, grant_type="client_credentials", scope="read", resource=B
    ).json()

    told = call_api(server, answer["access_token"]).json()
    assert (told["sub"], told["aud"], told["scope"]) == (client.client_id, B, "read")


def test_introspection_and_revocation_are_counted(
    server: OIDCServer, client: ClientRegistration
) -> None:
    tokens = server.sign_in_directly(client, scope="openid read", resource=C)

    def active() -> bool:
        answer = server.token_request(
            client, endpoint="token/introspection", token=tokens["access_token"]
        )
        return bool(answer.json()["active"])

    assert active()
    server.token_request(client, endpoint="token/revocation", token=tokens["refresh_token"])
    assert not active()

    assert server.stats()["endpoints"]["introspection"] == 2
    (record,) = server.requests_to("revocation")
    assert record["token_sha256"] == sha256(tokens["refresh_token"])


def test_userinfo_answers_a_token_without_resource(
    server: OIDCServer, client: ClientRegistration
) -> None:
    tokens = server.sign_in_directly(client)

    with new_session() as session:
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        told = session.get(f"{server.issuer}/me", headers=headers, timeout=10).json()

    assert (told["sub"], told["email"]) == ("alice", "alice@example.com")


def test_logout_at_the_provider_comes_back_and_ends_the_session(
    server: OIDCServer, client: ClientRegistration
) -> None:
    with new_session() as browser:
        tokens = server.sign_in_directly(client, session=browser)
        query = {
            "id_token_hint": tokens["id_token"],
            "client_id": client.client_id,
            "post_logout_redirect_uri": LOGGED_OUT,
            "state": "s",
        }
        request = requests.Request("GET", f"{server.issuer}/session/end", params=query)
        visit = server.visit(request.prepare().url or "", browser)
        silent = server.visit(authorize_url(server, client, prompt="none"), browser)

    assert visit.url == f"{LOGGED_OUT}?state=s"
    assert silent.parameters["error"] == "login_required"


def test_backchannel_logout_reaches_loopback(server: OIDCServer) -> None:
    with FaultyServer(default=Reply(200)) as application:
        client = server.add_client(
            CALLBACK,
            backchannel_logout_uri=f"{application.url}/backchannel-logout",
            backchannel_logout_session_required=True,
        )
        with new_session() as browser:
            found = claims(server.sign_in_directly(client, session=browser)["id_token"])
            server.visit(f"{server.issuer}/session/end?client_id={client.client_id}", browser)
        server.backchannel_logout(client, "alice", "another")
        first, second = application.wait_for(2)

    told = claims(first.parameter("logout_token") or "")
    assert (told["sub"], told["sid"]) == ("alice", found["sid"])
    assert "nonce" not in told
    assert claims(second.parameter("logout_token") or "")["sid"] == "another"


@pytest.mark.parametrize("mode", ["off", "accepted", "required", "fresh"])
def test_dpop_binds_tokens_with_and_without_nonces(server: OIDCServer, mode: str) -> None:
    server.settings(dpop_nonce=mode)
    client = server.add_client(CALLBACK, dpop_bound_access_tokens=True)
    prover = Prover()

    tokens = server.sign_in_directly(client, proof=prover, scope="openid read", resource=C)
    refreshed = server.refresh(client, tokens["refresh_token"], proof=prover, resource=C)

    assert tokens["token_type"] == "DPoP"
    assert refreshed.status_code == 200
    challenged = [r for r in server.token_requests() if r["error"] == "use_dpop_nonce"]
    assert len(challenged) == (2 if mode in ("required", "fresh") else 0)
    assert server.stats()["replays"] == 0
    assert call_api(server, tokens["access_token"]).status_code == 401


def test_void_nonces_are_refused_and_burn_nothing(server: OIDCServer) -> None:
    server.settings(dpop_nonce="fresh")
    client = server.add_client(CALLBACK)
    prover = Prover()
    token = server.sign_in_directly(client, proof=prover)["refresh_token"]
    learnt = server.refresh(client, token, proof=prover)
    server.void_nonces()

    nonce = learnt.headers["DPoP-Nonce"]
    stale = server.refresh(
        client,
        learnt.json()["refresh_token"],
        proof=lambda method, url, later: prover(method, url, later or nonce),
    )

    assert stale.status_code == 200
    assert server.token_requests()[-2]["error"] == "use_dpop_nonce"


@pytest.mark.parametrize("mode", ["off", "required", "fresh"])
def test_the_api_checks_proofs(server: OIDCServer, mode: str) -> None:
    server.settings(api_dpop_nonce=mode)
    client = server.add_client(CALLBACK)
    prover = Prover()
    token = server.sign_in_directly(client, proof=prover, resource=A, scope="openid read")
    value, url = token["access_token"], f"{server.api_url}/x"

    with new_session() as session:

        def ask(nonce: str | None, proof: str | None = None) -> requests.Response:
            headers = {"Authorization": f"DPoP {value}"}
            headers["DPoP"] = proof or prover("GET", url, nonce, value)
            return session.get(url, headers=headers, timeout=10)

        first = ask(None)
        nonce = first.headers.get("DPoP-Nonce")
        used = prover("GET", url, nonce, value)
        good, again = ask(nonce, used), ask(nonce, used)

    if mode != "off":
        assert first.status_code == 401
        assert 'error="use_dpop_nonce"' in first.headers["WWW-Authenticate"]
    assert good.status_code == 200
    assert again.status_code == 401
    assert 'error="invalid_dpop_proof"' in again.headers["WWW-Authenticate"]


def test_pushed_authorization_requests_can_be_required(
    server: OIDCServer, client: ClientRegistration
) -> None:
    server.settings(require_par=True)
    pushed = server.token_request(
        client,
        endpoint="request",
        response_type="code",
        client_id=client.client_id,
        redirect_uri=CALLBACK,
        scope="openid",
        code_challenge="a" * 43,
        code_challenge_method="S256",
    )

    url = f"{server.issuer}/auth?client_id={client.client_id}"
    refused = server.visit(authorize_url(server, client))
    accepted = server.visit(f"{url}&request_uri={pushed.json()['request_uri']}")

    assert pushed.status_code == 201
    assert refused.parameters["error"] == "invalid_request"
    assert "code" in accepted.parameters
    assert server.stats()["endpoints"]["par"] == 1


def test_request_objects_and_authorization_details_are_understood(
    server: OIDCServer, client: ClientRegistration
) -> None:
    details = [{"type": "payment", "amount": "1"}]
    content = {
        "iss": client.client_id,
        "aud": server.issuer,
        "client_id": client.client_id,
        "response_type": "code",
        "redirect_uri": CALLBACK,
        "scope": "openid",
        "state": "from the request object",
        "code_challenge": "a" * 43,
        "code_challenge_method": "S256",
        "exp": int(time.time()) + 60,
    }
    request = jwt.encode(content, client.client_secret or "", "HS256")

    visit = server.visit(
        f"{server.issuer}/auth?client_id={client.client_id}&scope=openid&request={request}"
    )
    parameters = {"authorization_details": json.dumps(details)}
    tokens = server.sign_in_directly(
        client, resource=A, scope="openid read", authorize_parameters=parameters
    )

    assert visit.parameters["state"] == "from the request object"
    assert tokens["authorization_details"] == details


def test_tokens_can_be_exchanged(server: OIDCServer, client: ClientRegistration) -> None:
    kind = "urn:ietf:params:oauth:grant-type:token-exchange"
    exchanger = server.add_client(grant_types=[kind])
    subject = server.sign_in_directly(client, scope="openid read", resource=A)["access_token"]

    def exchange(token: str) -> requests.Response:
        return server.token_request(
            exchanger,
            grant_type=kind,
            subject_token=token,
            subject_token_type="urn:ietf:params:oauth:token-type:access_token",
            resource=B,
            scope="read",
        )

    answer, refused = exchange(subject).json(), exchange("nonsense")

    told = call_api(server, answer["access_token"]).json()
    assert (told["sub"], told["aud"], told["client_id"]) == ("alice", B, exchanger.client_id)
    assert answer["issued_token_type"].endswith("access_token")
    assert refused.json()["error"] == "invalid_grant"


# ---- the API


def test_the_api_tells_what_it_was_asked(server: OIDCServer, client: ClientRegistration) -> None:
    tokens = server.sign_in_directly(client, scope="openid read", resource=server.api_url)
    with new_session() as session:
        told = session.put(
            f"{server.api_url}/a/b?c=d",
            data=b"body",
            headers={"Authorization": f"Bearer {tokens['access_token']}"},
            timeout=10,
        ).json()

    assert told["sub"] == "alice"
    assert told["aud"] == server.api_url
    assert (told["method"], told["path"], told["query"]) == ("PUT", "/a/b", "?c=d")
    assert told["body_sha256"] == sha256("body")
    assert told["token_sha256"] == sha256(tokens["access_token"])
    assert told["headers"]["authorization"] == "Bearer ***"
    (record,) = server.requests_to("api")
    assert (record["sub"], record["status"]) == ("alice", 200)


def test_the_api_refuses_by_order(server: OIDCServer, client: ClientRegistration) -> None:
    token = server.sign_in_directly(client, scope="openid read", resource=A)["access_token"]

    server.reject_at_api(token, times=1)
    assert [call_api(server, token).status_code for _ in range(2)] == [401, 200]
    server.settings(api_reject=True)
    assert [call_api(server, token).status_code for _ in range(2)] == [401, 401]
    server.settings(api_reject=False, api_audience=B)
    assert call_api(server, token).status_code == 401


def test_the_api_wants_a_scope(server: OIDCServer, client: ClientRegistration) -> None:
    token = server.sign_in_directly(client, scope="openid read", resource=A)["access_token"]

    refused = call_api(server, token, "/x?require_scope=write")

    assert refused.status_code == 403
    assert 'error="insufficient_scope"' in refused.headers["WWW-Authenticate"]
    assert 'scope="write"' in refused.headers["WWW-Authenticate"]


def test_the_api_can_redirect_and_set_cookies(
    server: OIDCServer, client: ClientRegistration
) -> None:
    token = server.sign_in_directly(client, scope="openid read", resource=A)["access_token"]
    server.fault("api", headers={"Set-Cookie": "user=alice"}, when="after")
    server.fault("api", status=307, headers={"Location": f"{server.api_url}/there"})

    answer = call_api(server, token, "/here")

    assert answer.json()["path"] == "/there"
    assert answer.cookies["user"] == "alice"
    assert [record["path"] for record in server.requests_to("api")] == ["/here", "/there"]


# ---- the process


def test_another_process_can_use_the_server(server: OIDCServer) -> None:
    remote = pickle.loads(pickle.dumps(server.remote))  # noqa: S301 it is ours

    assert isinstance(remote, OIDCRemote)
    assert remote.metadata()["issuer"] == server.issuer


STARTER = """
import sys, time
from tests.servers import OIDCServer
with OIDCServer() as server:
    print(server.issuer, flush=True)
    time.sleep(60)
"""


def test_the_server_ends_with_its_parent_even_if_that_is_killed() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True, cwd=root
    ) as parent:
        assert parent.stdout is not None
        issuer = parent.stdout.readline().strip()
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    deadline = time.monotonic() + 10
    with new_session() as session:
        while time.monotonic() < deadline:
            try:
                session.get(f"{issuer}/jwks", timeout=5)
            except requests.ConnectionError:
                return
    pytest.fail("the server still answers")


INSTALLER = (
    "import sys, pathlib; from tests.servers.oidc import install; install(pathlib.Path({!r}))"
)


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(OIDCError, match="no such setting: nonsense"):
        OIDCServer(settings={"nonsense": 1}).__enter__()


def test_several_processes_may_install_at_once(tmp_path: Path) -> None:
    source, root = Path(__file__).with_name("oidc"), Path(__file__).parents[2]
    for name in ("package.json", "package-lock.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    command = [sys.executable, "-c", INSTALLER.format(str(tmp_path))]

    both = [subprocess.Popen(command, cwd=root) for _ in range(2)]

    assert [one.wait(60) for one in both] == [0, 0]
    assert (tmp_path / "node_modules" / "oidc-provider").is_dir()


def test_installing_again_does_nothing_and_needs_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    install()


# ---- the faulty server


def get(url: str, **options: Any) -> requests.Response:
    with new_session() as session:
        return session.get(url, **({"timeout": 5, "allow_redirects": False} | options))


def test_a_script_is_followed_and_recorded() -> None:
    with FaultyServer(Reply(503), Reply(200, {"a": 1}), default=Reply(418)) as server:
        answers = [get(f"{server.url}/x?y=1") for _ in range(3)]
        with new_session() as session:
            session.post(f"{server.url}/form", data={"b": "2"}, timeout=5)
        asked = server.wait_for(4)

    assert [answer.status_code for answer in answers] == [503, 200, 418]
    assert answers[1].json() == {"a": 1}
    assert (asked[0].method, asked[0].path, asked[0].query) == ("GET", "/x", {"y": ["1"]})
    assert asked[3].parameter("b") == "2"
    assert [request.connection for request in asked] == [1, 2, 3, 4]
    assert asked[0].arrived_at <= asked[1].arrived_at


def test_paths_have_scripts_of_their_own() -> None:
    with FaultyServer(default=Reply(404)) as server:
        server.always(respond(lambda request: Reply(200, request.path)), path="/a")
        server.add(Reply(500), path="/a")

        assert [get(f"{server.url}{path}").status_code for path in ("/a", "/a", "/b")] == [
            500,
            200,
            404,
        ]


@pytest.mark.parametrize("where", ["before", "body"])
def test_a_cut_answer_is_an_error(where: Any) -> None:
    with FaultyServer(Cut(where), Cut(where, reset=True)) as server, new_session() as session:
        for _ in range(2):
            with pytest.raises(requests.RequestException):
                session.get(server.url, timeout=5)


def test_an_answer_cut_in_its_headers_passes_for_an_empty_one_with_requests() -> None:
    with FaultyServer(Cut("headers")) as server:
        answer = get(server.url)

    assert (answer.status_code, answer.content) == (200, b"")
    assert "Content-Length" not in answer.headers


def test_a_drip_takes_as_long_as_it_has_bytes() -> None:
    with FaultyServer(Drip(0.05, "body", Reply(200, "12345"))) as server:
        begin = time.monotonic()
        assert get(server.url).text == "12345"

    assert time.monotonic() - begin >= 0.25


def test_what_hangs_ends_with_the_client_and_says_when() -> None:
    with FaultyServer(Hang(), Drip(0.01, "headers")) as server:
        begin = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            get(server.url, timeout=0.2)
        server.wait_closed()
        (request,) = server.wait_for(1)

    assert request.gone
    assert request.ended_at is not None
    assert request.ended_at - begin == pytest.approx(0.2, abs=0.15)


def test_what_hangs_ends_with_the_server() -> None:
    with ThreadPoolExecutor(1) as pool, FaultyServer(Hang()) as server:
        asking = pool.submit(get, server.url, timeout=60)
        server.wait_for(1)
        assert server.open_connections == 1
        server.__exit__(None, None, None)
        assert isinstance(asking.exception(5), requests.ConnectionError)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_flood_is_as_large_as_it_says(chunked: bool) -> None:
    with FaultyServer(Flood(3_000_001, chunked), Flood(1 << 40, chunked)) as server:
        assert len(get(server.url).content) == 3_000_001
        with get(server.url, stream=True) as answer:
            next(answer.iter_content(1000))
        server.wait_closed()

    assert server.requests[1].gone


def test_a_gzip_bomb_is_small_on_the_wire() -> None:
    with FaultyServer(GzipBomb(1 << 22)) as server:
        answer = get(server.url)

    assert int(answer.headers["Content-Length"]) < 10_000
    assert len(answer.content) == 1 << 22


def test_an_idle_connection_is_closed_at_its_second_request() -> None:
    with FaultyServer(default=CloseIdle()) as server, new_session() as session:
        assert session.get(server.url, timeout=5).status_code == 200
        with pytest.raises(requests.ConnectionError):
            session.post(server.url, data="once", timeout=5)

        assert [request.connection for request in server.requests] == [1, 1]


def test_redirects_raw_bytes_and_held_answers() -> None:
    held = Held(Reply(204))
    raw = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")
    with FaultyServer(redirect(307, "http://127.0.0.1:1/"), raw, held) as server:
        assert get(server.url).headers["Location"] == "http://127.0.0.1:1/"
        with pytest.raises(requests.RequestException):
            get(server.url)
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(get, server.url)
            held.wait()
            assert not asking.done()
            held.release()
            assert asking.result().status_code == 204


def test_chunked_requests_are_read() -> None:
    with FaultyServer(default=Reply(200)) as server, new_session() as session:
        session.post(server.url, data=iter([b"ab", b"cd"]), timeout=5)

        assert server.requests[0].body == b"abcd"
        assert server.bytes_received == 4


def test_the_largest_number_in_flight_is_known() -> None:
    with FaultyServer(default=Reply(200, delay=0.2)) as server, ThreadPoolExecutor(5) as pool:
        list(pool.map(get, [f"{server.url}/x"] * 5))

        assert server.max_in_flight["/x"] == 5


def test_a_faulty_server_can_go_down_and_come_back() -> None:
    with FaultyServer(default=Reply(200)) as server, new_session() as session:
        session.get(server.url, timeout=5)
        server.stop_listening()
        with pytest.raises(requests.ConnectionError, match="refused"):
            get(server.url)
        server.listen()
        assert session.get(server.url, timeout=5).status_code == 200


def test_https_refuses_who_does_not_trust_it(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    write_certificate(key, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    with FaultyServer(default=Reply(200), tls=context) as server:
        with pytest.raises(requests.exceptions.SSLError):
            get(server.url)
        assert get(server.url, verify=str(certificate)).status_code == 200

        assert len(server.requests) == 1


def write_certificate(key: Path, certificate: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    until = now + datetime.timedelta(hours=1)
    builder = x509.CertificateBuilder(name, name, private.public_key(), 1, now, until)
    builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    signed = builder.sign(private, hashes.SHA256())
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def test_a_refusing_origin_refuses_and_a_silent_one_is_silent() -> None:
    with refusing_url() as url, pytest.raises(requests.ConnectionError, match="refused"):
        get(url)
    with silent_url() as url, pytest.raises(requests.ConnectTimeout):
        get(url, timeout=0.2)


# ---- the rotating server


@pytest.fixture
def clock() -> Callable[[float], float]:
    instant = [1_800_000_000.0]

    def now(advance: float = 0) -> float:
        instant[0] += advance
        return instant[0]

    return now


@pytest.fixture
def rotating(clock: Callable[[], float]) -> Iterator[RotatingTokenServer]:
    with RotatingTokenServer(clock=lambda: clock()) as server:
        yield server


def refresh(server: RotatingTokenServer, token: str, **form: str) -> requests.Response:
    form |= {"grant_type": "refresh_token", "refresh_token": token}
    with new_session() as session:
        return session.post(server.token_endpoint, data=form, auth=("app", "secret"), timeout=10)


def test_the_rotating_server_rotates_and_kills(rotating: RotatingTokenServer) -> None:
    first = rotating.issue("alice")
    second = refresh(rotating, first["refresh_token"]).json()

    assert rotating.lookup(second["access_token"]) is not None
    assert refresh(rotating, first["refresh_token"]).json() == {"error": "invalid_grant"}

    assert rotating.lookup(second["access_token"]) is None
    assert refresh(rotating, second["refresh_token"]).status_code == 400
    assert (rotating.refreshes, rotating.replays) == (1, 1)


def test_a_grace_period_repeats_the_same_answer(
    rotating: RotatingTokenServer, clock: Callable[[float], float]
) -> None:
    rotating.grace = 30
    token = rotating.issue("alice")["refresh_token"]
    first = refresh(rotating, token).json()
    clock(29)
    again = refresh(rotating, token).json()
    clock(1)

    assert again == first
    assert (rotating.refreshes, rotating.graced, rotating.replays) == (1, 1, 0)
    assert refresh(rotating, token).status_code == 400


def test_a_duplicate_may_revoke_its_sibling(rotating: RotatingTokenServer) -> None:
    rotating.reuse = "sibling"
    token = rotating.issue("alice")["refresh_token"]

    first, second = refresh(rotating, token).json(), refresh(rotating, token).json()

    assert rotating.lookup(first["access_token"]) is None
    assert rotating.lookup(second["access_token"]) is not None
    assert refresh(rotating, first["refresh_token"]).status_code == 400
    assert refresh(rotating, second["refresh_token"]).status_code == 200


def test_tokens_end_by_the_servers_clock(
    rotating: RotatingTokenServer, clock: Callable[[float], float]
) -> None:
    token = rotating.issue("alice", resources=[A])["access_token"]
    found = rotating.lookup(token)
    clock(300)

    assert found is not None
    assert (found.subject, found.audience) == ("alice", A)
    assert rotating.lookup(token) is None


def test_answers_of_the_rotating_server_can_be_held_and_spoilt(
    rotating: RotatingTokenServer,
) -> None:
    tokens = [rotating.issue(name)["refresh_token"] for name in ("alice", "bob", "carol")]
    rotating.hold()
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(refresh, rotating, token) for token in tokens[:2]]
        rotating.wait_held(2)
        assert rotating.refreshes == 2
        assert rotating.release(1) == 1
        assert rotating.release() == 1
        assert [one.result().status_code for one in asking] == [200, 200]
    assert rotating.max_in_flight["/token"] == 2

    rotating.spoil(lambda reply: Cut(reply=reply), lambda _: Reply(403))
    with pytest.raises(requests.ConnectionError):
        refresh(rotating, tokens[2])
    assert refresh(rotating, tokens[2]).status_code == 403
    assert rotating.replays == 1


def test_habits_of_the_rotating_server(rotating: RotatingTokenServer) -> None:
    rotating.rotate = False
    rotating.bind_resource = True
    rotating.revoke_previous = True
    rotating.decorate = lambda answer: answer | {"token_type": "bearer"}
    first = rotating.issue("alice", resources=[A, B])

    second = refresh(rotating, first["refresh_token"], resource=B).json()

    assert (second["token_type"], "refresh_token" in second) == ("bearer", False)
    assert rotating.lookup(first["access_token"]) is None
    assert refresh(rotating, first["refresh_token"], resource=A).json() == {
        "error": "invalid_target"
    }


def test_the_rotating_servers_other_endpoints(rotating: RotatingTokenServer) -> None:
    tokens = rotating.issue("alice")
    auth = ("app", "secret")
    with new_session() as session:
        document = session.get(f"{rotating.url}/.well-known/openid-configuration", timeout=5).json()
        form = {"grant_type": "client_credentials", "scope": "read"}
        own = session.post(rotating.token_endpoint, data=form, auth=auth, timeout=5).json()
        headers = {"Authorization": f"Bearer {own['access_token']}"}
        told = session.get(f"{rotating.url}/api/x", headers=headers, timeout=5).json()
        token = {"token": tokens["refresh_token"]}
        stranger = session.post(document["revocation_endpoint"], data=token, timeout=5)
        session.post(document["revocation_endpoint"], data=token, auth=auth, timeout=5)
        token = {"token": tokens["access_token"]}
        url = document["introspection_endpoint"]
        active = session.post(url, data=token, auth=auth, timeout=5).json()["active"]

    assert document["issuer"] == rotating.url
    assert told["sub"] == "app"
    assert stranger.status_code == 401
    assert not active
    assert rotating.revocations == [tokens["refresh_token"]]


def test_nothing_is_left_behind() -> None:
    before = threading.active_count()
    with FaultyServer(default=Hang()) as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(address), pytest.raises(requests.ReadTimeout):
            get(server.url, timeout=0.1)

    assert threading.active_count() == before
