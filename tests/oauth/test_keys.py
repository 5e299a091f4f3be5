"""Keys from a JWKS: what is suitable is taken, whatever else is there."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from flask_atm.oauth.keys import SIGNATURE_ALGORITHMS, VerificationKey, read_jwks

RSA_2048 = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_1024 = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
P521 = ec.generate_private_key(ec.SECP521R1())
K256 = ec.generate_private_key(ec.SECP256K1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
ED448 = ed448.Ed448PrivateKey.generate()


def public_jwk(private: Any, **members: Any) -> dict[str, Any]:
    public = private.public_key()
    if isinstance(private, rsa.RSAPrivateKey):
        jwk = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(private, ec.EllipticCurvePrivateKey):
        jwk = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        jwk = OKPAlgorithm.to_jwk(public, as_dict=True)
    return {**jwk, **members}


def signed(private: Any, alg: str) -> tuple[bytes, bytes]:
    token = jwt.encode({"sub": "1"}, private, algorithm=alg)
    message, _, signature = token.rpartition(".")
    return message.encode(), jwt.utils.base64url_decode(signature)


def taken(jwk: object) -> VerificationKey:
    key = VerificationKey.from_jwk(jwk)
    assert key is not None
    return key


@pytest.mark.parametrize(
    ("private", "alg"),
    [(RSA_2048, alg) for alg in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")]
    + [(P256, "ES256"), (P384, "ES384"), (P521, "ES512"), (ED25519, "EdDSA"), (ED448, "EdDSA")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_algorithm_verifies_and_only_what_was_signed(private: Any, alg: str) -> None:
    key = taken(public_jwk(private, kid="k"))
    message, signature = signed(private, alg)
    assert key.kid == "k"
    assert key.verify(alg, message, signature)
    assert not key.verify(alg, message + b"x", signature)
    assert not key.verify(alg, message, signature[:-1])
    assert not key.verify(alg, message, b"")


def test_the_names_of_rfc_9864_mean_the_same_as_eddsa() -> None:
    message, signature = signed(ED25519, "EdDSA")
    for alg in ("EdDSA", "Ed25519"):
        key = taken(public_jwk(ED25519, alg=alg))
        assert key.verify("Ed25519", message, signature)
        assert key.verify("EdDSA", message, signature)
        assert not key.verify("Ed448", message, signature)


@pytest.mark.parametrize("alg", ["none", "HS256", "HS512", "ES256K", "RSA-OAEP", "", "rs256"])
def test_nothing_but_asymmetric_signatures_is_offered(alg: str) -> None:
    assert alg not in SIGNATURE_ALGORITHMS
    assert not taken(public_jwk(RSA_2048)).verify(alg, b"message", b"signature")


def test_h6_a_key_is_used_with_its_own_algorithm_only() -> None:
    message, signature = signed(RSA_2048, "PS256")
    assert taken(public_jwk(RSA_2048)).verify("PS256", message, signature)
    assert not taken(public_jwk(RSA_2048)).verify("RS256", message, signature)
    assert not taken(public_jwk(RSA_2048, alg="RS256")).verify("PS256", message, signature)


UNSUITABLE: dict[str, object] = {
    "weak": public_jwk(RSA_1024),
    "symmetric": {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"},
    "for encryption": public_jwk(RSA_2048, use="enc"),
    "odd use": public_jwk(RSA_2048, use=["sig"]),
    "for signing only": public_jwk(RSA_2048, key_ops=["sign"]),
    "odd operations": public_jwk(RSA_2048, key_ops="verify"),
    "for key wrapping": public_jwk(RSA_2048, alg="RSA-OAEP"),
    "rsa as hmac": public_jwk(RSA_2048, alg="HS256"),
    "alg none": public_jwk(RSA_2048, alg="none"),
    "alg a number": public_jwk(RSA_2048, alg=256),
    "alg of another family": public_jwk(RSA_2048, alg="ES256"),
    "alg of another curve": public_jwk(P256, alg="ES384"),
    "curve not allowed": public_jwk(K256),
    "curve unknown": {**public_jwk(P256), "crv": "P-257"},
    "curve swapped": {**public_jwk(P256), "crv": "P-384"},
    "not on the curve": {**public_jwk(P256), "y": public_jwk(P384)["y"][:43]},
    "key agreement": {"kty": "OKP", "crv": "X25519", "x": public_jwk(ED25519)["x"]},
    "short": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
    "private": {**public_jwk(RSA_2048), "d": "AQAB"},
    "exponent 1": public_jwk(RSA_2048, e="AQ"),
    "exponent 0": public_jwk(RSA_2048, e=""),
    "endless exponent": public_jwk(RSA_2048, e=public_jwk(RSA_2048)["n"]),
    "endless modulus": public_jwk(RSA_2048, n="A" * 1_000_000),
    "no modulus": {"kty": "RSA", "e": "AQAB"},
    "modulus a number": public_jwk(RSA_2048, n=65537),
    "broken base64": public_jwk(RSA_2048, n="%%%\ud800"),
    "kid a number": public_jwk(RSA_2048, kid=1),
    "kty unknown": {"kty": "AKP", "alg": "ML-DSA-44"},
    "kty a list": {"kty": ["RSA"]},
    "empty": {},
    "no object": "RSA",
    "null": None,
}


@pytest.mark.parametrize("jwk", UNSUITABLE.values(), ids=UNSUITABLE)
def test_h5_weak_and_unsuitable_keys_are_passed_over(jwk: object) -> None:
    assert VerificationKey.from_jwk(jwk) is None


def test_h5_duplicate_kid_and_missing_alg_are_kept_as_candidates() -> None:
    keys = read_jwks(
        {
            "keys": [
                *UNSUITABLE.values(),
                public_jwk(RSA_2048, kid="same"),
                public_jwk(P256, kid="same"),
                public_jwk(ED25519, use="sig", key_ops=["verify"]),
            ]
        }
    )
    assert [key.family for key in keys] == ["RSA", "P-256", "Ed25519"]
    assert [key.kid for key in keys] == ["same", "same", None]
    assert keys[0].algorithms == ("RS256", "PS256", "RS384", "PS384", "RS512", "PS512")


@pytest.mark.timed
@pytest.mark.parametrize(
    "member",
    [
        lambda n: {"kty": "RSA", "kid": str(n), "n": f"x{n}", "e": "AQAB"},
        lambda n: public_jwk(RSA_1024, kid=str(n)),
        lambda n: public_jwk(P256, kid=str(n)),
        lambda n: public_jwk(RSA_2048, kid=str(n)),
    ],
    ids=["broken", "weak", "p256", "rsa"],
)
def test_h5_ten_thousand_keys_take_bounded_time(member: Callable[[int], dict[str, Any]]) -> None:
    document = {"keys": [member(n) for n in range(10_000)]}
    started = time.perf_counter()
    keys = read_jwks(document)
    assert time.perf_counter() - started < 2
    assert len(keys) <= 256


@pytest.mark.parametrize("document", [{}, {"keys": None}, {"keys": {}}, {"keys": "RSA"}])
def test_a_jwks_without_a_list_is_an_error(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="list called keys"):
        read_jwks(document)


def test_the_hash_goes_with_the_algorithm() -> None:
    rsa_key = taken(public_jwk(RSA_2048))
    assert rsa_key.digest("PS384", b"token") == hashlib.sha384(b"token").digest()
    assert taken(public_jwk(P521)).digest("ES512", b"x") == hashlib.sha512(b"x").digest()
    assert taken(public_jwk(ED25519)).digest("EdDSA", b"x") == hashlib.sha512(b"x").digest()
    assert len(taken(public_jwk(ED448)).digest("EdDSA", b"x")) == 114


MEMBERS = [*public_jwk(RSA_2048, kid="k", use="sig", alg="RS256"), "crv", "x", "y", "d", "key_ops"]
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    base=st.sampled_from([public_jwk(key) for key in (RSA_2048, P256, P521, ED25519, ED448)]),
    changes=st.dictionaries(
        st.sampled_from(MEMBERS),
        JSON_VALUE | st.sampled_from(["RSA", "EC", "OKP", "P-256", "P-521", "Ed448", "AQAB"]),
        max_size=4,
    ),
)
def test_n1_no_jwk_raises(base: dict[str, Any], changes: dict[str, Any]) -> None:
    key = VerificationKey.from_jwk({**base, **changes})
    if key:
        assert key.algorithms
        assert json.dumps(key.kid)
        assert not key.verify(key.algorithms[0], b"message", b"signature")
