"""Access token management for Flask: sign in, and never think about tokens again."""

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
