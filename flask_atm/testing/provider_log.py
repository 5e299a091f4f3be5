"""What the fake provider tells about the requests that it has seen."""

from dataclasses import dataclass
from urllib.parse import unquote_plus

from flask import request

__all__ = ["ProviderRequest", "describe_request"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderRequest:
    """A request that the provider has seen, without its secrets.

    :param endpoint: ``authorize``, ``discovery``, ``end_session``, ``introspect``, ``jwks``,
        ``revoke``, ``token`` or ``userinfo``; empty for what is not there.
    :param grant_type: of a token request.
    :param client_id: whoever the caller says it is.
    :param resource: the resources asked for.
    :param scope: the scope asked for.
    :param status: of the answer; ``None``: the connection was cut.
    :param at: epoch seconds by the provider's clock.
    """

    endpoint: str
    grant_type: str | None
    client_id: str | None
    resource: tuple[str, ...]
    scope: str | None
    status: int | None
    at: float


def describe_request(status: int | None, at: float) -> ProviderRequest:
    """Describe Flask's current request."""
    values = request.values
    given = request.authorization
    client_id = unquote_plus(given.username) if given and given.username else None
    return ProviderRequest(
        endpoint=request.endpoint or "",
        grant_type=values.get("grant_type"),
        client_id=client_id or values.get("client_id"),
        resource=tuple(values.getlist("resource")),
        scope=values.get("scope"),
        status=status,
        at=at,
    )
