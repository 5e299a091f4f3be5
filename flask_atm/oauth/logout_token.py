"""Every check of a logout token (OpenID Connect Back-Channel Logout 1.0, 2.4 and 2.6). No I/O.

A logout token is an order to end sign-ins, and anybody can send one. So it counts only under a
signature of the provider, and nothing else that the provider signs may pass for one: an ID token,
which every user has, is refused by its ``nonce`` and for want of the ``events`` claim.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flask_atm.errors import ProtocolError
from flask_atm.oauth.id_token import (
    LOGOUT_EVENT,
    IDTokenRejected,
    IDTokenRules,
    KeySource,
    audiences,
    instant,
    is_subject,
    open_signed,
)
from flask_atm.tokens import Secret

__all__ = ["LogoutToken", "LogoutTokenRejected", "validate_logout"]

_KIND: Final = "logout token"
#: ``typ`` where there is one; the second is what came before types were explicit.
_TYPES: Final = frozenset({"logout+jwt", "jwt"})
#: Seconds after which a token that names no end of its own is too old.
_OLDEST: Final = 3600.0
_LONGEST_ID: Final = 1024
_WHY: Final[Mapping[str, str]] = {
    "aud": "it is not for this client (aud). Compare the client id with the registration.",
    "azp": "it was issued to another client (azp).",
    "events": "it does not say that it ends a session (events). An ID token is no logout token.",
    "exp": "it has expired (exp). Compare the clocks.",
    "iat": "it is dated in the future, over an hour ago, or not at all (iat). Compare the clocks.",
    "iss": "it is from another issuer (iss). Compare the configured issuer with the server's.",
    "jti": "it has no identifier (jti).",
    "nbf": "it is not valid yet (nbf). Compare the clocks.",
    "nonce": "it has a nonce, which only an ID token may have.",
    "sid": "its session (sid) is not as the standard has it.",
    "sub": "it names neither a subject (sub) nor a session (sid), or not as the standard has it.",
    "typ": "it is a token of another kind (typ).",
}


class LogoutTokenRejected(ProtocolError):
    """The token is proved bad: nothing is ended.

    :param reason: one word for programs: the name of the claim or header member that is wrong,
        or ``signature``, ``header``, ``malformed``, ``encrypted``.
    :param message: for people; by default made from the reason.
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(message or f"The logout token was rejected: {_WHY[reason]}")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class LogoutToken:
    """What a logout token says, once it was checked.

    :param token_id: its ``jti``.
    :param issued_at: its ``iat``, epoch seconds by the provider's clock.
    :param subject: whose sign-ins end; those of this session only, where one is named.
    """

    token_id: str
    issued_at: float
    subject: str | None = field(default=None, repr=False)
    session_id: str | None = field(default=None, repr=False)

    @property
    def entry(self) -> tuple[str, str]:
        """What decides which sign-ins end: ``sid`` and its value, or ``sub`` and its value."""
        return ("sid", self.session_id) if self.session_id else ("sub", self.subject or "")


def validate_logout(token: str, rules: IDTokenRules, *, keys: KeySource, now: float) -> LogoutToken:
    """Check a logout token and give what it says.

    :param rules: those of the ID tokens of the provider: the same keys sign both.
    :param keys: gives the keys to try.
    :param now: epoch seconds.
    :raises LogoutTokenRejected: it is proved bad.
    :raises KeysUnavailable: it cannot be checked now.
    """
    sealed = Secret(token)
    del token
    rejected = None
    try:
        signed = open_signed(sealed, algorithms=rules.algorithms, keys=keys, kind=_KIND)
    except IDTokenRejected as error:
        rejected = LogoutTokenRejected(error.reason, str(error))
    if rejected is not None:
        raise rejected
    claims = signed.claims
    faults = (_kind_faults(signed.typ, claims), _faults(claims, rules), _times(claims, now, rules))
    fault = next((fault for group in faults for fault in group), None)
    if fault is not None:
        raise LogoutTokenRejected(fault)
    return LogoutToken(
        token_id=claims["jti"],
        issued_at=claims["iat"],
        subject=claims.get("sub"),
        session_id=claims.get("sid"),
    )


def _kind_faults(typ: str | None, claims: Mapping[str, Any]) -> Iterator[str]:
    """Find what tells that this is a token of another kind."""
    if typ is not None and typ.lower() not in _TYPES:
        yield "typ"
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(LOGOUT_EVENT), dict):
        yield "events"
    if "nonce" in claims:
        yield "nonce"


def _faults(claims: Mapping[str, Any], rules: IDTokenRules) -> Iterator[str]:
    if claims.get("iss") != rules.issuer:
        yield "iss"
    if rules.client_id not in audiences(claims):
        yield "aud"
    if claims.get("azp", rules.client_id) != rules.client_id:
        yield "azp"
    if not _is_id(claims.get("jti")):
        yield "jti"
    if "sub" in claims and not is_subject(claims["sub"]):
        yield "sub"
    if "sid" in claims and not _is_id(claims["sid"]):
        yield "sid"
    if "sub" not in claims and "sid" not in claims:
        yield "sub"


def _times(claims: Mapping[str, Any], now: float, rules: IDTokenRules) -> Iterator[str]:
    skew, issued_at = rules.clock_skew, instant(claims.get("iat"))
    if issued_at is None or not now - _OLDEST - skew <= issued_at <= now + skew:
        yield "iat"
    if "exp" in claims:
        # The first drafts had none, and servers that were built by them still have none.
        expires_at = instant(claims["exp"])
        if expires_at is None or now >= expires_at + skew:
            yield "exp"
    if "nbf" in claims:
        valid_from = instant(claims["nbf"])
        if valid_from is None or valid_from > now + skew:
            yield "nbf"


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_ID
