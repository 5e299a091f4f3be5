"""Every check of an ID token: signed for real, wrong in one thing at a time."""

import contextlib
import copy
import hashlib
import json
import traceback
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_atm.errors import ATMError, ConfigurationError, ProtocolError, ServerUnavailable
from flask_atm.oauth import id_token
from flask_atm.oauth.id_token import (
    DEFAULT_ALGORITHMS,
    ClocksDisagree,
    IDTokenRejected,
    IDTokenRules,
    KeysUnavailable,
    allowed_algorithms,
    open_signed,
    validate,
    validate_refreshed,
)
from flask_atm.oauth.keys import VerificationKey
from flask_atm.tokens import FrozenDict, Secret

from .test_keys import ED448, ED25519, P256, P521, RSA_2048, public_jwk

NOW = 1_800_000_000.0
ISSUER = "https://id.example.com"
RULES = IDTokenRules(issuer=ISSUER, client_id="app")
NONCE = "nonce-of-this-sign-in"
ACCESS_TOKEN = "canary-access-token"
CODE = "canary-code"
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "sub": "alice",
    "aud": "app",
    "iat": NOW - 5,
    "exp": NOW + 300,
    "auth_time": NOW - 100,
    "nonce": NONCE,
    "acr": "silver",
    "name": "Alice",
}
SIGNERS: dict[str, Any] = {
    "rsa": RSA_2048,
    "p256": P256,
    "p521": P521,
    "ed": ED25519,
    "ed448": ED448,
}
KNOWN: dict[str, VerificationKey] = {}
for _kid, _private in SIGNERS.items():
    _key = VerificationKey.from_jwk(public_jwk(_private, kid=_kid))
    assert _key is not None
    KNOWN[_kid] = _key


def keys(kid: str | None, alg: str) -> list[VerificationKey]:
    """What a cache does with a JWKS of the keys above."""
    return [key for key in KNOWN.values() if kid in (None, key.kid) and alg in key.algorithms]


def part(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def token(
    changes: Mapping[str, Any] | None = None,
    *,
    kid: str | None = "rsa",
    alg: str = "RS256",
    key: Any = None,
    header: Mapping[str, Any] | None = None,
) -> str:
    """Sign the claims with changes; ``...`` takes a claim away."""
    claims = {**CLAIMS, **(changes or {})}
    payload = json.dumps({name: value for name, value in claims.items() if value is not ...})
    members = {"kid": kid, "typ": "JWT", **(header or {})}
    return jwt.api_jws.encode(
        payload.encode(),
        key or SIGNERS[kid or "rsa"],
        algorithm=alg,
        headers={name: value for name, value in members.items() if value is not None},
    )


def half_hash(text: str, name: str = "sha256") -> str:
    digest = hashlib.new(name, text.encode()).digest()
    return part(digest[: len(digest) // 2])


def check(text: str, **more: Any) -> FrozenDict:
    return validate(text, RULES, keys=keys, now=NOW, **{"nonce": NONCE, **more})


def refused(text: str, **more: Any) -> str:
    with pytest.raises(IDTokenRejected) as caught:
        check(text, **more)
    return caught.value.reason


# -- good ones


def test_the_claims_of_a_good_token_are_given_frozen() -> None:
    claims = check(token(), access_token=ACCESS_TOKEN, code=CODE, max_age=200, acr_values=())
    assert claims == CLAIMS
    with pytest.raises(TypeError):
        claims["sub"] = "bob"


@pytest.mark.parametrize(
    ("kid", "alg", "hash_name"),
    [
        ("rsa", "RS256", "sha256"),
        ("rsa", "PS384", "sha384"),
        ("p256", "ES256", "sha256"),
        ("p521", "ES512", "sha512"),
        ("ed", "EdDSA", "sha512"),
    ],
)
def test_every_family_signs_and_hashes(kid: str, alg: str, hash_name: str) -> None:
    hashes = {"at_hash": half_hash(ACCESS_TOKEN, hash_name), "c_hash": half_hash(CODE, hash_name)}
    good = token(hashes, kid=kid, alg=alg)
    assert check(good, access_token=ACCESS_TOKEN, code=CODE)["sub"] == "alice"
    assert refused(good, access_token="another", code=CODE) == "at_hash"
    assert refused(good, access_token=ACCESS_TOKEN, code="another") == "c_hash"


def test_ed448_hashes_with_shake256() -> None:
    half = part(hashlib.shake_256(ACCESS_TOKEN.encode()).digest(57))
    check(token({"at_hash": half}, kid="ed448", alg="EdDSA"), access_token=ACCESS_TOKEN)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["app"]},
        {"aud": ["app", "app"]},
        {"aud": ["app", "api"], "azp": "app"},
        {"azp": "app"},
        {"nbf": NOW + 59},
        {"iat": NOW + 59},
        {"exp": NOW - 59},
        {"exp": 253402300799},
        {"sub": "x" * 255},
        {"auth_time": ...},
        {"auth_time": None},
        {"at_hash": half_hash(ACCESS_TOKEN)},
    ],
    ids=str,
)
def test_what_is_allowed_is_accepted(changes: dict[str, Any]) -> None:
    check(token(changes), access_token=ACCESS_TOKEN)


@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "ID"])
def test_an_ordinary_type_is_accepted(typ: str | None) -> None:
    text = token(header={"typ": typ or ""})
    assert check(text)["sub"] == "alice"


# -- H6: the signature


def test_h6_alg_none_is_rejected() -> None:
    head = part({"alg": "none", "kid": "rsa"})
    for text in (f"{head}.{part(CLAIMS)}.", f"{head}.{part(CLAIMS)}.AAAA"):
        assert refused(text) == "alg"
    for spelling in ("None", "NONE", "nOnE", ""):
        assert refused(f"{part({'alg': spelling})}.{part(CLAIMS)}.AAAA") == "alg"


def test_h6_hs256_with_the_public_key_is_rejected() -> None:
    jwk = json.dumps(public_jwk(RSA_2048))
    for alg in ("HS256", "HS384", "HS512"):
        text = f"{part({'alg': alg, 'kid': 'rsa'})}.{part(CLAIMS)}"
        mac = jwt.get_algorithm_by_name(alg).compute_hash_digest(f"{jwk}{text}".encode())
        assert refused(f"{text}.{part(mac)}") == "alg"


def test_h6_an_algorithm_outside_the_list_is_rejected() -> None:
    rules = IDTokenRules(issuer=ISSUER, client_id="app", algorithms=("RS256",))
    for kid, alg in (("rsa", "PS256"), ("rsa", "RS512"), ("p256", "ES256"), ("ed", "EdDSA")):
        with pytest.raises(IDTokenRejected) as caught:
            validate(token(kid=kid, alg=alg), rules, keys=keys, now=NOW, nonce=NONCE)
        assert caught.value.reason == "alg"


@pytest.mark.parametrize(("declared", "used"), [("RS256", "PS256"), ("PS256", "RS256")])
def test_h6_rs256_and_ps256_are_not_exchanged(declared: str, used: str) -> None:
    head, _, rest = token(alg=used).partition(".")
    forged = f"{part({'alg': declared, 'kid': 'rsa'})}.{rest}"
    assert head not in forged
    assert refused(forged) == "signature"


def test_h6_a_key_that_names_its_algorithm_is_used_with_no_other() -> None:
    only = VerificationKey.from_jwk(public_jwk(RSA_2048, kid="rsa", alg="RS256"))
    assert only is not None
    with pytest.raises(IDTokenRejected) as caught:
        validate(token(alg="PS256"), RULES, keys=lambda kid, alg: [only], now=NOW, nonce=NONCE)
    assert caught.value.reason == "signature"


@pytest.mark.parametrize(
    "member",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"crit": ["b64"], "b64": True},
        {"b64": True},
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/cert"},
        {"jwk": public_jwk(P256)},
        {"x5c": ["MIIB"]},
        {"zip": "DEF"},
        {"enc": "A128GCM"},
    ],
    ids=lambda member: next(iter(member)),
)
def test_h6_header_members_that_choose_or_change_are_rejected(member: dict[str, Any]) -> None:
    header = {"alg": "ES256", "kid": "p256", **member}
    message = f"{part(header)}.{part(CLAIMS)}"
    signature = jwt.get_algorithm_by_name("ES256").sign(message.encode(), P256)
    assert refused(f"{message}.{part(signature)}") == "header"


def test_h6_an_encrypted_token_is_rejected() -> None:
    head = part({"alg": "RSA-OAEP", "enc": "A128GCM", "kid": "rsa"})
    assert refused(f"{head}.AAAA.AAAA.AAAA.AAAA") == "encrypted"


def test_h6_only_asymmetric_algorithms_can_be_configured() -> None:
    for wrong in ((), ("none",), ("RS256", "HS256"), ("RS256", "none"), ("ES256K",), ("rs256",)):
        with pytest.raises(ConfigurationError, match="Choose of RS256"):
            IDTokenRules(issuer=ISSUER, client_id="app", algorithms=wrong)


def test_h6_the_allow_list_is_what_is_configured_and_advertised() -> None:
    assert allowed_algorithms() == DEFAULT_ALGORITHMS
    assert allowed_algorithms((), ("none", "HS256", "ES256", "RS256")) == ("RS256", "ES256")
    assert allowed_algorithms(("ES256", "PS256"), ("PS256", "none")) == ("PS256",)
    assert allowed_algorithms(("ES256",), ()) == ("ES256",)
    for configured, advertised in (((), ("none",)), ((), ("HS256",)), (("ES256",), ("RS256",))):
        with pytest.raises(ProtocolError, match="id_token_signed_response_alg"):
            allowed_algorithms(configured, advertised)


def test_a_changed_token_is_rejected() -> None:
    head, payload, signature = token().split(".")
    other = part({**CLAIMS, "sub": "bob"})
    assert refused(f"{head}.{other}.{signature}") == "signature"
    assert refused(f"{head}.{payload}.{part(b'short')}") == "signature"
    assert refused(f"{head}.{payload}.") == "signature"


def test_one_of_several_keys_of_a_name_is_enough() -> None:
    same = [VerificationKey.from_jwk(public_jwk(one, kid="rsa")) for one in (P256, RSA_2048)]
    found = [key for key in same if key]
    claims = validate(token(), RULES, keys=lambda kid, alg: found, now=NOW, nonce=NONCE)
    assert claims["sub"] == "alice"


def test_a_token_without_kid_is_tried_with_every_key_that_fits() -> None:
    assert check(token(kid=None, key=P256, alg="ES256"))["sub"] == "alice"


RS256 = part({"alg": "RS256"})
MALFORMED = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "two parts": "a.b",
    "four parts": "a.b.c.d",
    "header a list": f"{part([])}.{part({})}.AAAA",
    "no alg": f"{part({})}.{part({})}.AAAA",
    "payload a list": f"{RS256}.{part([])}.AAAA",
    "payload a text": f"{RS256}.{part('text')}.AAAA",
    "kid a number": f"{part({'alg': 'RS256', 'kid': 1})}.{part({})}.AAAA",
    "alg a list": f"{part({'alg': ['RS256']})}.{part({})}.AAAA",
    "alg twice": part(b'{"alg":"RS256","alg":"ES256"}') + f".{part({})}.AAAA",
    "sub twice": f"{RS256}." + part(b'{"sub":"a","sub":"b"}') + ".AAAA",
    "NaN": f"{RS256}." + part(b'{"exp":NaN}') + ".AAAA",
    "infinite": f"{RS256}." + part(b'{"exp":1e999}') + ".AAAA",
    "deep": f"{RS256}." + part(b"[" * 9000) + ".AAAA",
    "no UTF-8": f"{RS256}." + part(b"\xff") + ".AAAA",
    "padding": f"{RS256}.{part({})}=.AAAA",
    "line feed": f"{RS256}.{part({})}.AAAA\n",
    "loose bits": f"{RS256}.{part({})}.AB",
    "not ASCII": f"{RS256}.{part({})}.\u00e4\ud800",
    "endless": f"{RS256}.{part({'x': 'y' * 70000})}.AAAA",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_signed_jwt_is_rejected(text: str) -> None:
    assert refused(text) == "malformed"


@pytest.mark.parametrize("value", [None, 1, {}, ["a.b.c"], b"a.b.c"])
def test_a_value_that_is_no_text_is_rejected(value: Any) -> None:
    assert refused(value) == "malformed"


# -- keys that cannot be had


def test_an_unknown_key_is_no_proof_whatever_the_claims_say() -> None:
    text = token({"iss": "https://evil.example", "sub": ""}, kid="new", key=RSA_2048)
    with pytest.raises(KeysUnavailable):
        check(text)


def test_no_key_that_is_known_and_none_named_is_no_proof() -> None:
    text = token(kid=None)
    with pytest.raises(KeysUnavailable):
        validate(text, RULES, keys=lambda kid, alg: [KNOWN["ed"]], now=NOW, nonce=NONCE)


@pytest.mark.parametrize("error", [ServerUnavailable("down"), ProtocolError("HTML")])
def test_a_jwks_that_cannot_be_had_is_no_proof(error: ATMError) -> None:
    def failing(kid: str | None, alg: str) -> Iterator[VerificationKey]:
        raise error
        yield KNOWN["rsa"]

    with pytest.raises(KeysUnavailable) as caught:
        validate(token(), RULES, keys=failing, now=NOW, nonce=NONCE)
    assert caught.value.__cause__ is error


def test_keys_are_asked_for_one_by_one() -> None:
    asked: list[str] = []

    def lazy(kid: str | None, alg: str) -> Iterator[VerificationKey]:
        asked.append("known")
        yield KNOWN["rsa"]
        asked.append("fetched")
        yield KNOWN["p256"]

    validate(token(), RULES, keys=lazy, now=NOW, nonce=NONCE)
    assert asked == ["known"]
    validate(token(kid="p256", alg="ES256"), RULES, keys=lazy, now=NOW, nonce=NONCE)
    assert asked == ["known", "known", "fetched"]


# -- H7: the claims

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("iss", {"iss": "https://evil.example"}),
    ("iss", {"iss": ISSUER + "/"}),
    ("iss", {"iss": ISSUER.upper()}),
    ("iss", {"iss": [ISSUER]}),
    ("iss", {"iss": ...}),
    ("aud", {"aud": "other"}),
    ("aud", {"aud": ["other", "third"]}),
    ("aud", {"aud": []}),
    ("aud", {"aud": ["app", 1]}),
    ("aud", {"aud": {"app": 1}}),
    ("aud", {"aud": "ap"}),
    ("aud", {"aud": ...}),
    ("azp", {"aud": ["app", "other"]}),
    ("azp", {"aud": ["app", "other"], "azp": "other"}),
    ("azp", {"azp": "other"}),
    ("azp", {"azp": None}),
    ("azp", {"azp": ["app"]}),
    ("exp", {"exp": NOW - 61}),
    ("exp", {"exp": NOW - 60}),
    ("exp", {"exp": ...}),
    ("exp", {"exp": "2100-01-01"}),
    ("exp", {"exp": str(NOW + 300)}),
    ("exp", {"exp": True}),
    ("exp", {"exp": None}),
    ("exp", {"exp": -1}),
    ("exp", {"exp": 10**400}),
    ("iat", {"iat": NOW + 61}),
    ("iat", {"iat": ...}),
    ("iat", {"iat": "now"}),
    ("iat", {"iat": -5}),
    ("nbf", {"nbf": NOW + 61}),
    ("nbf", {"nbf": "later"}),
    ("nonce", {"nonce": "another"}),
    ("nonce", {"nonce": NONCE + "x"}),
    ("nonce", {"nonce": ""}),
    ("nonce", {"nonce": 1}),
    ("nonce", {"nonce": "\ud83d\ude00"}),
    ("nonce", {"nonce": ...}),
    ("at_hash", {"at_hash": half_hash("another")}),
    ("at_hash", {"at_hash": half_hash(ACCESS_TOKEN, "sha512")}),
    ("at_hash", {"at_hash": ""}),
    ("at_hash", {"at_hash": 1}),
    ("at_hash", {"at_hash": "\u00e4"}),
    ("c_hash", {"c_hash": half_hash("another")}),
    ("c_hash", {"c_hash": None}),
    ("sub", {"sub": ""}),
    ("sub", {"sub": ...}),
    ("sub", {"sub": 12345}),
    ("sub", {"sub": None}),
    ("sub", {"sub": "x" * 256}),
    ("sub", {"sub": "\u00e4lice"}),
    ("sub", {"sub": "al\nice"}),
    ("sub", {"sub": "al\x00ice"}),
    ("typ", {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}),
]


@pytest.mark.parametrize(("reason", "changes"), WRONG, ids=str)
def test_h7_wrong_claims_are_rejected(reason: str, changes: dict[str, Any]) -> None:
    assert refused(token(changes), access_token=ACCESS_TOKEN, code=CODE) == reason


@pytest.mark.parametrize(
    "typ", ["logout+jwt", "at+jwt", "LOGOUT+JWT", "application/at+jwt", "dpop+jwt"]
)
def test_h7_a_token_of_another_type_is_rejected(typ: str) -> None:
    assert refused(token(header={"typ": typ})) == "typ"


def test_h7_a_type_that_is_no_text_is_rejected() -> None:
    assert refused(f"{part({'alg': 'RS256', 'typ': 1})}.{part(CLAIMS)}.AAAA") == "typ"


@pytest.mark.parametrize(
    ("auth_time", "good"),
    [
        (NOW - 100, True),
        (NOW - 159, True),
        (NOW - 161, False),
        (NOW + 59, True),
        (NOW + 61, False),
        (..., False),
        (None, False),
        ("yesterday", False),
        (str(NOW), False),
    ],
)
def test_h7_max_age_needs_a_recent_auth_time(auth_time: Any, good: bool) -> None:
    text = token({"auth_time": auth_time})
    if good:
        assert check(text, max_age=100)
    else:
        assert refused(text, max_age=100) == "auth_time"


def test_h7_max_age_zero_is_asked_too() -> None:
    assert check(token({"auth_time": NOW}), max_age=0)
    assert refused(token({"auth_time": NOW - 61}), max_age=0) == "auth_time"


@pytest.mark.parametrize("acr", ["bronze", ..., None, ["silver"], 1])
def test_h7_a_step_up_needs_one_of_the_acr_values(acr: Any) -> None:
    assert check(token(), acr_values=("gold", "silver"))["acr"] == "silver"
    assert refused(token({"acr": acr}), acr_values=("gold", "silver")) == "acr"


def test_the_clock_skew_is_configured() -> None:
    strict = IDTokenRules(issuer=ISSUER, client_id="app", clock_skew=0)
    with pytest.raises(IDTokenRejected) as caught:
        validate(token({"iat": NOW + 1}), strict, keys=keys, now=NOW)
    assert caught.value.reason == "iat"


# -- H8: refreshed ones


def refresh(text: str, old: Mapping[str, Any] = CLAIMS, source: Any = keys) -> FrozenDict:
    return validate_refreshed(
        text, RULES, keys=source, now=NOW, old_claims=old, access_token=ACCESS_TOKEN
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nonce": ...},
        {"auth_time": ...},
        {"iat": CLAIMS["iat"] - 60},
        {"iat": NOW, "exp": NOW + 900},
        {"aud": ["app"]},
        {"name": "Alice B."},
        {"at_hash": half_hash(ACCESS_TOKEN)},
    ],
    ids=str,
)
def test_h8_a_refreshed_token_of_the_same_sign_in_is_accepted(changes: dict[str, Any]) -> None:
    claims = refresh(token(changes))
    assert claims["sub"] == "alice"


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("sub", {"sub": "bob"}),
        ("sub", {"sub": "Alice"}),
        ("iss", {"iss": "https://evil.example"}),
        ("aud", {"aud": "other"}),
        ("aud", {"aud": ["app", "api"], "azp": "app"}),
        ("azp", {"azp": "other"}),
        ("azp", {"azp": "app"}),
        ("iat", {"iat": CLAIMS["iat"] - 61}),
        ("auth_time", {"auth_time": CLAIMS["auth_time"] + 1}),
        ("nonce", {"nonce": "another"}),
        ("nonce", {"nonce": None}),
        ("at_hash", {"at_hash": half_hash("another")}),
        ("typ", {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}),
    ],
    ids=str,
)
def test_h8_a_refreshed_token_of_another_sign_in_is_rejected(
    reason: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(IDTokenRejected) as caught:
        refresh(token(changes))
    assert caught.value.reason == reason


@pytest.mark.parametrize("changes", [{"iat": NOW + 61}, {"exp": NOW - 61}, {"nbf": NOW + 61}])
def test_k1_a_refreshed_token_that_the_local_clock_does_not_like_is_not_held_against_the_grant(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ClocksDisagree):
        refresh(token(changes))


def test_h8_a_nonce_where_there_was_none_is_rejected() -> None:
    old = {name: value for name, value in CLAIMS.items() if name != "nonce"}
    with pytest.raises(IDTokenRejected) as caught:
        refresh(token(), old)
    assert caught.value.reason == "nonce"


def test_h8_a_subject_where_none_was_known_is_rejected() -> None:
    with pytest.raises(IDTokenRejected) as caught:
        refresh(token({"nonce": ...}), {})
    assert caught.value.reason == "sub"


def test_h8_a_subject_alone_is_enough_to_compare_with() -> None:
    assert refresh(token({"nonce": ...}), {"sub": "alice"})["sub"] == "alice"


def test_h8_without_keys_a_refreshed_token_proves_nothing() -> None:
    with pytest.raises(KeysUnavailable):
        refresh(token({"sub": "bob"}), source=lambda kid, alg: [])
    with pytest.raises(KeysUnavailable):
        refresh(token({"sub": "bob"}, kid="new", key=RSA_2048))


def test_h8_a_bad_signature_under_a_known_key_is_a_proof() -> None:
    with pytest.raises(IDTokenRejected) as caught:
        refresh(token(kid="rsa", key=P256, alg="ES256"), source=lambda kid, alg: [KNOWN["rsa"]])
    assert caught.value.reason == "signature"


# -- other uses, and what shows


def test_open_signed_gives_type_and_claims_of_any_token() -> None:
    text = token({"nonce": ...}, header={"typ": "logout+jwt"})
    signed = open_signed(Secret(text), algorithms=("RS256",), keys=keys, kind="logout token")
    assert (signed.typ, signed.claims["sub"], signed.key) == ("logout+jwt", "alice", KNOWN["rsa"])
    with pytest.raises(IDTokenRejected, match="The logout token was rejected"):
        open_signed(Secret("x"), algorithms=("RS256",), keys=keys, kind="logout token")


def test_an_error_can_be_copied_and_names_its_reason() -> None:
    error = IDTokenRejected("aud", kind="logout token")
    twin = copy.copy(error)
    assert (twin.reason, str(twin)) == (error.reason, str(error))
    assert "client id" in str(error)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: token({"aud": "other"}),
        lambda text: token({"nonce": "another"}),
        lambda text: token({"at_hash": "x"}),
        lambda text: token({"auth_time": 1}),
        lambda text: token(kid="unknown", key=RSA_2048),
        lambda text: text[:-4],
        lambda text: f"{text}.x",
        lambda text: "canary-not-a-jwt",
    ],
    ids=range(8),
)
def test_j1_no_traceback_shows_a_secret(spoil: Callable[[str], str]) -> None:
    good = token()
    text = spoil(good)
    given: dict[str, Any] = {"nonce": NONCE, "access_token": ACCESS_TOKEN, "code": CODE}
    secrets = [text, *given.values(), *good.split(".")[1:]]
    try:
        validate(text, RULES, keys=keys, now=NOW, max_age=100, **given)
    except (IDTokenRejected, KeysUnavailable) as error:
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [frame for frame in shown.stack if frame.filename == id_token.__file__]
    visible = "".join(repr(frame.locals) for frame in frames)
    visible += "".join(shown.format_exception_only())
    assert frames
    for secret in secrets:
        assert secret not in visible


CLAIM = st.sampled_from([*CLAIMS, "azp", "nbf", "at_hash", "events", "acr"])
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["app", ISSUER, NOW, NONCE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=1000)
@given(
    changes=st.dictionaries(CLAIM, VALUE, max_size=4),
    header=st.dictionaries(st.sampled_from(["typ", "cty", "x5t", "kty"]), VALUE, max_size=2),
    old=st.dictionaries(CLAIM, VALUE, max_size=4),
)
def test_n1_claims_raise_typed_errors_only(
    changes: dict[str, Any], header: dict[str, Any], old: dict[str, Any]
) -> None:
    message = f"{part({**header, 'alg': 'ES256', 'kid': 'p256'})}.{part({**CLAIMS, **changes})}"
    signature = jwt.get_algorithm_by_name("ES256").sign(message.encode(), P256)
    text = f"{message}.{part(signature)}"
    with contextlib.suppress(ATMError):
        check(text, access_token=ACCESS_TOKEN, max_age=5, acr_values=("silver",))
    with contextlib.suppress(ATMError):
        refresh(text, {**CLAIMS, **old})


@settings(max_examples=200, deadline=1000)
@given(
    text=st.text(max_size=200)
    | st.lists(st.binary(max_size=40)).map(lambda parts: ".".join(map(part, parts)))
)
def test_n1_texts_raise_typed_errors_only(text: str) -> None:
    with pytest.raises((IDTokenRejected, KeysUnavailable)):
        check(text)
