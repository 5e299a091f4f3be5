"""The token on a prepared request, and what an answer of 401 or 403 does to it."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from flask_atm.calls.origins import Destination
from flask_atm.errors import (
    ATMError,
    InsufficientScope,
    OriginNotAllowed,
    ProtocolError,
    StepUpRequired,
)
from flask_atm.oauth.attempts import Budget, Raise, Renew, decide
from flask_atm.protocols import Customizer, RequestContext, TokenSource
from flask_atm.tokens import AccessToken, TokenParameters

__all__ = ["Authorizer", "Body", "Call", "TokenAuth"]

log = logging.getLogger("flask_atm.api")

_REFUSALS: Final = (401, 403)


@dataclass(frozen=True, kw_only=True, slots=True)
class Authorizer:
    """Where the token of a request comes from.

    :param source: gives it.
    :param parameters: what is asked of it.
    :param customizer: changes the parameters by the request.
    :param api: the name in ``ATM_APIS``, for the customizer.
    """

    source: TokenSource
    parameters: TokenParameters = field(default_factory=TokenParameters)
    customizer: Customizer | None = None
    api: str | None = None

    def get(
        self, request: requests.PreparedRequest, rejected: AccessToken | None = None
    ) -> AccessToken:
        """Give a token for this request.

        :param rejected: the one that the API has just refused.
        :raises ProtocolError: it is none that an ``Authorization`` header can carry.
        """
        token = self.source.get(
            self._parameters(request), rejected=rejected.value if rejected else None
        )
        # Looked at here because http.client would show the whole header in its error.
        if not token.value or not token.value.isascii() or not token.value.isprintable():
            raise ProtocolError(
                "The token source gave a value that is empty or has characters that no header can"
                " carry: nothing was sent."
            )
        return token

    def _parameters(self, request: requests.PreparedRequest) -> TokenParameters:
        if self.customizer is None:
            return self.parameters
        headers: Mapping[str, str] = MappingProxyType(dict(request.headers))
        context = RequestContext(
            method=request.method, url=request.url, headers=headers, incoming=False, api=self.api
        )
        customized = self.customizer(context, self.parameters)
        if not isinstance(customized, TokenParameters):
            raise TypeError("a customizer has to return TokenParameters: parameters.replace(…)")
        return self.parameters.merge(customized)


class Body:
    """The body of a request, which a second sending has to send from the same place.

    :param body: of the prepared request.
    """

    __slots__ = ("_body", "_position")

    def __init__(self, body: Any) -> None:
        self._body = body
        self._position: int | None = None
        if hasattr(body, "seek") and hasattr(body, "tell"):
            with suppress(OSError, ValueError):  # a pipe, a closed file
                self._position = body.tell()

    @property
    def repeatable(self) -> bool:
        """Whether it can be sent once more."""
        return self._position is not None or self._body is None or isinstance(self._body, _WHOLE)

    def rewind(self) -> bool:
        """Go back to where it began; ``False`` where that cannot be done."""
        if self._position is not None:
            try:
                self._body.seek(self._position)
            except (OSError, ValueError):
                return False
        return self.repeatable


_WHOLE: Final = (bytes, str, bytearray, memoryview)


@dataclass(slots=True)
class Call:
    """One call of an API: the token that it uses and what it may still do.

    :param authorizer: where the token comes from.
    :param budget: of sendings.
    :param token: once there is one.
    """

    authorizer: Authorizer
    budget: Budget
    token: AccessToken | None = None

    def authorize(self, request: requests.PreparedRequest) -> None:
        """Put the token on a request whose URL has been checked."""
        if self.token is None:
            self.token = self.authorizer.get(request)
        request.headers["Authorization"] = self.token.authorization

    def renewed(
        self, response: requests.Response, request: requests.PreparedRequest, body: Body
    ) -> bool:
        """Whether the request shall be sent once more: with a new token, its body rewound.

        If so, the answer is closed. If not, it is the caller's.

        :raises InsufficientScope: another token of this kind would be refused too.
        :raises StepUpRequired: likewise.
        :raises ATMError: the token was refused, and there is no other one.
        """
        if response.status_code not in _REFUSALS or self.token is None:
            return False
        decision = decide(response.status_code, _challenges(response), self.budget)
        if isinstance(decision, Raise):
            raise _error(decision, response)
        if not isinstance(decision, Renew):
            return False
        if not body.repeatable:
            # The answer counts, not what became of the renewal: that is for the next call.
            with suppress(ATMError):
                self.authorizer.get(request, rejected=self.token)
            return False
        self.budget = self.budget.spend(decision)
        return self._take_another(response, request, body)

    def _take_another(
        self, response: requests.Response, request: requests.PreparedRequest, body: Body
    ) -> bool:
        rejected = self.token
        try:
            self.token = self.authorizer.get(request, rejected=rejected)
        except BaseException:
            response.close()
            raise
        same = rejected is not None and self.token.value == rejected.value
        if same or not body.rewind():
            log.debug("%s refused a token; there is no other one now", _host(request))
            return False
        log.debug("%s refused a token; it was renewed, the request is repeated", _host(request))
        response.close()
        return True


def _host(request: requests.PreparedRequest) -> str:
    return urlsplit(request.url or "").hostname or "an API"


def _challenges(response: requests.Response) -> list[str]:
    """Give each WWW-Authenticate header by itself: ``requests`` joins them."""
    headers: Any = getattr(response.raw, "headers", None)
    if hasattr(headers, "getlist"):
        return list(headers.getlist("WWW-Authenticate"))
    return [response.headers.get("WWW-Authenticate", "")]  # an adapter that is not urllib3's


def _error(decision: Raise, response: requests.Response) -> ATMError:
    if decision.kind == "insufficient_scope":
        return InsufficientScope(scope=decision.scope, response=response)
    return StepUpRequired(
        acr_values=decision.acr_values, max_age=decision.max_age, response=response
    )


class TokenAuth(AuthBase):
    """The token of an API for sessions that are not ours: ``requests.get(url, auth=…)``.

    It goes to the allowed origins only, also where the session follows a redirect, and is renewed
    once on 401. Time-outs, cookies and everything else are the session's own. May be shared by
    threads.

    :param authorizer: where the token comes from.
    :param destination: where it may go.
    :param renew_on_401: whether a refused token is renewed.
    """

    def __init__(
        self, authorizer: Authorizer, destination: Destination, *, renew_on_401: bool = True
    ) -> None:
        self._authorizer = authorizer
        self._destination = destination
        self._budget = Budget(renewals=int(renew_on_401))

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the token on a request.

        :raises OriginNotAllowed: it would go to the wrong place.
        """
        self._destination.check(r.url or "")
        call = Call(self._authorizer, self._budget)
        call.authorize(r)
        r.register_hook("response", _Answers(call, self._destination, Body(r.body)))  # type: ignore[no-untyped-call]
        return r


class _Answers:
    """Sees every answer of one call of a foreign session, before it follows a redirect."""

    def __init__(self, call: Call, destination: Destination, body: Body) -> None:
        self._call = call
        self._destination = destination
        self._body = body

    def __call__(self, response: requests.Response, **options: Any) -> requests.Response:
        request = response.request
        if self._call.token is None or "Authorization" not in request.headers:
            return response
        if response.is_redirect:
            self._keep_from_strangers(response)
        elif self._call.renewed(response, request, self._body):
            return self._send_again(response, request, options)
        return response

    def _send_again(
        self,
        refused: requests.Response,
        request: requests.PreparedRequest,
        options: dict[str, Any],
    ) -> requests.Response:
        self._call.authorize(request)
        response = refused.connection.send(request, **options)
        response.history.append(refused)
        return self(response, **options)

    def _keep_from_strangers(self, response: requests.Response) -> None:
        """Take the token off where the session is about to carry it to another origin.

        ``requests`` does so for other hosts, but not from http to https of one host.
        """
        target = requests.sessions.SessionRedirectMixin().get_redirect_target(response) or ""
        try:
            self._destination.check(requests.compat.urljoin(response.url, target))
        except OriginNotAllowed:
            self._call.token = None
            del response.request.headers["Authorization"]
