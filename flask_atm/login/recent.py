"""What a browser did in the last minutes: a small sealed cookie of its own.

It knows which sign-ins are pending, so that the oldest can go when there are too many (their own
cookies are seen by the callback only), and which were completed, so that a loop of sign-ins ends.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from flask import Response, after_this_request, current_app, request

from flask_atm.sealed_cookies import cookie_name, open_cookie, seal_cookie
from flask_atm.state import State
from flask_atm.tokens import FrozenDict

__all__ = ["Recent", "recent", "remember_recent", "was_sent"]

_MAX_AGE: Final = 600
_PENDING: Final = 5
_SIGN_INS: Final = 2
_PROVIDERS: Final = 8
_SOON: Final = 30.0
_WINDOW: Final = 60.0
_ENVIRON: Final = "flask_atm.login.recent"

Instants = tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recent:
    """What is remembered of one browser; all changes give a new value.

    :param pending: name and path of the cookies of pending sign-ins, the oldest first.
    :param sign_ins: by provider, when sign-ins ended that a redirect of ours had started.
    :param step_ups: by provider, when the last step-up ended.
    """

    pending: tuple[tuple[str, str], ...] = ()
    sign_ins: Mapping[str, Instants] = field(default_factory=FrozenDict)
    step_ups: Mapping[str, Instants] = field(default_factory=FrozenDict)

    def with_pending(self, name: str, path: str) -> tuple[Self, tuple[tuple[str, str], ...]]:
        """Add a pending sign-in; gives those that are too many now, too."""
        every = (*self.pending, (name, path))
        return replace(self, pending=every[-_PENDING:]), every[:-_PENDING]

    def with_sign_in(self, provider: str, now: float) -> Self:
        """Add a completed sign-in."""
        return replace(self, sign_ins=_added(self.sign_ins, provider, now))

    def with_step_up(self, provider: str, now: float) -> Self:
        """Add a completed step-up."""
        return replace(self, step_ups=_added(self.step_ups, provider, now))

    def without_sign_ins(self, providers: Iterable[str]) -> Self:
        """Forget sign-ins: who signs out may sign in again at once."""
        gone = frozenset(providers)
        return replace(
            self,
            sign_ins={name: at for name, at in self.sign_ins.items() if name not in gone},
            step_ups={name: at for name, at in self.step_ups.items() if name not in gone},
        )

    def is_loop(self, provider: str, now: float) -> bool:
        """Tell whether another sign-in now would only be one more turn of a loop."""
        ages = [abs(now - at) for at in self.sign_ins.get(provider, ())]
        return any(age < _SOON for age in ages) or (sum(age < _WINDOW for age in ages) >= _SIGN_INS)

    def is_step_up_loop(self, provider: str, now: float) -> bool:
        """Tell whether the last step-up is so near that another one cannot help."""
        return any(abs(now - at) < _SOON for at in self.step_ups.get(provider, ()))


def recent(state: State) -> Recent:
    """Give what is known of the browser of the present request."""
    known = request.environ.get(_ENVIRON)
    if isinstance(known, Recent):
        return known
    return _from_json(open_cookie(state, _name(state), record="")) or Recent()


def was_sent(state: State) -> bool:
    """Tell whether the browser brought the cookie: it leaves it out of a post from elsewhere."""
    return _name(state) in request.cookies


def remember_recent(state: State, value: Recent) -> None:
    """Let the answer to the present request remember this."""
    first = _ENVIRON not in request.environ
    request.environ[_ENVIRON] = value
    if first:
        after_this_request(lambda response: _put(response, state))


def _put(response: Response, state: State) -> Response:
    value: Recent = request.environ[_ENVIRON]
    seal_cookie(
        response,
        state,
        _name(state),
        {"p": value.pending, "l": value.sign_ins, "u": value.step_ups},
        record="",
        path=current_app.session_interface.get_cookie_path(current_app),
        max_age=_MAX_AGE,
    )
    return response


def _name(state: State) -> str:
    # Cookies ignore ports: two applications on one host must not take each other's.
    return cookie_name(f"atm_recent_{state.ring.digest('browser')[:8]}", secure=request.is_secure)


def _from_json(value: Any) -> Recent | None:
    try:
        return Recent(
            pending=tuple((str(name), str(path)) for name, path in value["p"]),
            sign_ins={name: tuple(map(float, at)) for name, at in value["l"].items()},
            step_ups={name: tuple(map(float, at)) for name, at in value["u"].items()},
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None  # not there, or of another version


def _added(known: Mapping[str, Instants], provider: str, now: float) -> dict[str, Instants]:
    """Give the instants with another one: few of each provider, and of few providers."""
    others = {name: at for name, at in known.items() if name != provider}
    kept = dict(list(others.items())[-(_PROVIDERS - 1) :])
    return {**kept, provider: (*known.get(provider, ()), round(now, 1))[-_SIGN_INS:]}
