"""Bearer tokens as the fake servers see them (RFC 6750)."""

from flask import Response, jsonify, request

__all__ = ["bearer_token", "insufficient_scope", "invalid_token", "refuse"]


def bearer_token() -> str | None:
    """Give the token of the current request's Authorization header."""
    given = request.authorization
    return given.token if given is not None and given.type == "bearer" else None


def refuse(status: int, **challenge: str) -> Response:
    """Refuse the current request with a Bearer challenge.

    :param challenge: the parameters of ``WWW-Authenticate``; ``error`` is the body's too.
    """
    response = jsonify(challenge)
    response.status_code = status
    quoted = (f'{name}="{_clean(value)}"' for name, value in challenge.items())
    response.headers["WWW-Authenticate"] = " ".join(("Bearer", ", ".join(quoted))).strip()
    return response


def invalid_token() -> Response:
    """Refuse a token that is not good."""
    return refuse(
        401, error="invalid_token", error_description="The token is expired, revoked or unknown."
    )


def insufficient_scope(scope: str) -> Response:
    """Refuse a token that lacks a scope."""
    return refuse(403, error="insufficient_scope", scope=scope)


def _clean(value: str) -> str:
    return "".join(char for char in value if " " <= char <= "~" and char not in '"\\')
