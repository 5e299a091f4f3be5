"""The token endpoint: what is prepared, what is sent, what revocation makes of answers."""

import logging
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from flask_atm.errors import ConfigurationError, ProtocolError, ServerUnavailable
from flask_atm.oauth.back_channel import Answer, BackChannel, Failure
from flask_atm.oauth.client_auth import ClientSecretBasic, ClientSecretPost, NoClientAuth
from flask_atm.oauth.token_endpoint import Endpoints, TokenEndpoint, parse_error
from flask_atm.protocols import ClientAuth
from flask_atm.tokens import Secret
from tests.servers.faulty import (
    CloseIdle,
    Cut,
    Exchange,
    FaultyServer,
    Flood,
    Hang,
    Reply,
    redirect,
    refusing_url,
)

TOKEN = Reply(200, {"access_token": "a", "token_type": "Bearer"})
REFRESH = {"grant_type": "refresh_token", "refresh_token": "canary"}
BASIC = ClientSecretBasic("id", Secret("secret"))


@pytest.fixture
def channel() -> Iterator[BackChannel]:
    made = BackChannel()
    yield made
    made.close()


def endpoint(
    channel: BackChannel, url: str, *, auth: ClientAuth = BASIC, timeout: float = 5.0, **known: Any
) -> TokenEndpoint:
    endpoints = {"token_endpoint": f"{url}/token", "revocation_endpoint": f"{url}/revoke"} | known
    return TokenEndpoint(
        channel,
        name="billing",
        client_id="id",
        auth=auth,
        resolve=lambda: Endpoints(issuer=url, **endpoints),
        timeout=timeout,
    )


# -- token requests


def test_a_confidential_client_authenticates(channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN) as server:
        answer = endpoint(channel, server.url).request(
            {"grant_type": "client_credentials", "resource": ["https://a", "https://b"]}
        )
    assert isinstance(answer, Answer)
    (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/token")
    assert request.header("Authorization") == "Basic aWQ6c2VjcmV0"
    assert request.header("Accept") == "application/json"
    assert request.form == {
        "grant_type": ["client_credentials"],
        "resource": ["https://a", "https://b"],
    }


def test_a_public_client_says_who_it_is(channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN) as server:
        endpoint(channel, server.url, auth=NoClientAuth("id")).request(REFRESH)
    (request,) = server.requests
    assert request.parameter("client_id") == "id"
    assert request.header("Authorization") is None


def test_an_assertion_of_the_caller_goes_instead_of_the_secret(channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN) as server:
        asked = endpoint(channel, server.url, auth=ClientSecretPost("id", Secret("canary")))
        asked.request(REFRESH, client_assertion=Secret("a.b.c"))
    (request,) = server.requests
    assert request.parameter("client_assertion") == "a.b.c"
    assert request.parameter("client_secret") is None


def test_preparing_asks_everybody_but_the_token_endpoint(channel: BackChannel) -> None:
    asked = []

    def resolve() -> Endpoints:
        asked.append("metadata")
        return Endpoints(issuer=None, token_endpoint=f"{server.url}/token")

    def secret() -> str:
        asked.append("secret")
        return "s"

    auth = ClientSecretBasic("id", secret)
    with FaultyServer(default=TOKEN) as server:
        made = TokenEndpoint(
            channel, name="billing", client_id="id", auth=auth, resolve=resolve, timeout=5
        )
        exchange = made.prepare(REFRESH)
        assert asked == ["metadata", "secret"]
        assert server.connections_opened == 0
        assert exchange.url == f"{server.url}/token"
        assert isinstance(exchange.send(deadline=monotonic() + 5), Answer)
        assert asked == ["metadata", "secret"]
        made.prepare(REFRESH)
        assert asked == ["metadata", "secret"] * 2


def test_what_is_prepared_shows_no_secret(channel: BackChannel) -> None:
    exchange = endpoint(channel, "https://as.test", auth=BASIC).prepare(REFRESH)
    assert "canary" not in repr(exchange)
    assert "aWQ6c2VjcmV0" not in repr(exchange)


def test_preparing_refuses_an_endpoint_that_may_not_be_asked(channel: BackChannel) -> None:
    with pytest.raises(ConfigurationError, match="allowed_http_hosts"):
        endpoint(channel, "http://as.test").prepare(REFRESH)


def test_the_window_is_passed_on(channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN) as server:
        exchange = endpoint(channel, server.url).prepare(REFRESH)
        late = exchange.send(deadline=monotonic() + 5, may_write=lambda: False)
        assert late == Failure(written=False, reason="window")
        assert not server.requests


def test_the_time_of_a_request_is_limited(channel: BackChannel) -> None:
    with FaultyServer(default=Hang()) as server:
        late = Failure(written=True, reason="timeout")
        for timeout, within in ((0.4, None), (30.0, 0.4)):
            asked = endpoint(channel, server.url, timeout=timeout)
            started = monotonic()
            deadline = None if within is None else started + within
            assert asked.request(REFRESH, deadline=deadline) == late
            assert monotonic() - started < 3


def test_b7_refresh_requests_use_a_fresh_connection(channel: BackChannel) -> None:
    with FaultyServer(default=CloseIdle()) as server:
        asked = endpoint(channel, server.url)
        for _ in range(3):
            assert isinstance(asked.prepare(REFRESH).send(deadline=monotonic() + 5), Answer)
            assert isinstance(asked.request(REFRESH), Answer)
        assert server.connections_opened == 6


def test_connections_are_kept_where_asked_for(channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN) as server:
        asked = endpoint(channel, server.url)
        for _ in range(3):
            asked.request(REFRESH, fresh=False)
        assert server.connections_opened == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_b5_no_redirect_from_token_or_revocation_endpoint(
    channel: BackChannel, status: int
) -> None:
    with FaultyServer() as other, FaultyServer(default=redirect(status, other.url)) as server:
        asked = endpoint(channel, server.url)
        answer = asked.request(REFRESH)
        assert isinstance(answer, Answer)
        assert answer.status == status
        assert asked.revoke("canary") is False
        assert other.connections_opened == 0


def test_b3_a_429_with_a_message_is_no_error_code_and_no_token(channel: BackChannel) -> None:
    with FaultyServer(Reply(429, {"message": "slow down"}, {"Retry-After": "7"})) as server:
        answer = endpoint(channel, server.url).request(REFRESH)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    assert parse_error(answer) is None


# -- error responses


def answer_of(body: bytes, status: int = 400) -> Answer:
    return Answer(status=status, headers={}, body=body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": "invalid_grant"}', ("invalid_grant", None)),
        (b'{"error": "x", "error_description": "a\\nb\\u0000  c "}', ("x", "a b c")),
        (b'{"error": "x", "error_description": "\\u202egnp"}', ("x", "gnp")),
        (b'{"error": "x", "error_description": ["no"]}', ("x", None)),
        (b'{"error": "x", "error_description": "\\u0007"}', ("x", None)),
        (b'{"error": "x", "error_description": "gr\xc3\xbcn"}', ("x", "grün")),
        (b'{"error": ""}', None),
        (b'{"error": "line\\nbreak"}', None),
        (b'{"error": "' + b"x" * 101 + b'"}', None),
        (b'{"error": {"code": 400}}', None),
        (b'{"message": "no"}', None),
        (b"[]", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_error_responses_are_read(body: bytes, expected: tuple[str, str | None] | None) -> None:
    assert parse_error(answer_of(body)) == expected
    assert parse_error(answer_of(body, 200)) == expected


def test_a_description_is_cut() -> None:
    assert parse_error(
        answer_of(b'{"error": "x", "error_description": "' + b"ab " * 50_000 + b'"}')
    ) == ("x", ("ab " * 67)[:200])


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (
            "Invalid refresh token: 3f2b9c1e-8a4d-4a52-b6a6-0f1f1e2d3c4b",
            "Invalid refresh token: ***",
        ),
        ("no eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln here", "no *** here"),
        (
            "AADSTS70008: the token expired on 2026-11-20.",
            "AADSTS70008: the token expired on 2026-11-20.",
        ),
    ],
)
def test_j1_a_description_repeats_no_token(said: str, kept: str) -> None:
    body = f'{{"error": "invalid_grant", "error_description": "{said}"}}'
    assert parse_error(answer_of(body.encode())) == ("invalid_grant", kept)


# -- revocation


def test_revocation_sends_the_token_and_its_kind(channel: BackChannel) -> None:
    with FaultyServer(default=Reply(200)) as server:
        asked = endpoint(channel, server.url)
        assert asked.revoke(Secret("r")) is True
        assert asked.revoke("a", token_type_hint="access_token") is True
        public = endpoint(channel, server.url, auth=NoClientAuth("id"))
        assert public.revoke("r") is True
    refresh, access, of_public = server.requests
    assert refresh.path == "/revoke"
    assert refresh.form == {"token": ["r"], "token_type_hint": ["refresh_token"]}
    assert refresh.header("Authorization") == "Basic aWQ6c2VjcmV0"
    assert access.form == {"token": ["a"], "token_type_hint": ["access_token"]}
    assert of_public.parameter("client_id") == "id"


@pytest.mark.parametrize(
    ("behaviour", "done"),
    [
        (Reply(200, {}), True),
        (Reply(204), True),
        (Reply(400, {"error": "unsupported_token_type"}), True),
        (Reply(400, {"error": "invalid_token"}), True),
        (Reply(400, {"error": "invalid_grant"}), True),
        (Reply(400, {"error": "invalid_request"}), True),
        (Reply(400, {"error": "invalid_client"}), False),
        (Reply(400, {"error": "unauthorized_client"}), False),
        (Reply(401, {"error": "invalid_client"}), False),
        (Reply(400), False),
        (Reply(403), False),
        (Reply(404), False),
        (Reply(429, {"message": "slow down"}), False),
        (Reply(500, {"error": "unsupported_token_type"}), False),
        (Reply(503), False),
        (Cut(), False),
        (Cut("headers"), False),
        (Flood(), False),
    ],
)
def test_revocation_is_done_or_tried_later(
    channel: BackChannel, behaviour: Callable[[Exchange], None], done: bool
) -> None:
    with FaultyServer(default=behaviour) as server:
        assert endpoint(channel, server.url).revoke("canary") is done
    assert len(server.requests) == 1


def test_i2_an_endpoint_that_is_down_is_tried_later(channel: BackChannel) -> None:
    with refusing_url() as url:
        assert endpoint(channel, url).revoke("canary") is False


def test_without_a_revocation_endpoint_there_is_nothing_to_do(
    channel: BackChannel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked = endpoint(channel, "https://as.test", revocation_endpoint=None)
    assert [asked.revoke("canary") for _ in range(3)] == [True] * 3
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert "billing has no revocation endpoint" in caplog.text


@pytest.mark.parametrize(
    "error", [ServerUnavailable(), ProtocolError("no issuer"), ConfigurationError("no secret")]
)
def test_revocation_raises_no_error_of_ours(
    channel: BackChannel, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def resolve() -> Endpoints:
        raise error

    asked = TokenEndpoint(
        channel, name="billing", client_id="id", auth=BASIC, resolve=resolve, timeout=5
    )
    assert asked.revoke("canary") is False
    assert "Revocation at billing failed" in caplog.text


def test_j1_nothing_secret_is_logged(
    channel: BackChannel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    auth = ClientSecretPost("id", Secret("canary-secret"))
    answers: list[Callable[[Exchange], None]] = [
        Reply(200, {"access_token": "canary"}),
        Reply(400, {"error": "x"}),
        Cut(),
    ]
    with FaultyServer(*answers, *answers) as server:
        asked = endpoint(channel, server.url, auth=auth)
        for _ in answers:
            asked.request(REFRESH)
        for _ in answers:
            asked.revoke("canary")
    assert len(server.requests) == 6
    assert "canary" not in caplog.text
