"""Every check of an ID token (OIDC Core 3.1.3.7 and 12.2, RFC 7515, RFC 8725). No I/O of its own.

Two errors tell two things apart: :exc:`IDTokenRejected`, the token is proved bad, and
:exc:`KeysUnavailable`, nobody can tell now, because the key that it names is not known. A claim
counts only under a verified signature.

What is secret (tokens, codes, nonces) is held as :class:`~flask_atm.tokens.Secret` wherever an
error may be raised, so that a traceback with local variables does not show it.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hmac import compare_digest
from typing import Any, Final

from flask_atm.errors import ConfigurationError, ProtocolError, ServerUnavailable
from flask_atm.oauth.back_channel import Answer
from flask_atm.oauth.keys import SIGNATURE_ALGORITHMS, VerificationKey
from flask_atm.tokens import FrozenDict, Secret

__all__ = [
    "DEFAULT_ALGORITHMS",
    "LOGOUT_EVENT",
    "ClocksDisagree",
    "IDTokenRejected",
    "IDTokenRules",
    "KeySource",
    "KeysUnavailable",
    "Signed",
    "allowed_algorithms",
    "audiences",
    "instant",
    "is_subject",
    "open_signed",
    "validate",
    "validate_refreshed",
]

DEFAULT_ALGORITHMS: Final = SIGNATURE_ALGORITHMS

#: Gives the keys that may have made a signature, by the ``kid`` and ``alg`` of its header, best
#: first. It may be lazy: the next key is asked for only when the last one did not do.
KeySource = Callable[[str | None, str], Iterable[VerificationKey]]

_LONGEST: Final = 65536
_IAT_TOLERANCE: Final = 60
_LATEST: Final = 1e15
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")
LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
# Header members that would let the token choose its own key, change its meaning or its encoding.
_REFUSED_MEMBERS: Final = frozenset({"crit", "jku", "jwk", "x5u", "x5c", "b64", "enc", "zip"})

_WHY: Final[Mapping[str, str]] = {
    "acr": "the user did not sign in with the strength (acr) that was asked for.",
    "alg": "its signature algorithm is not allowed. Set the algorithms of ATM_ID_TOKEN to what"
    " the server signs with; none and HS… are never accepted.",
    "at_hash": "it belongs to another access token (at_hash).",
    "aud": "it is not for this client (aud). Compare the client id with the registration.",
    "auth_time": "the user did not sign in recently enough, or the server does not say when"
    " (auth_time).",
    "azp": "it was issued to another client (azp).",
    "c_hash": "it belongs to another authorization code (c_hash).",
    "encrypted": "it is encrypted. Register this client without id_token_encrypted_response_alg.",
    "exp": "it has expired, or does not say when it does (exp). Compare the clocks.",
    "header": "its header has members that are never trusted (crit, jku, jwk, x5u, x5c …).",
    "iat": "it is dated in the future, before the one that it replaces, or not at all (iat)."
    " Compare the clocks.",
    "iss": "it is from another issuer (iss). Compare the configured issuer with the server's.",
    "malformed": "it is no signed JWT.",
    "nbf": "it is not valid yet (nbf). Compare the clocks.",
    "nonce": "it belongs to another sign-in (nonce).",
    "signature": "its signature is wrong.",
    "sub": "its subject (sub) is missing, not as the standard has it, or another one than before.",
    "typ": "it is a token of another kind (typ).",
}


class IDTokenRejected(ProtocolError):
    """The token is proved bad.

    :param reason: one word for programs: the name of the claim or header member that is wrong,
        or ``signature``, ``header``, ``malformed``, ``encrypted``.
    :param kind: what was expected, for people.
    """

    def __init__(self, reason: str, *, kind: str = "ID token") -> None:
        super().__init__(f"The {kind} was rejected: {_WHY[reason]}")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason,), {"args": self.args}


class KeysUnavailable(ProtocolError):
    """The token cannot be checked now: its key is not in the JWKS, or the JWKS cannot be had.

    Where the server did not answer, ``__cause__`` is the :exc:`~flask_atm.ServerUnavailable`.
    """


class ClocksDisagree(ProtocolError):
    """A refreshed token is genuine, but not valid by the local clock: the old one stays."""


def allowed_algorithms(
    configured: Iterable[str] = (), advertised: Iterable[str] = ()
) -> tuple[str, ...]:
    """Give the algorithms to accept: what is configured, less what the server does not have.

    :param configured: from ``ATM_ID_TOKEN``; empty: all asymmetric ones.
    :param advertised: ``id_token_signing_alg_values_supported``; empty: the server does not say.
    :raises ProtocolError: they have none in common.
    """
    ours = tuple(configured) or DEFAULT_ALGORITHMS
    theirs = tuple(advertised)
    common = tuple(alg for alg in ours if not theirs or alg in theirs)
    if common:
        return common
    raise ProtocolError(
        f"The server signs ID tokens with {', '.join(theirs)[:200]} only, accepted are"
        f" {', '.join(ours)}. Set id_token_signed_response_alg of the registration to one of"
        " these; none and HS… are never accepted."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class IDTokenRules:
    """What ID tokens of one provider have to be.

    :param issuer: the configured issuer, to the letter.
    :param client_id: ours.
    :param algorithms: the asymmetric signature algorithms to accept.
    :param clock_skew: seconds by which the clocks may differ.
    :raises ConfigurationError: an algorithm is not an asymmetric one.
    """

    issuer: str
    client_id: str
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    clock_skew: float = 60

    def __post_init__(self) -> None:
        unfit = [alg for alg in self.algorithms if alg not in SIGNATURE_ALGORITHMS]
        if unfit or not self.algorithms:
            raise ConfigurationError(
                f"algorithms of ATM_ID_TOKEN: {', '.join(map(repr, unfit)) or 'an empty list'}"
                f" cannot be used. Choose of {', '.join(SIGNATURE_ALGORITHMS)}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """A JWT and its parts; under a verified signature when :func:`open_signed` gives it.

    :param typ: the ``typ`` of its header, or ``None``.
    :param claims: the payload.
    :param key: the key that made the signature.
    """

    kid: str | None
    alg: str
    typ: str | None
    claims: FrozenDict = field(repr=False)
    key: VerificationKey | None = None
    _message: bytes = field(repr=False)
    _signature: bytes = field(repr=False)

    def matches(self, half_hash: object, secret: Secret) -> bool:
        """Say whether this is the hash of a secret, as ``at_hash`` and ``c_hash`` are made."""
        if self.key is None or not isinstance(half_hash, str):
            return False
        digest = self.key.digest(self.alg, secret.reveal().encode())
        half = urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
        return _same(half_hash, Secret(half))


def open_signed(
    token: Secret,
    *,
    algorithms: Iterable[str],
    keys: KeySource,
    kind: str = "ID token",
) -> Signed:
    """Verify the signature of a JWT: no claim and no ``typ`` is looked at.

    :param algorithms: the allow-list; what is not in it is rejected before any key is asked for.
    :param keys: gives the keys to try.
    :param kind: what it should be, for the messages.
    :raises IDTokenRejected: no signed JWT, not allowed, or a wrong signature under a known key.
    :raises KeysUnavailable: no key that is known verifies it, and none that it names is known.
    """
    signed = _take_apart(token)
    if isinstance(signed, str):
        raise IDTokenRejected(signed, kind=kind)
    if signed.alg not in tuple(algorithms) or signed.alg not in SIGNATURE_ALGORITHMS:
        raise IDTokenRejected("alg", kind=kind)
    known, cause = False, None
    try:
        for key in keys(signed.kid, signed.alg):
            if key.verify(signed.alg, signed._message, signed._signature):
                return replace(signed, key=key)
            known = known or (signed.kid is not None and key.kid == signed.kid)
    except (ProtocolError, ServerUnavailable) as error:
        cause = error
    if known:
        raise IDTokenRejected("signature", kind=kind)
    raise KeysUnavailable(
        f"The {kind} cannot be checked now: none of the server's keys that are known here is the"
        " one that signed it. If it stays so, look at the jwks_uri of the server."
    ) from cause


def validate(
    token: str,
    rules: IDTokenRules,
    *,
    keys: KeySource,
    now: float,
    nonce: str | None = None,
    access_token: str | None = None,
    code: str | None = None,
    max_age: int | None = None,
    acr_values: tuple[str, ...] = (),
) -> FrozenDict:
    """Check the ID token of a sign-in and give its claims (OIDC Core 3.1.3.7).

    :param keys: gives the keys to try: :meth:`MetadataCache.candidates
        <flask_atm.oauth.metadata.MetadataCache.candidates>` with the metadata of the provider.
    :param now: epoch seconds.
    :param nonce: what was sent with the authorization request.
    :param access_token: what came with it: ``at_hash`` is checked where there is one.
    :param code: what it was exchanged for: ``c_hash`` is checked where there is one.
    :param max_age: what was asked for, in seconds: ``auth_time`` has to be there and recent.
    :param acr_values: what was asked for: ``acr`` has to be one of them.
    :raises IDTokenRejected: it is proved bad.
    :raises KeysUnavailable: it cannot be checked now.
    """
    secrets = {"nonce": nonce, "at_hash": access_token, "c_hash": code}
    expected = {name: Secret(text) for name, text in secrets.items() if text is not None}
    sealed = Secret(token)
    del token, nonce, access_token, code, secrets
    signed = open_signed(sealed, algorithms=rules.algorithms, keys=keys)
    _refuse(_faults(signed, rules, expected))
    _refuse(_time_faults(signed.claims, now, rules.clock_skew))
    _refuse(_sign_in_faults(signed.claims, expected.get("nonce")))
    _refuse(_strength_faults(signed.claims, (now, rules.clock_skew), max_age, acr_values))
    return signed.claims


def validate_refreshed(
    token: str,
    rules: IDTokenRules,
    *,
    keys: KeySource,
    now: float,
    old_claims: Mapping[str, Any],
    access_token: str | None = None,
) -> FrozenDict:
    """Check the ID token that came with a refresh and give its claims (OIDC Core 12.2).

    :param old_claims: those of the sign-in.
    :raises IDTokenRejected: it is proved bad: the grant has to end.
    :raises KeysUnavailable: it cannot be checked now: keep the old one.
    :raises ClocksDisagree: by the local clock it is not valid now: keep the old one.
    """
    expected = {} if access_token is None else {"at_hash": Secret(access_token)}
    sealed = Secret(token)
    del token, access_token
    signed = open_signed(sealed, algorithms=rules.algorithms, keys=keys)
    _refuse(_faults(signed, rules, expected))
    _refuse(_refresh_faults(signed.claims, old_claims))
    # A clock that is wrong must not sign users out: what came is genuine, only its times are odd.
    fault = next(_time_faults(signed.claims, now, rules.clock_skew), None)
    if fault:
        raise ClocksDisagree(f"The ID token is not valid now: {_WHY[fault]}")
    return signed.claims


def _refuse(faults: Iterator[str]) -> None:
    fault = next(faults, None)
    if fault:
        raise IDTokenRejected(fault)


def _faults(signed: Signed, rules: IDTokenRules, expected: Mapping[str, Secret]) -> Iterator[str]:
    claims = signed.claims
    if not _is_id_token(signed):
        yield "typ"
    if claims.get("iss") != rules.issuer:
        yield "iss"
    entitled = audiences(claims)
    if rules.client_id not in entitled:
        yield "aud"
    if ("azp" in claims or len(entitled) > 1) and claims.get("azp") != rules.client_id:
        yield "azp"
    if not is_subject(claims.get("sub")):
        yield "sub"
    for name in ("at_hash", "c_hash"):
        if name in claims and name in expected and not signed.matches(claims[name], expected[name]):
            yield name


def _time_faults(claims: Mapping[str, Any], now: float, skew: float) -> Iterator[str]:
    expires_at, issued_at = instant(claims.get("exp")), instant(claims.get("iat"))
    if expires_at is None or now >= expires_at + skew:
        yield "exp"
    if issued_at is None or issued_at > now + skew:
        yield "iat"
    if "nbf" in claims:
        valid_from = instant(claims["nbf"])
        if valid_from is None or valid_from > now + skew:
            yield "nbf"


def _sign_in_faults(claims: Mapping[str, Any], nonce: Secret | None) -> Iterator[str]:
    if nonce is not None and not _same(claims.get("nonce"), nonce):
        yield "nonce"


def _strength_faults(
    claims: Mapping[str, Any],
    clock: tuple[float, float],
    max_age: int | None,
    acr_values: tuple[str, ...],
) -> Iterator[str]:
    now, skew = clock
    if max_age is not None:
        signed_in_at = instant(claims.get("auth_time"))
        if signed_in_at is None or not -skew <= now - signed_in_at <= max_age + skew:
            yield "auth_time"
    if acr_values and claims.get("acr") not in acr_values:
        yield "acr"


def _refresh_faults(claims: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[str]:
    if claims["sub"] != old.get("sub"):
        yield "sub"
    if claims["iss"] != old.get("iss", claims["iss"]):
        yield "iss"
    if "aud" in old:
        if set(audiences(claims)) != set(audiences(old)):
            yield "aud"
        if claims.get("azp") != old.get("azp"):
            yield "azp"
    issued_at = instant(claims.get("iat"))
    if issued_at is None or issued_at < (instant(old.get("iat")) or 0) - _IAT_TOLERANCE:
        yield "iat"
    if "auth_time" in claims and claims["auth_time"] != old.get("auth_time", claims["auth_time"]):
        yield "auth_time"
    if "nonce" in claims and not _same(claims["nonce"], Secret(str(old.get("nonce", "")))):
        yield "nonce"


def _is_id_token(signed: Signed) -> bool:
    # Before types were explicit (RFC 8725, section 3.11), only the event told a logout token.
    events = signed.claims.get("events")
    if isinstance(events, dict) and LOGOUT_EVENT in events:
        return False
    return not (signed.typ or "").lower().endswith("+jwt")


def audiences(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the audiences (``aud``), each once; none where the claim is not as it has to be."""
    audience = claims.get("aud")
    entries = [audience] if isinstance(audience, str) else audience
    if not isinstance(entries, list | tuple) or not all(isinstance(one, str) for one in entries):
        return ()
    return tuple(dict.fromkeys(entries))


def is_subject(subject: object) -> bool:
    """Tell whether this may be a ``sub`` (OIDC Core, section 2)."""
    return (
        isinstance(subject, str)
        and 0 < len(subject) <= 255
        and subject.isascii()
        and subject.isprintable()
    )


def instant(value: object) -> float | None:
    """Read a NumericDate (RFC 7519, section 2); ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < _LATEST else None


def _same(value: object, secret: Secret) -> bool:
    if not isinstance(value, str):
        return False
    ours = secret.reveal().encode("utf-8", "surrogatepass")
    return compare_digest(value.encode("utf-8", "surrogatepass"), ours)


def _take_apart(token: Secret) -> Signed | str:
    """Give the parts of a token, or the word for what is wrong with it. Raises nothing."""
    text: object = token.reveal()  # what a server sent as id_token may be anything
    if not isinstance(text, str) or len(text) > _LONGEST:
        return "malformed"
    parts = text.split(".")
    if len(parts) == 5:
        return "encrypted"
    if len(parts) != 3:
        return "malformed"
    head, payload, signature = map(_decoded, parts)
    header, claims = _object(head), _object(payload)
    if header is None or claims is None or signature is None:
        return "malformed"
    if _REFUSED_MEMBERS & header.keys():
        return "header"
    kid, alg, typ = header.get("kid"), header.get("alg"), header.get("typ")
    if not isinstance(alg, str) or not isinstance(kid, str | None):
        return "malformed"
    if not isinstance(typ, str | None):
        return "typ"
    message = text.rpartition(".")[0].encode()
    return Signed(
        kid=kid,
        alg=alg,
        typ=typ,
        claims=FrozenDict(claims),
        _message=message,
        _signature=signature,
    )


def _decoded(part: str) -> bytes | None:
    if not _BASE64URL.fullmatch(part) or len(part) % 4 == 1:
        return None
    data = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    return data if urlsafe_b64encode(data).decode().rstrip("=") == part else None


def _object(data: bytes | None) -> dict[str, Any] | None:
    """Read a JSON object as strictly as an answer: unique names, finite numbers, few levels."""
    try:
        return Answer(status=200, headers={}, body=data or b"").json()
    except ValueError:
        return None
