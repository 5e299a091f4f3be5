"""Every error of flask-atm, ordered by what the caller does next.

The errors that a browser can meet (:exc:`LoginRequired`, :exc:`InsufficientScope`,
:exc:`LoginFailed`, :exc:`ServerUnavailable`) are Werkzeug HTTP exceptions too, so that any Flask
application, and any blueprint with a catch-all handler, answers them with the right status.

No error carries a token, a secret or a key. All of them are safe to log and may be raised from
any thread.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import (
    BadRequest,
    Forbidden,
    HTTPException,
    ServiceUnavailable,
    Unauthorized,
)
from werkzeug.wrappers import Response as WebResponse

if TYPE_CHECKING:
    import requests

__all__ = [
    "ATMError",
    "BrowserError",
    "ConfigurationError",
    "InsufficientScope",
    "InvalidTokenResponse",
    "LoginFailed",
    "LoginRequired",
    "OriginNotAllowed",
    "ProtocolError",
    "ServerUnavailable",
    "SessionTooLarge",
    "StepUpRequired",
    "StoreError",
    "TokenEndpointError",
]


class ATMError(Exception):
    """Base of every error raised by flask-atm."""


class ConfigurationError(ATMError):
    """Fix the configuration: every problem that was found, each with its cure.

    Also raised at call time for the name of a provider, client or API that does not exist.

    :param problems: one sentence each.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        super().__init__("\n".join(self.problems))


class BrowserError(ATMError, HTTPException):
    """An error that answers a browser by itself, whatever ``response`` it carries."""

    def get_response(self, environ: Any = None, scope: Any = None) -> WebResponse:
        # Werkzeug would send ``self.response``, which here is the answer of an API, as the page.
        return WebResponse(
            self.get_body(environ, scope), self.code, self.get_headers(environ, scope)
        )


class LoginRequired(BrowserError, Unauthorized):
    """Nobody is signed in, or the sign-in has ended: send the user to sign in.

    :param provider: the name of the provider to sign in at, if it is known.
    :param reason: one word for programs: ``anonymous`` (nobody signed in), ``ended`` (signed out
        elsewhere, past its end, unused, or sealed with a key that is gone), ``expired`` (no refresh
        token), ``invalid_grant`` (the provider ended it), ``slot`` (not for these parameters),
        ``outside_request`` (no grant was named), ``other_store``, or the ``error`` code of
        the authorization server.
    """

    def __init__(
        self,
        message: str = "Sign in to continue.",
        *,
        provider: str | None = None,
        reason: str = "anonymous",
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.reason = reason


class StepUpRequired(LoginRequired):
    """Sign in again, stronger or more recently (RFC 9470).

    :param acr_values: the authentication context classes asked for, best first.
    :param max_age: seconds that may have passed since the user last authenticated.
    :param response: the answer of the API that asked for it, if an API did.
    """

    def __init__(
        self,
        message: str = "Sign in again to continue.",
        *,
        provider: str | None = None,
        reason: str = "insufficient_user_authentication",
        acr_values: tuple[str, ...] = (),
        max_age: int | None = None,
        response: "requests.Response | None" = None,
    ) -> None:
        super().__init__(message, provider=provider, reason=reason)
        self.acr_values = acr_values
        self.max_age = max_age
        self.response: requests.Response | None = response  # type: ignore[assignment]


class LoginFailed(BrowserError, BadRequest):
    """The authorization response was an error or did not match: show it, do not redirect.

    :param error: the error code of RFC 6749, section 4.1.2.1, or a word of ours.
    :param error_description: what went wrong, for a person; never unescaped server text in HTML.
    :param reference: a short random word that the log line of this failure carries too.
    """

    def __init__(
        self,
        message: str = "The sign-in failed.",
        *,
        error: str = "invalid_request",
        error_description: str | None = None,
        reference: str | None = None,
        provider: str | None = None,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.error_description = error_description
        self.reference = reference
        self.provider = provider


class InsufficientScope(BrowserError, Forbidden):
    """The token lacks a scope (RFC 6750, section 3.1): ask for it at the next sign-in.

    :param scope: the scopes that are missing, separated by spaces, where they are known.
    :param response: the answer of the API that refused, if an API did.
    """

    def __init__(
        self,
        message: str = "The access token does not cover this request.",
        *,
        scope: str | None = None,
        response: "requests.Response | None" = None,
    ) -> None:
        super().__init__(message)
        self.scope = scope
        self.response: requests.Response | None = response  # type: ignore[assignment]


class ServerUnavailable(BrowserError, ServiceUnavailable):
    """The authorization server gave no usable answer (none, 3xx, 5xx, 429): try later.

    The sign-in is kept. Flask answers 503 with ``Retry-After``.

    :param retry_after: whole seconds after which a new attempt makes sense, at least 1.
    """

    def __init__(
        self,
        message: str = "The sign-in server cannot be reached.",
        *,
        retry_after: float = 1,
        provider: str | None = None,
    ) -> None:
        seconds = max(1, int(-(-retry_after // 1)))
        super().__init__(message, retry_after=seconds)
        self.provider = provider
        self.retry_after: int = seconds


class OriginNotAllowed(ATMError):
    """The access token was about to go to the wrong place; nothing was sent there."""


class ProtocolError(ATMError):
    """Look at the authorization server: it answered something that the standards do not allow."""


class TokenEndpointError(ProtocolError):
    """The token endpoint refused the request (RFC 6749, section 5.2).

    :param error: the error code.
    :param error_description: the server's text, limited and cleaned, or ``None``.
    :param status: the HTTP status.
    """

    def __init__(
        self,
        error: str,
        error_description: str | None = None,
        *,
        status: int | None = None,
        provider: str | None = None,
        hint: str = "",
    ) -> None:
        text = f"The token endpoint answered {error!r}"
        text += f": {error_description}" if error_description else "."
        super().__init__(f"{text} {hint}".rstrip())
        self.error = error
        self.error_description = error_description
        self.status = status
        self.provider = provider


class InvalidTokenResponse(ProtocolError):
    """The token endpoint said 200, but what came is no token response."""


class StoreError(ATMError):
    """Look at the store: it does not answer, or it refused."""


class SessionTooLarge(StoreError):
    """The grant does not fit into the session cookie: choose a server-side store."""
