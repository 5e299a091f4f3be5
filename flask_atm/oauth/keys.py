"""Keys of authorization servers, read from their JWKS (RFC 7517, RFC 7518, RFC 8037).

Only what can verify a signature well is taken: RSA of 2048 bits or more, the three NIST curves,
Ed25519 and Ed448. Everything else in a JWKS is passed over, as RFC 7517, section 5, asks for.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import InvalidKeyError

__all__ = ["SIGNATURE_ALGORITHMS", "VerificationKey", "read_jwks"]

_RSA: Final = ("RS256", "PS256", "RS384", "PS384", "RS512", "PS512")
_BY_FAMILY: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": _RSA,
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    # RFC 9864 gives the two curves names of their own.
    "Ed25519": ("EdDSA", "Ed25519"),
    "Ed448": ("EdDSA", "Ed448"),
}
#: Every algorithm by which a signature may be made: asymmetric ones only.
SIGNATURE_ALGORITHMS: Final[tuple[str, ...]] = tuple(
    dict.fromkeys(alg for algorithms in _BY_FAMILY.values() for alg in algorithms)
)
# By kty: who reads it, and the members that make the public key.
_READERS: Final = {
    "RSA": ("RS256", ("n", "e")),
    "EC": ("ES256", ("crv", "x", "y")),
    "OKP": ("EdDSA", ("crv", "x")),
}
_RSA_BITS: Final = range(2048, 16384 + 1)
_LONGEST_MEMBER: Final = 2800  # characters: 16384 bits
_LONGEST_EXPONENT: Final = 12  # characters: 64 bits; a longer one makes each verification slow
_MOST_KEYS: Final = 256
_PYJWT: Final = get_default_algorithms()


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationKey:
    """A public key that verifies signatures. Thread-safe.

    :param kid: its name in the JWKS, if it has one; two keys may have the same.
    :param family: ``RSA``, or the name of the curve.
    :param algorithms: what it may be used with: the one that the JWK names, or all of its family.
    """

    kid: str | None
    family: str
    algorithms: tuple[str, ...]
    _public: Any = field(repr=False)

    @classmethod
    def from_jwk(cls, jwk: object) -> Self | None:
        """Read a member of a JWKS; ``None`` for one that is weak, broken or for another use."""
        if not isinstance(jwk, dict) or not _may_verify(jwk):
            return None
        public = _public_key(jwk)
        family: Any = "RSA" if jwk.get("kty") == "RSA" else jwk.get("crv")
        if public is None or family not in _BY_FAMILY:
            return None
        if family == "RSA" and public.key_size not in _RSA_BITS:
            return None
        algorithms = _algorithms(family, jwk.get("alg"))
        if not algorithms:
            return None
        return cls(kid=jwk.get("kid"), family=family, algorithms=algorithms, _public=public)

    def verify(self, alg: str, message: bytes, signature: bytes) -> bool:
        """Say whether this key made the signature, by an algorithm that it may be used with."""
        if alg not in self.algorithms:
            return False
        algorithm = _PYJWT["EdDSA" if self.family.startswith("Ed") else alg]
        return algorithm.verify(message, self._public, signature)

    def digest(self, alg: str, data: bytes) -> bytes:
        """Hash as the algorithm does: for ``at_hash`` and ``c_hash`` (OIDC Core 3.1.3.6)."""
        if self.family == "Ed448":
            return hashlib.shake_256(data).digest(114)
        bits = "512" if self.family == "Ed25519" else alg[-3:]
        return hashlib.new(f"sha{bits}", data).digest()


def read_jwks(document: Mapping[str, Any]) -> tuple[VerificationKey, ...]:
    """Give the suitable keys of a JWKS in its order, at most 256.

    :raises ValueError: ``keys`` is no list.
    """
    members = document.get("keys")
    if not isinstance(members, list):
        raise ValueError("a JWKS is an object with a list called keys")  # noqa: TRY004 -- content
    return tuple(_first(map(VerificationKey.from_jwk, members)))


def _first(keys: Iterable[VerificationKey | None]) -> list[VerificationKey]:
    found: list[VerificationKey] = []
    for key in keys:
        if key is not None:
            found.append(key)
        if len(found) == _MOST_KEYS:
            break
    return found


def _may_verify(jwk: Mapping[str, Any]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and isinstance(jwk.get("kid", ""), str)
        and "d" not in jwk  # a private key that everybody can read proves nothing
    )


def _public_key(jwk: Mapping[str, Any]) -> Any | None:
    kty = jwk.get("kty")
    if not isinstance(kty, str) or kty not in _READERS:
        return None
    reader, names = _READERS[kty]
    members = {name: jwk.get(name) for name in names}
    if not all(isinstance(text, str) and len(text) <= _LONGEST_MEMBER for text in members.values()):
        return None
    if len(members.get("e") or "") > _LONGEST_EXPONENT:
        return None
    try:
        return _PYJWT[reader].from_jwk({"kty": kty, **members})
    except (InvalidKeyError, ValueError, UnsupportedAlgorithm):
        return None


def _algorithms(family: str, alg: object) -> tuple[str, ...]:
    suitable = _BY_FAMILY[family]
    if alg is None:
        return suitable
    if alg not in suitable:
        return ()
    # The two names of an Edwards curve mean the same algorithm.
    return suitable if family.startswith("Ed") else (str(alg),)
