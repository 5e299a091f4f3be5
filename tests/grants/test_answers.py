"""Every row of the table of answers, and the values in them."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_atm.grants.answers import DEFAULT_LIFETIME, classify, parse_tokens, retry_after
from flask_atm.oauth.back_channel import Answer, Failure

NOW = 1_700_000_000.0


def answer(status: int, body: Any = b"", **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(
        status=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        body=data,
    )


def error(code: str, status: int = 400) -> Answer:
    return answer(status, {"error": code, "error_description": "why"})


GOOD = {"access_token": "a", "token_type": "Bearer", "expires_in": 60}


@pytest.mark.parametrize(
    ("result", "kind", "spent"),
    [
        # nothing was sent
        (Failure(written=False, reason="refused"), "unavailable", "no"),
        (Failure(written=False, reason="dns"), "unavailable", "no"),
        (Failure(written=False, reason="tls"), "unavailable", "no"),
        (Failure(written=False, reason="timeout"), "unavailable", "no"),
        (Failure(written=False, reason="window"), "unsent", "no"),
        # 429; 503 with an error or Retry-After
        (answer(429), "unavailable", "no"),
        (answer(429, {"message": "slow down"}), "unavailable", "no"),
        (answer(429, {"access_token": "a"}), "unavailable", "no"),
        (error("temporarily_unavailable", 503), "unavailable", "no"),
        (answer(503, b"<html>", retry_after="7"), "unavailable", "no"),
        # other 503, 5xx, 3xx, time-out, reset, short
        (answer(503, b"upstream connect error"), "unavailable", "unknown"),
        (answer(503, b"", retry_after="soon"), "unavailable", "unknown"),
        (answer(500), "unavailable", "unknown"),
        (error("server_error", 500), "unavailable", "unknown"),
        (error("invalid_grant", 502), "unavailable", "unknown"),
        (answer(504, b"<html>"), "unavailable", "unknown"),
        *[(answer(code), "unavailable", "unknown") for code in (301, 302, 303, 307, 308)],
        (answer(204), "unavailable", "unknown"),
        (answer(101), "unavailable", "unknown"),
        (Failure(written=True, reason="timeout"), "unavailable", "unknown"),
        (Failure(written=True, reason="reset"), "unavailable", "unknown"),
        (Failure(written=True, reason="short"), "unavailable", "unknown"),
        # the request was refused
        *[
            (error(code), "refused", "unknown")
            for code in ("invalid_request", "invalid_target", "invalid_scope", "something_else")
        ],
        (answer(404, b"<html>"), "refused", "unknown"),
        (answer(401), "refused", "unknown"),
        (answer(405), "refused", "unknown"),
        # the user is wanted
        *[
            (error(code), "interaction", "no")
            for code in (
                "login_required",
                "interaction_required",
                "consent_required",
                "mfa_required",
            )
        ],
        # the registration
        (error("invalid_client", 401), "client", "no"),
        (error("invalid_client"), "client", "no"),
        (error("unauthorized_client"), "client", "no"),
        (error("unsupported_grant_type"), "client", "no"),
        # the grant
        (error("invalid_grant"), "invalid_grant", "no"),
        (error("invalid_grant", 401), "invalid_grant", "no"),
        (error("invalid_grant", 403), "invalid_grant", "no"),
        (answer(400), "bare", "unknown"),
        (answer(403, b"<html>Forbidden"), "bare", "unknown"),
        (answer(400, {"error": 5}), "bare", "unknown"),
        # 200
        (answer(200, GOOD), "tokens", "yes"),
        (answer(200, {"refresh_token": "r"}), "tokens", "yes"),
        (answer(200, {"refresh_token": "r", "access_token": ["a"]}), "tokens", "yes"),
        (answer(200, {}), "unusable", "unknown"),
        (answer(200, []), "unusable", "unknown"),
        (answer(200, b"<html>"), "unusable", "unknown"),
        (answer(200, b""), "unusable", "unknown"),
        (answer(200, {"access_token": ""}), "unusable", "unknown"),
        (answer(200, {"access_token": "a b\n"}), "unusable", "unknown"),
        (answer(200, b'{"access_token": "a", "access_token": "b"}'), "unusable", "unknown"),
        (answer(200, b'{"access_token": "a", "expires_in": NaN}'), "unusable", "unknown"),
        (answer(200, b'{"access_token": "a", "x": ' + b"[" * 9999), "unusable", "unknown"),
        (Failure(written=True, reason="too_large"), "unusable", "unknown"),
    ],
)
def test_what_an_answer_means(result: Answer | Failure, kind: str, spent: str) -> None:
    verdict = classify(result, now=NOW)
    assert (verdict.kind, verdict.spent) == (kind, spent)
    assert (verdict.tokens is not None) is (kind == "tokens")


def test_an_error_keeps_its_code_description_and_status() -> None:
    verdict = classify(error("invalid_scope"), now=NOW)
    assert (verdict.error, verdict.error_description, verdict.status) == (
        "invalid_scope",
        "why",
        400,
    )


def jwt(**claims: Any) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part(claims)}.c2ln"


@pytest.mark.parametrize(
    ("members", "lifetime"),
    [
        ({}, DEFAULT_LIFETIME),
        ({"expires_in": "3600"}, 3600),
        ({"expires_in": 3600.5}, 3600.5),
        ({"expires_in": 0}, DEFAULT_LIFETIME),
        ({"expires_in": -5}, DEFAULT_LIFETIME),
        ({"expires_in": 1e12}, 30 * 86400),
        ({"expires_in": "1e400"}, DEFAULT_LIFETIME),
        ({"expires_in": None}, DEFAULT_LIFETIME),
        ({"expires_in": "abc"}, DEFAULT_LIFETIME),
        ({"expires_in": True}, DEFAULT_LIFETIME),
        ({"expires_in": [60]}, DEFAULT_LIFETIME),
        ({"access_token": jwt(iat=NOW, exp=NOW + 60)}, 60),
        ({"access_token": jwt(iat=NOW, exp=NOW + 6000)}, DEFAULT_LIFETIME),
        ({"access_token": jwt(iat=NOW, exp=NOW - 60)}, DEFAULT_LIFETIME),
        ({"access_token": jwt(exp="x")}, DEFAULT_LIFETIME),
        ({"access_token": jwt(iat=NOW, exp=NOW + 60), "expires_in": 90}, 90),
        ({"access_token": "a.b.c"}, DEFAULT_LIFETIME),
        ({"access_token": "a.W10.c"}, DEFAULT_LIFETIME),
    ],
)
def test_b9_expires_in_is_never_for_ever_and_never_a_crash(
    members: dict[str, Any], lifetime: float
) -> None:
    body = {"access_token": "a", "refresh_token": "r", **members}
    tokens = parse_tokens(answer(200, body), now=NOW)
    assert tokens is not None
    assert tokens.lifetime == lifetime
    assert tokens.refresh_token is not None
    assert tokens.refresh_token.reveal() == "r"


@pytest.mark.parametrize(
    ("given_type", "taken"),
    [
        ("bearer", "Bearer"),
        ("BEARER", "Bearer"),
        ("DPOP", "DPoP"),
        ("N_A", "Bearer"),
        (None, "Bearer"),
        (7, "Bearer"),
        ("mac", "mac"),
    ],
)
def test_b10_token_type_in_any_case(given_type: Any, taken: str) -> None:
    tokens = parse_tokens(answer(200, {"access_token": "a", "token_type": given_type}), now=NOW)
    assert tokens is not None
    assert tokens.token_type == taken


def test_odd_members_do_not_cost_the_rotated_refresh_token() -> None:
    odd = {"access_token": 5, "refresh_token": "r 1", "id_token": {}, "scope": ["a"]}
    tokens = parse_tokens(answer(200, odd), now=NOW)
    assert tokens is not None
    assert tokens.refresh_token is not None
    assert (tokens.access_token, tokens.id_token, tokens.scope) == (None, None, None)


def test_nothing_of_a_token_shows() -> None:
    body = {"access_token": "canary1", "refresh_token": "canary2", "id_token": "canary3"}
    verdict = classify(answer(200, body), now=NOW)
    assert "canary" not in repr(verdict)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("86400", 300),
        ("-5", 0),
        ("inf", 300),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("٧", None),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60),
        ("Tue, 14 Nov 2023 22:14:20", 60),
        ("Tue, 14 Nov 2003 22:14:20 GMT", 0),
        ("Tue, 14 Nov 2099 22:14:20 GMT", 300),
        ("Tue, 99 Nov 2023 22:14:20 GMT", None),
        ("Tue, 14 Nov 0001 00:00:00 +2300", 0),
        ("Tue, 14 Nov 2023 22:14:20 +99999999999", None),
    ],
)
def test_b11_retry_after_is_between_0_and_300(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now=NOW) == seconds


@given(st.text(max_size=60) | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ [+-]\d+"))
def test_b11_retry_after_of_anything(value: str) -> None:
    seconds = retry_after(value, now=NOW)
    assert seconds is None or 0 <= seconds <= 300


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
_NAMES = st.sampled_from(
    ["access_token", "refresh_token", "id_token", "expires_in", "scope", "token_type", "error"]
)


@given(st.sampled_from([200, 400, 401, 403, 429, 500, 503]), st.dictionaries(_NAMES, _JSON))
def test_n1_token_responses_of_any_kind(status: int, members: dict[str, Any]) -> None:
    verdict = classify(answer(status, members), now=NOW)
    if verdict.tokens is not None:
        assert 0 < verdict.tokens.lifetime <= 30 * 86400
        assert verdict.tokens.access_token or verdict.tokens.refresh_token
