"""What an answer of a token endpoint means for the refresh token that was sent. All pure.

The table of the refresh algorithm, as code: was the refresh token spent, and what now? Values from
a server are taken leniently, because a rotated refresh token that is not kept is lost for good.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

from flask_atm.oauth.back_channel import Answer, Failure, Result
from flask_atm.oauth.token_endpoint import parse_error
from flask_atm.tokens import Secret

__all__ = ["DEFAULT_LIFETIME", "Tokens", "Verdict", "classify", "parse_tokens", "retry_after"]

#: Seconds that a token is taken to live where the server does not say.
DEFAULT_LIFETIME: Final = 300.0
_LONGEST_LIFETIME: Final = 30 * 86400.0
_LONGEST_RETRY_AFTER: Final = 300.0
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,65536}")
_TEXT: Final = re.compile(r"[\x20-\x7e]{1,65536}")
_INTERACTION: Final = frozenset(
    {"login_required", "interaction_required", "consent_required", "mfa_required"}
)
_CLIENT: Final = frozenset({"invalid_client", "unauthorized_client", "unsupported_grant_type"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """A token response (RFC 6749, section 5.1), as far as it can be used.

    :param access_token: ``None`` where only the rotated refresh token is usable.
    :param lifetime: seconds.
    :param lifetime_stated: whether the server said so.
    """

    access_token: Secret | None
    token_type: str
    lifetime: float
    lifetime_stated: bool = True
    refresh_token: Secret | None = None
    id_token: Secret | None = None
    scope: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What an answer means.

    :param kind: ``tokens`` · ``unavailable`` (no usable answer) · ``refused`` (the request) ·
        ``invalid_grant`` · ``bare`` (400 or 403 without a word) · ``interaction`` · ``client``
        (the registration) · ``unusable`` (200 without a token) · ``unsent`` (the send window was
        over: nothing happened).
    :param spent: whether the refresh token may have been spent: ``no``, ``yes``, ``unknown``.
    :param retry_after: seconds that the server asked for, limited.
    """

    kind: Literal[
        "tokens",
        "unavailable",
        "refused",
        "invalid_grant",
        "bare",
        "interaction",
        "client",
        "unusable",
        "unsent",
    ]
    spent: Literal["no", "yes", "unknown"]
    tokens: Tokens | None = None
    error: str = ""
    error_description: str | None = None
    status: int | None = None
    retry_after: float | None = None


def classify(result: Result, *, now: float) -> Verdict:
    """Say what the answer to a token request means.

    :param now: epoch seconds, for dates in ``Retry-After``.
    """
    if isinstance(result, Failure):
        return _failure(result)
    if result.status == 200:
        tokens = parse_tokens(result, now=now)
        if tokens is None:
            return Verdict(kind="unusable", spent="unknown", status=200)
        return Verdict(kind="tokens", spent="yes", tokens=tokens, status=200)
    pause = retry_after(result.headers.get("retry-after"), now=now)
    error = parse_error(result)
    if result.status == 429 or (result.status == 503 and (error or pause is not None)):
        return Verdict(kind="unavailable", spent="no", status=result.status, retry_after=pause)
    if not 400 <= result.status < 500:
        return Verdict(kind="unavailable", spent="unknown", status=result.status, retry_after=pause)
    return _refusal(result.status, error)


def _failure(failure: Failure) -> Verdict:
    if failure.reason == "window":
        return Verdict(kind="unsent", spent="no")
    spent: Literal["no", "unknown"] = "unknown" if failure.written else "no"
    kind: Literal["unusable", "unavailable"] = (
        "unusable" if failure.reason == "too_large" else "unavailable"
    )
    return Verdict(kind=kind, spent=spent, error=failure.reason)


def _refusal(status: int, parsed: tuple[str, str | None] | None) -> Verdict:
    """Read an error of RFC 6749, section 5.2, or what some servers send instead."""
    if parsed is None:
        if status in (400, 403):
            return Verdict(kind="bare", spent="unknown", status=status)
        return Verdict(kind="refused", spent="unknown", error=f"http_{status}", status=status)
    error, description = parsed
    kind: Literal["invalid_grant", "interaction", "client", "refused"]
    if error == "invalid_grant":
        kind = "invalid_grant"
    elif error in _INTERACTION:
        kind = "interaction"
    else:
        kind = "client" if error in _CLIENT else "refused"
    return Verdict(
        kind=kind,
        spent="unknown" if kind == "refused" else "no",
        error=error,
        error_description=description,
        status=status,
    )


def parse_tokens(answer: Answer, *, now: float) -> Tokens | None:
    """Read a token response; ``None`` where neither token in it can be used."""
    try:
        members = answer.json()
    except ValueError:
        return None
    access_token = _match(_TOKEN, members.get("access_token"))
    refresh_token = _match(_TEXT, members.get("refresh_token"))
    if access_token is None and refresh_token is None:
        return None
    id_token = _match(_TOKEN, members.get("id_token"))
    lifetime = _lifetime(members, access_token)
    return Tokens(
        access_token=Secret(access_token) if access_token else None,
        refresh_token=Secret(refresh_token) if refresh_token else None,
        id_token=Secret(id_token) if id_token else None,
        token_type=_token_type(members.get("token_type")),
        lifetime=DEFAULT_LIFETIME if lifetime is None else lifetime,
        lifetime_stated=lifetime is not None,
        scope=_match(_TEXT, members.get("scope")),
    )


def retry_after(value: str | None, *, now: float) -> float | None:
    """Read ``Retry-After`` (RFC 9110, section 10.2.3): seconds between 0 and 300, or ``None``."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isascii() else math.nan
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, OverflowError):  # 99999 o'clock
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


def _match(pattern: re.Pattern[str], value: Any) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _token_type(value: Any) -> str:
    text = _match(_TOKEN, value) or "Bearer"
    return {"bearer": "Bearer", "dpop": "DPoP", "n_a": "Bearer"}.get(text.lower(), text)


def _lifetime(members: Mapping[str, Any], access_token: str | None) -> float | None:
    """Give the lifetime that the server stated, limited; ``None``: it stated none."""
    seconds = _number(members.get("expires_in"))
    if seconds is not None and seconds > 0:
        return min(seconds, _LONGEST_LIFETIME)
    stated = _jwt_lifetime(access_token) if access_token else None
    return min(DEFAULT_LIFETIME, stated) if stated else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _jwt_lifetime(token: str) -> float | None:
    """Give ``exp - iat`` of a token that happens to be a JWT: a hint, nothing to be believed."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None
    if not isinstance(claims, dict):
        return None
    ends, begins = _number(claims.get("exp")), _number(claims.get("iat"))
    if ends is None or begins is None or ends <= begins:
        return None
    return ends - begins
