"""The token endpoint: one request, whatever the grant type; and revocation (RFC 7009)."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from flask_atm.errors import ATMError
from flask_atm.oauth.back_channel import (
    Answer,
    BackChannel,
    Failure,
    Form,
    OwnSession,
    Result,
)
from flask_atm.protocols import ClientAuth
from flask_atm.tokens import Secret

__all__ = ["Endpoints", "Exchange", "TokenEndpoint", "parse_error"]

_log = logging.getLogger("flask_atm.token_endpoint")
_LONGEST_DESCRIPTION: Final = 200
#: What may be a token: Spring's "Invalid refresh token: …" ends with the one that was sent.
_OPAQUE: Final = re.compile(r"(?=[\w.~+/=-]*\d)[\w.~+/=-]{20,}")
#: RFC 6749, section 5.2, and a length that fits into a log line.
_ERROR: Final = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]{1,100}")
#: What a revocation endpoint says that will not change: the token is dead, or cannot be revoked.
_SETTLED: Final = frozenset(
    {"unsupported_token_type", "invalid_token", "invalid_grant", "invalid_request"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoints:
    """Where the server of a client registration is.

    :param issuer: the issuer identifier, where it is known.
    :param revocation_endpoint: ``None`` where the server has none.
    """

    issuer: str | None
    token_endpoint: str
    revocation_endpoint: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """A token request that is ready: sending it asks nobody but the server.

    Made for one sending. What authenticates the client is in it and is not used twice.
    """

    url: str
    _back_channel: BackChannel = field(repr=False)
    _form: Form = field(repr=False)
    _headers: Mapping[str, str] = field(repr=False)
    _own: OwnSession = field(repr=False)

    def send(
        self,
        *,
        deadline: float,
        may_write: Callable[[], bool] | None = None,
        fresh: bool = True,
    ) -> Result:
        """Send it once.

        :param deadline: the end of everything, by ``time.monotonic()``.
        :param may_write: asked right before the first byte; ``False``: nothing is sent.
        :param fresh: use a new connection, for what must not be sent in vain: a refresh token, an
            authorization code.
        """
        return self._back_channel.send(
            "POST",
            self.url,
            form=self._form,
            headers=self._headers,
            deadline=deadline,
            fresh=fresh,
            may_write=may_write,
            own=self._own,
        )


class TokenEndpoint:
    """The token endpoint of one client registration. Thread-safe.

    :param back_channel: the way there.
    :param name: of the provider or client, for logs and ``http_session``.
    :param client_id: the client identifier.
    :param auth: how the client authenticates.
    :param resolve: gives the endpoints, from metadata that may have to be fetched.
    :param timeout: seconds for requests without a deadline of their own.
    """

    def __init__(
        self,
        back_channel: BackChannel,
        *,
        name: str,
        client_id: str,
        auth: ClientAuth,
        resolve: Callable[[], Endpoints],
        timeout: float,
    ) -> None:
        self.name: Final = name
        self.client_id: Final = client_id
        self.auth: Final = auth
        self._back_channel = back_channel
        self._resolve = resolve
        self._timeout = timeout
        self._told = False

    def prepare(self, form: Form, *, client_assertion: Secret | None = None) -> Exchange:
        """Do all that may block before a request: metadata, secrets, signatures.

        :param form: ``grant_type`` and its parameters; a list is sent as a repeated parameter.
        :param client_assertion: a JWT of the caller's own instead of the configured secret.
        :raises ServerUnavailable: the metadata cannot be had.
        :raises ProtocolError: the metadata is wrong.
        :raises ConfigurationError: the secret is missing, or the endpoint is not allowed.
        """
        endpoints = self._resolve()
        return self._exchange(endpoints, endpoints.token_endpoint, form, client_assertion)

    def request(
        self,
        form: Form,
        *,
        client_assertion: Secret | None = None,
        deadline: float | None = None,
        fresh: bool = True,
    ) -> Result:
        """Prepare and send, within ``timeout`` seconds after the preparation or by ``deadline``."""
        exchange = self.prepare(form, client_assertion=client_assertion)
        return exchange.send(deadline=deadline or monotonic() + self._timeout, fresh=fresh)

    def revoke(
        self,
        token: str | Secret,
        *,
        token_type_hint: str = "refresh_token",
        extra: Mapping[str, str] | None = None,
        client_assertion: Secret | None = None,
    ) -> bool:
        """Revoke a token, best effort (RFC 7009). Never raises an :exc:`~flask_atm.ATMError`.

        :param extra: further parameters of the request.
        :param client_assertion: a JWT of the caller's own instead of the configured secret.
        :returns: ``True``: done, or no further attempt could change anything; ``False``: try later.
        """
        text = token.reveal() if isinstance(token, Secret) else token
        form = {**(extra or {}), "token": text, "token_type_hint": token_type_hint}
        try:
            endpoints = self._resolve()
            if endpoints.revocation_endpoint is None:
                self._tell_once()
                return True
            exchange = self._exchange(
                endpoints, endpoints.revocation_endpoint, form, client_assertion
            )
            result = exchange.send(deadline=monotonic() + self._timeout, fresh=False)
        except ATMError as error:
            _log.warning("Revocation at %s failed: %s", self.name, error)
            return False
        return self._settled(result)

    def _exchange(
        self, endpoints: Endpoints, url: str, form: Form, client_assertion: Secret | None
    ) -> Exchange:
        self._back_channel.check_url(url)
        signed, headers = self.auth.authenticate(
            form,
            endpoint=url,
            issuer=endpoints.issuer,
            client_assertion=client_assertion.reveal() if client_assertion else None,
        )
        return Exchange(
            url=url,
            _back_channel=self._back_channel,
            _form=signed,
            _own=self._back_channel.own_session(self.name),
            _headers={"Accept": "application/json", **headers},
        )

    def _tell_once(self) -> None:
        if not self._told:
            self._told = True
            _log.info("%s has no revocation endpoint: tokens live until they expire", self.name)

    def _settled(self, result: Result) -> bool:
        if isinstance(result, Failure):
            _log.warning("Revocation at %s got no answer: %s", self.name, result.reason)
            return False
        if 200 <= result.status < 300:
            return True
        error, _ = parse_error(result) or ("no error code", None)
        # invalid_client and unauthorized_client are cured in the configuration: worth waiting for.
        settled = result.status == 400 and error in _SETTLED
        _log.warning("Revocation at %s refused: %d, %s", self.name, result.status, error)
        return settled


def parse_error(answer: Answer) -> tuple[str, str | None] | None:
    """Read an error response (RFC 6749, section 5.2), whatever its status.

    :returns: the code, and the description as at most 200 printable characters, without what may
        be a token; ``None`` where the answer is no error response.
    """
    try:
        body = answer.json()
    except ValueError:
        return None
    error, description = body.get("error"), body.get("error_description")
    if not isinstance(error, str) or not _ERROR.fullmatch(error):
        return None
    if not isinstance(description, str):
        return error, None
    text = _OPAQUE.sub("***", description[:2000])
    words = "".join(c if c.isprintable() else " " for c in text).split()
    return error, " ".join(words)[:_LONGEST_DESCRIPTION] or None
