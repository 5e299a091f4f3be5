"""``current_login`` and ``current_user_token``, and what they mean at this moment.

What is looked up is kept in ``g`` with the request object and the browser's grants that it was
looked up for: an application context that two requests share never mixes their users.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn, cast

from flask import g, has_app_context, has_request_context, request, session
from werkzeug.local import LocalProxy

from flask_atm.browser_session import SESSION_KEY, handle_of
from flask_atm.errors import LoginRequired
from flask_atm.grants.record import Snapshot, slot_key
from flask_atm.meaning import Meaning, meant, said, waits
from flask_atm.state import Provider, State, current_state
from flask_atm.tokens import Login, TokenParameters, UserToken, fingerprint

__all__ = [
    "CurrentGrant",
    "Nobody",
    "current_grant",
    "current_login",
    "current_user_token",
    "find_grant",
    "forget_looked_up",
]

log = logging.getLogger("flask_atm.store")


#: Seconds after which a request, a stream or a job looks again whether its grant has ended.
_LOOK_AGAIN: Final = 1.0
_MOST_KEPT: Final = 64


class Nobody:
    """Who is signed in when nobody is: false, and nothing else can be asked of it."""

    __slots__ = ("_provider", "_reason")

    def __init__(self, provider: str | None, reason: str) -> None:
        self._provider = provider
        self._reason = reason

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<nobody is signed in>"

    def __getattr__(self, name: str) -> NoReturn:
        raise self.error()

    def error(self) -> LoginRequired:
        """Make the error for whoever asks for more."""
        if self._reason == "anonymous":
            message = "Sign in to continue."
        else:
            message = "Your sign-in has ended. Sign in to continue."
        return LoginRequired(message, provider=self._provider, reason=self._reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurrentGrant:
    """A grant that was looked up, and the tokens got from it: a token source for its user.

    It needs no context, so a session made in a view may be used in threads of that view.
    """

    state: State = field(repr=False)
    provider: Provider
    grant_id: str = field(repr=False)
    #: Whether the application said whose grant is meant: it may say another one any time.
    loaded: bool
    _snapshot: Snapshot
    _looked_at: float
    #: What was read, and when by the clock, until somebody has used it.
    _unused: list[tuple[Snapshot, float]]
    #: A token, when the store was looked at for it, and when that has to be done again.
    _tokens: dict[str, tuple[UserToken, float, float]]

    @property
    def login(self) -> Login:
        """Who is signed in by it."""
        return self.provider.tokens.login(self.grant_id, self._snapshot)

    def get(
        self,
        parameters: TokenParameters,
        *,
        rejected: str | None = None,
        deadline: float | None = None,
    ) -> UserToken:
        """See :class:`~flask_atm.protocols.TokenSource`; a token got a moment ago is kept."""
        slot = slot_key(parameters)
        if rejected is None and not parameters.force_renewal:
            kept = self.fresh(slot)
            if kept is not None:
                return kept
        tokens = self.provider.tokens
        snapshot, looked_at = self._read_just_now()
        token = tokens.get(
            self.grant_id, parameters, rejected=rejected, deadline=deadline, first=snapshot
        )
        # Since the look at the store, and not since its answer: a logout may lie between them.
        fresh_until = looked_at + min(_LOOK_AGAIN, tokens.fresh_for(token))
        self._tokens[slot] = (token, looked_at, fresh_until)
        return token

    def _read_just_now(self) -> tuple[Snapshot | None, float]:
        """Give what was read for this request, and when: once, and at once."""
        now = self.provider.tokens.clock()
        try:
            snapshot, at = self._unused.pop()
        except IndexError:  # another thread of the view may be faster
            return None, now
        return (snapshot, at) if 0 <= now - at < _LOOK_AGAIN else (None, now)

    @property
    def is_old(self) -> bool:
        """Whether the grant may have ended since it was looked up."""
        return not 0 <= self.provider.tokens.clock() - self._looked_at < _LOOK_AGAIN

    def fresh(self, slot: str) -> UserToken | None:
        """Give a token that was got a moment ago and needs no second look yet."""
        token, since, until = self._tokens.get(slot, (None, 0.0, 0.0))
        if token is not None and since <= self.provider.tokens.clock() < until:
            return token
        return None


def find_grant(
    provider_name: str | None = None, present: Meaning | None = None
) -> tuple[State, Provider, str | None]:
    """Say which grant is meant now, without a look at the store.

    :param provider_name: the provider; by default the one that is meant.
    :param present: what is meant, where that is known already.
    :returns: the state, the provider, and the grant id or ``None``.
    :raises LoginRequired: outside a request, and no grant was named.
    """
    if not has_app_context():
        raise _outside()
    state, present = current_state(), present or meant()
    if present.grant_id is not None:
        owner = present.grant_id.partition(".")[0]
        name = provider_name or present.provider or owner
        return state, state.provider(name), present.grant_id if owner == name else None
    if not has_request_context():
        raise _outside()
    provider = state.provider(provider_name or present.provider)
    handle = handle_of(provider.name)
    grant_id = None if handle is None else handle[1]
    if grant_id is None and state.hooks.grant_loader is not None:
        grant_id = state.hooks.grant_loader(provider.name)
    return state, provider, grant_id


def _outside() -> LoginRequired:
    message = (
        "Nobody is signed in outside a request: name the grant, with atm.use_grant(grant_id) or"
        " grant_id=…"
    )
    if waits():
        message += " (atm.use_grant in a generator does not last beyond its yield)"
    return LoginRequired(message, reason="outside_request")


def current_grant(
    provider_name: str | None = None, present: Meaning | None = None
) -> CurrentGrant | Nobody:
    """Look up the grant that is meant now: one read of the store per request.

    A job may go on for a day, so there it is one a second. The arguments are those of
    :func:`find_grant`.
    """
    state, provider, grant_id = find_grant(provider_name, present)
    if grant_id is None:
        return Nobody(provider.name, "anonymous")
    kept = _kept()
    found = kept.get(grant_id)
    if isinstance(found, CurrentGrant) and found.is_old and not has_request_context():
        found = None
    if found is None:
        if len(kept) >= _MOST_KEPT:
            kept.clear()  # a job that goes through all users in one context
        found = kept[grant_id] = _look_up(state, provider, grant_id)
    return found


def _look_up(state: State, provider: Provider, grant_id: str) -> CurrentGrant | Nobody:
    looked_at = provider.tokens.clock()
    snapshot = provider.tokens.open(grant_id)
    if snapshot is None:
        return Nobody(provider.name, _why_not_there(state, provider.name))
    return CurrentGrant(
        state=state,
        provider=provider,
        grant_id=grant_id,
        loaded=(
            state.hooks.grant_loader is not None
            and meant().grant_id is None
            and handle_of(provider.name) is None
        ),
        _snapshot=snapshot,
        _looked_at=looked_at,
        _unused=[(snapshot, looked_at)],
        _tokens={},
    )


def _why_not_there(state: State, provider: str) -> str:
    """Tell a sign-in that has ended from one that lives in another store."""
    if said().grant_id is not None or not has_request_context():
        return "ended"
    handle = handle_of(provider)
    if handle is None or handle[0] == state.store_id():
        return "ended"
    now = time.monotonic()
    complaint = state.complaints.get("other_store", -60.0)
    if now - complaint >= 60.0:
        state.complaints["other_store"] = now
        log.error(
            "a browser has a sign-in from another store than %r: its user has to sign in again."
            " Either that store was lost, or several hosts have a store each; give all of them the"
            " same ATM_STORE. grant=%s",
            state.store,
            fingerprint(handle[1]),
        )
    return "other_store"


def _kept() -> dict[str, CurrentGrant | Nobody]:
    """Give what was looked up for this very request."""
    owner = request._get_current_object() if has_request_context() else None  # type: ignore[attr-defined]
    kept = g._get_current_object().get("_atm")
    if kept is None or kept[0] is not owner:
        kept = g._atm = (owner, {})
    return cast("dict[str, CurrentGrant | Nobody]", kept[1])


def forget_looked_up() -> None:
    """Look again at the next use."""
    if has_app_context():
        kept = g._get_current_object()
        for name in ("_atm", "_atm_token", "_atm_sessions"):
            kept.pop(name, None)


def _find_login() -> Login | Nobody:
    found = current_grant()
    return found.login if isinstance(found, CurrentGrant) else found


# -- the token


@dataclass(frozen=True, kw_only=True, slots=True)
class _Used:
    """Whose token was used last in this request."""

    owner: object
    meaning: Meaning
    handles: object = field(repr=False)
    found: CurrentGrant
    slot: str


def _find_token() -> UserToken | Nobody:
    """Give a usable token. Called at every use of the proxy, so its first lines are quick ones."""
    # Attributes of Flask's proxies cost three times as much as those of what is behind them.
    if has_request_context():
        used = g._get_current_object().get("_atm_token")
        if (
            used is not None
            and used.owner is request._get_current_object()  # type: ignore[attr-defined]
            and used.meaning is said()
            and used.handles == session._get_current_object().get(SESSION_KEY)  # type: ignore[attr-defined]
        ):
            token = used.found.fresh(used.slot)
            if token is not None:
                return cast(UserToken, token)
    return _get_token()


def _get_token() -> UserToken | Nobody:
    present = meant()
    found = current_grant(None, present)
    if not isinstance(found, CurrentGrant):
        return found
    token = found.get(present.parameters)
    if has_request_context() and not found.loaded:
        g._get_current_object()._atm_token = _Used(
            owner=request._get_current_object(),  # type: ignore[attr-defined]
            meaning=said(),
            handles=session._get_current_object().get(SESSION_KEY),  # type: ignore[attr-defined]
            found=found,
            slot=slot_key(present.parameters),
        )
    return token


class _TokenProxy(LocalProxy[UserToken]):
    """A proxy whose truth value asks for a live grant only: no refresh, no network."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return isinstance(current_grant(), CurrentGrant)


current_login = cast(Login, LocalProxy(_find_login))
current_user_token = cast(UserToken, _TokenProxy(cast(Callable[[], UserToken], _find_token)))
