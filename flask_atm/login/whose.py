"""Whose a grant is, told by its id alone.

A grant may end, in the store or with it, long before its browser comes back. The last characters
of its id still tell whether the next user is the same, and whose a connected account is: they are
a keyed hash, of no use without the ring.
"""

from typing import Final

from flask_atm.browser_session import handles
from flask_atm.endings import known_provider
from flask_atm.grants.vault import new_grant_id
from flask_atm.state import Provider, State

__all__ = ["NOBODY", "User", "belongs_to", "grant_id_of"]

#: An issuer and a subject.
User = tuple[str, str]

#: Whose an account is that was connected while nobody was signed in.
NOBODY: Final[User] = ("", "")
_MARK: Final = 12


def grant_id_of(state: State, provider: Provider, subject: str) -> str:
    """Make a grant id: of who signs in, or of who is signed in and connects an account."""
    start = new_grant_id(provider.name)
    user = (provider.tokens.issuer, subject) if provider.config.sign_in else _signed_in(state)
    return start + _marks(state, start, user)[0]


def belongs_to(state: State, grant_id: str, user: User) -> bool:
    """Tell whether a grant id was made for this user."""
    return grant_id[-_MARK:] in _marks(state, grant_id[:-_MARK], user)


def _signed_in(state: State) -> User:
    for name, (_, grant_id) in handles().items():
        provider = known_provider(state, name)
        if provider is not None and provider.config.sign_in:
            snapshot = provider.tokens.open(grant_id)
            if snapshot is not None:
                return provider.tokens.issuer, snapshot.grant.subject
    return NOBODY


def _marks(state: State, start: str, user: User) -> list[str]:
    """Give the mark of a user by every key of the ring, the present one first."""
    return [digest[:_MARK] for digest in state.ring.digests("whose", start, *user)]
