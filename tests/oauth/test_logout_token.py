"""Every check of a logout token: signed for real, wrong in one thing at a time."""

import contextlib
import copy
import json
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_atm.errors import ServerUnavailable
from flask_atm.oauth.id_token import LOGOUT_EVENT, IDTokenRejected, KeysUnavailable, validate
from flask_atm.oauth.keys import VerificationKey
from flask_atm.oauth.logout_token import LogoutToken, LogoutTokenRejected, validate_logout

from . import test_id_token as id_tokens
from .test_id_token import NOW, RULES, SIGNERS, keys, part
from .test_keys import RSA_2048, public_jwk

CLAIMS: dict[str, Any] = {
    "iss": RULES.issuer,
    "aud": "app",
    "iat": NOW - 5,
    "exp": NOW + 115,
    "jti": "1f0c",
    "events": {LOGOUT_EVENT: {}},
    "sub": "alice",
    "sid": "08a5",
}


def token(
    changes: Mapping[str, Any] | None = None,
    *,
    alg: str = "RS256",
    kid: str | None = "rsa",
    key: Any = None,
    typ: str | None = "logout+jwt",
    **header: Any,
) -> str:
    """Sign the claims with changes; ``...`` takes a claim away."""
    claims = {**CLAIMS, **(changes or {})}
    payload = json.dumps({name: value for name, value in claims.items() if value is not ...})
    members = {"kid": kid, "typ": typ, **header}
    return jwt.api_jws.encode(
        payload.encode(),
        key or SIGNERS[kid or "rsa"],
        algorithm=alg,
        headers={name: value for name, value in members.items() if value is not None},
    )


def check(text: str, now: float = NOW) -> LogoutToken:
    return validate_logout(text, RULES, keys=keys, now=now)


def refused(text: str) -> str:
    with pytest.raises(LogoutTokenRejected) as caught:
        check(text)
    assert str(caught.value).startswith("The logout token was rejected")
    return caught.value.reason


def test_a_good_token_says_what_is_to_end() -> None:
    found = check(token())
    assert (found.token_id, found.issued_at) == ("1f0c", NOW - 5)
    assert (found.subject, found.session_id) == ("alice", "08a5")
    assert found.entry == ("sid", "08a5")
    assert check(token({"sid": ...})).entry == ("sub", "alice")
    assert check(token({"sub": ...})).entry == ("sid", "08a5")
    assert "alice" not in repr(found)
    assert "08a5" not in repr(found)


@pytest.mark.parametrize(("kid", "alg"), [("p256", "ES256"), ("ed", "EdDSA"), ("rsa", "PS384")])
def test_every_algorithm_of_id_tokens_will_do(kid: str, alg: str) -> None:
    assert check(token(kid=kid, alg=alg)).subject == "alice"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "https://other.example.com"}, "iss"),
        ({"iss": RULES.issuer + "/"}, "iss"),
        ({"iss": ...}, "iss"),
        ({"aud": "another"}, "aud"),
        ({"aud": ["another"]}, "aud"),
        ({"aud": ...}, "aud"),
        ({"aud": {"app": 1}}, "aud"),
        ({"azp": "another"}, "azp"),
        ({"iat": ...}, "iat"),
        ({"iat": "now"}, "iat"),
        ({"iat": True}, "iat"),
        ({"iat": NOW + 61}, "iat"),
        ({"iat": NOW - 3661}, "iat"),
        ({"exp": NOW - 61}, "exp"),
        ({"exp": "later"}, "exp"),
        ({"exp": None}, "exp"),
        ({"nbf": NOW + 61}, "nbf"),
        ({"jti": ...}, "jti"),
        ({"jti": ""}, "jti"),
        ({"jti": 7}, "jti"),
        ({"jti": "x" * 1025}, "jti"),
        ({"events": ...}, "events"),
        ({"events": [LOGOUT_EVENT]}, "events"),
        ({"events": LOGOUT_EVENT}, "events"),
        ({"events": {}}, "events"),
        ({"events": {"http://schemas.openid.net/event/other": {}}}, "events"),
        ({"events": {LOGOUT_EVENT: True}}, "events"),
        ({"events": {LOGOUT_EVENT: None}}, "events"),
        ({"events": {LOGOUT_EVENT: []}}, "events"),
        ({"nonce": "n"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"sub": ..., "sid": ...}, "sub"),
        ({"sub": "", "sid": "08a5"}, "sub"),
        ({"sub": None}, "sub"),
        ({"sub": "x" * 256}, "sub"),
        ({"sid": ""}, "sid"),
        ({"sid": None}, "sid"),
        ({"sid": 5}, "sid"),
    ],
)
def test_i4_one_thing_wrong_is_enough(changes: dict[str, Any], why: str) -> None:
    assert refused(token(changes)) == why


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": ...},
        {"iat": NOW + 59},
        {"iat": NOW - 3600},
        {"aud": ["other", "app"]},
        {"azp": "app"},
        {"events": {LOGOUT_EVENT: {"more": 1}, "urn:other": {}}},
        {"unknown": {"claim": 1}},
    ],
)
def test_what_the_standard_allows_passes(changes: dict[str, Any]) -> None:
    assert check(token(changes)).subject == "alice"


@pytest.mark.parametrize("typ", ["logout+jwt", "Logout+JWT", "JWT", "jwt", None])
def test_the_type_is_that_of_a_logout_token_or_left_out(typ: str | None) -> None:
    assert check(token(typ=typ)).subject == "alice"


@pytest.mark.parametrize("typ", ["at+jwt", "secevent+jwt", "JOSE", "id_token"])
def test_i4_another_type_is_refused(typ: str) -> None:
    assert refused(token(typ=typ)) == "typ"


def test_i4_an_id_token_is_no_logout_token() -> None:
    assert refused(id_tokens.token()) == "events"
    assert refused(id_tokens.token({"nonce": ...})) == "events"
    # Not even one of a server that puts every claim into it.
    assert refused(id_tokens.token({"events": {LOGOUT_EVENT: {}}, "jti": "1"})) == "nonce"


def test_i4_a_logout_token_is_no_id_token() -> None:
    for typ in ("logout+jwt", "JWT"):
        with pytest.raises(IDTokenRejected) as caught:
            validate(token({"nonce": "n"}, typ=typ), RULES, keys=keys, now=NOW, nonce="n")
        assert caught.value.reason == "typ"


def test_i4_alg_none_and_shared_secrets_are_refused() -> None:
    unsigned = ".".join([part({"alg": "none", "typ": "logout+jwt"}), part(CLAIMS), ""])
    assert refused(unsigned) == "alg"
    with_public_key = token(alg="HS256", key=b"a secret of thirty-two bytes, more")
    assert refused(with_public_key) == "alg"


def test_i4_a_wrong_signature_is_refused() -> None:
    head, _, signature = token().split(".")
    forged = part({**CLAIMS, "sub": "bob"})
    assert refused(f"{head}.{forged}.{signature}") == "signature"


@pytest.mark.parametrize(
    "member", [{"jku": "https://evil.example"}, {"crit": ["exp"]}, {"jwk": {}}]
)
def test_a_header_that_brings_its_own_key_is_refused(member: dict[str, Any]) -> None:
    assert refused(token(**member)) == "header"


@pytest.mark.parametrize("text", ["", "a.b.c", "x" * 70_000, "a.b.c.d.e", "...."])
def test_what_is_no_token_is_refused(text: str) -> None:
    assert refused(text) in {"malformed", "encrypted"}


def test_a_key_that_is_not_known_is_not_held_against_the_token() -> None:
    with pytest.raises(KeysUnavailable, match="logout token"):
        check(token(kid="new", key=RSA_2048))

    def silent(kid: str | None, alg: str) -> list[VerificationKey]:
        raise ServerUnavailable(retry_after=1)

    with pytest.raises(KeysUnavailable):
        validate_logout(token(), RULES, keys=silent, now=NOW)


def test_h6_an_algorithm_that_the_key_is_not_for_is_refused() -> None:
    narrow = VerificationKey.from_jwk({**public_jwk(RSA_2048, kid="rsa"), "alg": "RS256"})
    assert narrow is not None
    with pytest.raises(LogoutTokenRejected):
        validate_logout(token(alg="PS256"), RULES, keys=lambda kid, alg: [narrow], now=NOW)


def test_the_error_can_be_copied() -> None:
    again = copy.copy(LogoutTokenRejected("jti"))
    assert (again.reason, str(again)) == ("jti", str(LogoutTokenRejected("jti")))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(changes=st.dictionaries(st.sampled_from([*CLAIMS, "nonce", "azp", "nbf"]), _VALUES))
def test_n1_whatever_is_signed_is_taken_or_refused(changes: dict[str, Any]) -> None:
    found = None
    with contextlib.suppress(LogoutTokenRejected):
        found = check(token(changes, kid="p256", alg="ES256"))
    assert found is None or found.subject or found.session_id
