"""Access token management for Flask: sign in, and never think about tokens again.

The names are loaded when they are first used. ``flask`` itself imports this package at each
command, for ``flask atm``, and a worker may want nothing but an error to catch.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from flask_atm.authorized_session import AuthorizedSession
    from flask_atm.decorators import requires_login, requires_token
    from flask_atm.errors import (
        ATMError,
        ConfigurationError,
        InsufficientScope,
        InvalidTokenResponse,
        LoginFailed,
        LoginRequired,
        OriginNotAllowed,
        ProtocolError,
        ServerUnavailable,
        SessionTooLarge,
        StepUpRequired,
        StoreError,
        TokenEndpointError,
    )
    from flask_atm.extension import ATM
    from flask_atm.globals import current_login, current_user_token
    from flask_atm.grants.parameters import EngineParameters
    from flask_atm.tokens import AccessToken, Login, TokenParameters, UserToken

__all__ = [
    "ATM",
    "ATMError",
    "AccessToken",
    "AuthorizedSession",
    "ConfigurationError",
    "EngineParameters",
    "InsufficientScope",
    "InvalidTokenResponse",
    "Login",
    "LoginFailed",
    "LoginRequired",
    "OriginNotAllowed",
    "ProtocolError",
    "ServerUnavailable",
    "SessionTooLarge",
    "StepUpRequired",
    "StoreError",
    "TokenEndpointError",
    "TokenParameters",
    "UserToken",
    "current_login",
    "current_user_token",
    "requires_login",
    "requires_token",
]

_HOMES: Final = MappingProxyType(
    {
        "AuthorizedSession": "authorized_session",
        "requires_login": "decorators",
        "requires_token": "decorators",
        "ATMError": "errors",
        "ConfigurationError": "errors",
        "InsufficientScope": "errors",
        "InvalidTokenResponse": "errors",
        "LoginFailed": "errors",
        "LoginRequired": "errors",
        "OriginNotAllowed": "errors",
        "ProtocolError": "errors",
        "ServerUnavailable": "errors",
        "SessionTooLarge": "errors",
        "StepUpRequired": "errors",
        "StoreError": "errors",
        "TokenEndpointError": "errors",
        "ATM": "extension",
        "current_login": "globals",
        "current_user_token": "globals",
        "EngineParameters": "grants.parameters",
        "AccessToken": "tokens",
        "Login": "tokens",
        "TokenParameters": "tokens",
        "UserToken": "tokens",
    }
)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return [*__all__]
