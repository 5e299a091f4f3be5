"""A12, H8, L1: what only a correct server can show; against ``oidc-provider``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from flask_atm.errors import InsufficientScope, LoginRequired, TokenEndpointError
from flask_atm.grants.vault import record_key
from flask_atm.state import State
from flask_atm.testing import FakeClock
from flask_atm.tokens import TokenParameters
from tests.grants.processes import run_everywhere
from tests.grants.support import Setup, config, grant_from
from tests.grants.tools import together
from tests.servers import OIDCServer
from tests.top.support import Site, make_site

A, B = "https://api.example/a", "https://api.example/b"


def ask_api(oidc: OIDCServer, authorization: str) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(oidc.api_url, headers={"Authorization": authorization}, timeout=30)
    return answer.json() if answer.status_code == 200 else answer.status_code


# -- A12


def signed_in(oidc: OIDCServer, clock: FakeClock, **more: Any) -> tuple[State, str]:
    client = oidc.add_client("http://localhost/oidc/callback")
    state = Setup(config=config(oidc, client, "memory", **more)).state(clock=clock)
    grant_id = grant_from(state, oidc.sign_in_directly(client, resource=A))
    oidc.reset()
    return state, grant_id


def test_a12_a_resource_that_was_not_granted_never_reaches_the_server(
    oidc: OIDCServer, fake_clock: FakeClock
) -> None:
    state, grant_id = signed_in(oidc, fake_clock, ATM_RESOURCE=A)
    tokens = state.provider().tokens
    for result in together(16, lambda _: tokens.get(grant_id, TokenParameters.of(resource=B))):
        assert isinstance(result, InsufficientScope)
    assert oidc.token_requests() == []
    fake_clock.advance(1000)
    renewed = tokens.get(grant_id, TokenParameters())
    assert ask_api(oidc, renewed.authorization)["aud"] == A


def test_a12_a_server_that_spends_the_refresh_token_ends_in_one_clean_login_required(
    oidc: OIDCServer, fake_clock: FakeClock
) -> None:
    """This one burns it on ``invalid_target``, and kills the grant for a replay."""
    state, grant_id = signed_in(oidc, fake_clock)
    tokens = state.provider().tokens
    old = tokens.get(grant_id, TokenParameters())
    for _ in range(3):
        with pytest.raises(TokenEndpointError) as raised:
            tokens.get(grant_id, TokenParameters.of(resource=B))
        assert raised.value.error == "invalid_target"
    # Tried once; what is still good is served, and not renewed.
    assert len(oidc.token_requests()) == 1
    fake_clock.advance(260)
    assert tokens.get(grant_id, TokenParameters()).value == old.value
    assert ask_api(oidc, old.authorization)["sub"] == "alice"
    assert len(oidc.token_requests()) == 1
    fake_clock.advance(1000)
    results = together(16, lambda _: tokens.get(grant_id, TokenParameters()))
    assert {(type(one), one.reason) for one in results} == {(LoginRequired, "invalid_grant")}
    assert len(oidc.token_requests()) == 2


# -- H8


@pytest.fixture
def site(oidc: OIDCServer, fake_clock: FakeClock) -> Site:
    """Where every ID token says when its user has authenticated."""
    return make_site(
        oidc,
        atm={"clock": fake_clock},
        ATM_AUTHORIZE_PARAMS={"max_age": "3600"},
        ATM_APIS={"it": {"base_url": oidc.api_url}},
    )


def later(oidc: OIDCServer, clock: FakeClock) -> None:
    """Let the access token expire; the clocks here and there agree."""
    clock.advance(1000)
    oidc.advance(1000)


def grant_id_of(client: Any) -> str:
    with client.session_transaction() as session:
        handle = str(session["_atm"]["oidc"])
    return f"oidc.{handle.partition('.')[2]}"


def id_token_of(site: Site, grant_id: str) -> str:
    snapshot = site.state.provider().tokens.vault.read(record_key(grant_id))
    assert snapshot is not None
    assert snapshot.grant.id_token is not None
    return snapshot.grant.id_token.reveal()


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "mallory"},
        {"iss": "https://evil.example"},
        {"aud": "another-app"},
        {"iat": 1_000_000_000},
        {"auth_time": 1_000_000_000},
        {"nonce": "another"},
    ],
    ids=str,
)
def test_h8_a_refreshed_id_token_of_another_sign_in_ends_the_grant(
    site: Site, oidc: OIDCServer, fake_clock: FakeClock, claims: dict[str, Any]
) -> None:
    client = site.client()
    site.sign_in(client)
    later(oidc, fake_clock)
    oidc.reset()
    oidc.fault("token", id_token={"claims": claims}, match={"grant_type": "refresh_token"})
    answers = [client.get("/token") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert client.get("/who").text == "nobody"
    # One request: what came with the bad ID token is not used, and nothing is sent again.
    assert len(oidc.token_requests()) == 1
    assert site.sign_in(client).location == "/me"
    assert client.get("/token").status_code == 200


def test_h8_what_came_with_a_bad_id_token_is_revoked(
    site: Site, oidc: OIDCServer, fake_clock: FakeClock
) -> None:
    client = site.client()
    site.sign_in(client)
    later(oidc, fake_clock)
    oidc.fault("token", id_token={"claims": {"sub": "x"}}, match={"grant_type": "refresh_token"})
    assert client.get("/token").status_code == 401
    assert len(oidc.requests_to("revocation")) == 1


def test_h8_a_refreshed_id_token_that_cannot_be_checked_is_dropped(
    site: Site, oidc: OIDCServer, fake_clock: FakeClock
) -> None:
    client = site.client()
    site.sign_in(client)
    grant_id = grant_id_of(client)
    before = id_token_of(site, grant_id)
    later(oidc, fake_clock)
    oidc.rotate_keys(keep=False)
    oidc.fault("jwks", status=500, times=None)
    assert client.get("/token").status_code == 200
    assert id_token_of(site, grant_id) == before
    # The rotated refresh token was kept all the same.
    oidc.clear_faults()
    later(oidc, fake_clock)
    assert client.get("/token").status_code == 200
    assert id_token_of(site, grant_id) != before
    assert oidc.stats()["replays"] == 0


def test_h8_a_refresh_without_an_id_token_keeps_the_old_one(
    site: Site, oidc: OIDCServer, fake_clock: FakeClock
) -> None:
    oidc.settings(id_token_on_refresh=False)
    client = site.client()
    site.sign_in(client)
    before = id_token_of(site, grant_id_of(client))
    later(oidc, fake_clock)
    assert client.get("/token").status_code == 200
    assert id_token_of(site, grant_id_of(client)) == before
    assert client.get("/who").text == "alice"


# -- L1


def reports(oidc: OIDCServer, store: str) -> tuple[dict[str, Any], str]:
    """A client that is configured by itself; without users."""
    registered = oidc.add_client()
    client = {
        "issuer": oidc.issuer,
        "client_id": registered.client_id,
        "client_secret": registered.client_secret,
        "scope": "read write",
        "resource": A,
    }
    settings = {"SECRET_KEY": "k" * 7 + "y" * 40, "TESTING": True, "ATM_STORE": store}
    return {**settings, "ATM_CLIENTS": {"reports": client}}, registered.client_id


@dataclass(frozen=True, kw_only=True)
class CallAsClient:
    """Get the application's own token and call the API with it."""

    oidc: Any

    def __call__(self, state: State, number: int) -> tuple[str, str, str]:
        token = state.client("reports").get(TokenParameters())
        answer = ask_api(self.oidc, token.authorization)
        return token.value, answer["sub"], answer["aud"]


def test_l1_32_threads_with_a_cold_cache_make_one_request(oidc: OIDCServer) -> None:
    settings, client_id = reports(oidc, "memory")
    state = Setup(config=settings).state()
    oidc.latency(token=0.2)
    oidc.reset()
    found = together(32, lambda number: CallAsClient(oidc=oidc)(state, number))
    assert {one[1:] for one in found} == {(client_id, A)}
    assert len({value for value, _, _ in found}) == 1
    assert len(oidc.token_requests(grant_type="client_credentials")) == 1


def test_l1_4_processes_with_8_threads_and_a_cold_cache_make_one_request(
    oidc: OIDCServer, tmp_path: Path
) -> None:
    settings, client_id = reports(oidc, f"sqlite:///{tmp_path / 'grants.sqlite3'}")
    # A provider beside it, for what is warmed up in each process.
    registered = oidc.add_client("http://localhost/oidc/callback")
    setup = Setup(config={**config(oidc, registered, settings["ATM_STORE"]), **settings})
    oidc.latency(token=0.2)
    oidc.reset()
    found = run_everywhere(setup, CallAsClient(oidc=oidc.remote), processes=4, threads=8)
    assert len(found) == 32
    assert {one[1:] for one in found} == {(client_id, A)}
    assert len({value for value, _, _ in found}) == 1
    assert len(oidc.token_requests(grant_type="client_credentials")) == 1
