"""The memory of the fake provider."""

import secrets
from collections.abc import Callable, Iterable
from threading import RLock
from typing import Final

from flask_atm.testing.provider_records import Client, Code, Grant, Session, Token, User
from flask_atm.testing.provider_rules import Rules

__all__ = ["Storage"]

_CODE_LIFETIME: Final = 60.0


class Storage:
    """The provider's memory. Steps that belong together are taken under its lock.

    :param users: who can sign in, the default first.
    """

    def __init__(self, rules: Rules, users: Iterable[User], clock: Callable[[], float]) -> None:
        self.lock = RLock()
        self.rules = rules
        self.clock = clock
        self.users = {user.sub: user for user in users}
        self.clients: dict[str, Client] = {}
        self.sessions: dict[str, Session] = {}
        self.codes: dict[str, Code] = {}
        self.tokens: dict[str, Token] = {}
        self.replays = 0

    def user_for(self, hint: str | None) -> User | None:
        """Find the user that a ``login_hint`` means."""
        return next((user for user in self.users.values() if hint and user.answers_to(hint)), None)

    def open_session(self, user: User) -> Session:
        """Remember that a user has signed in just now."""
        session = Session(sid=secrets.token_urlsafe(32), user=user, auth_time=int(self.clock()))
        self.sessions[session.sid] = session
        return session

    def add_code(self, value: str, grant: Grant, redirect_uri: str, challenge: str) -> None:
        """Remember an authorization code that has been issued, with its PKCE challenge (S256)."""
        self.codes[value] = Code(
            value=value,
            grant=grant,
            redirect_uri=redirect_uri,
            code_challenge=challenge,
            code_challenge_method="S256",
            expires_at=self.clock() + _CODE_LIFETIME,
        )

    def use_code(self, value: str, client: Client) -> Code | None:
        """Find a code that is good; one used before takes its grant down (RFC 6749, 4.1.2)."""
        code = self.codes.get(value)
        if code is None or code.grant.client != client:
            return None
        if code.used:
            code.grant.revoked = True
        return None if code.grant.revoked or self.clock() >= code.expires_at else code

    def use_refresh_token(self, value: str) -> Token | None:
        """Find a refresh token that is good; a spent one takes its grant down."""
        token = self.tokens.get(value)
        if token is None or token.kind != "refresh_token":
            return None
        if token.used:
            self.replays += 1
            token.revoke()
        return token if token.active else None

    def add_token(self, token: Token) -> None:
        """Remember a token that has been issued."""
        self.tokens[token.value] = token

    def access_token(self, value: str) -> Token | None:
        """Find an access token that is good now."""
        token = self.tokens.get(value)
        return token if token and token.kind == "access_token" and token.active else None

    def revoke_all(self) -> None:
        """End all grants, tokens and sessions."""
        with self.lock:
            for code in self.codes.values():
                code.grant.revoked = True
            for token in self.tokens.values():
                token.revoke()
            self.sessions.clear()

    def expire_access_tokens(self) -> None:
        """End the lifetime of all access tokens now."""
        with self.lock:
            for token in self.tokens.values():
                if token.kind == "access_token" and not token.is_expired():
                    token.expires_at = self.clock()
