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

__all__ = ["Recent", "is_strict", "recent", "remember_recent", "was_sent"]

_MAX_AGE: Final = 600
_PENDING: Final = 5
#: Bytes that their cookies may have together: servers take 8 kB of cookies in all.
_PENDING_BYTES: Final = 3500
_SIGN_INS: Final = 2
_PROVIDERS: Final = 8
_SOON: Final = 30.0
_WINDOW: Final = 60.0
_ENVIRON: Final = "flask_atm.login.recent"

Instants = tuple[float, ...]
PendingCookie = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recent:
    """What is remembered of one browser; all changes give a new value.

    :param pending: name, path and size of the cookies of pending sign-ins, the oldest first.
    :param sign_ins: by provider, when sign-ins ended that a redirect of ours had started.
    :param step_ups: by provider, when the last step-up ended.
    """

    pending: tuple[PendingCookie, ...] = ()
    sign_ins: Mapping[str, Instants] = field(default_factory=FrozenDict)
    step_ups: Mapping[str, Instants] = field(default_factory=FrozenDict)

    def with_pending(self, new: PendingCookie) -> tuple[Self, tuple[PendingCookie, ...]]:
        """Add a pending sign-in; gives those that are too many now, too."""
        every = (*self.pending, new)
        first = max(0, len(every) - _PENDING)
        while first < len(every) - 1 and sum(one[2] for one in every[first:]) > _PENDING_BYTES:
            first += 1
        return replace(self, pending=every[first:]), every[:first]

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
    """Tell whether the browser brought the cookie, and so the Flask session, which is like it."""
    return _name(state) in request.cookies


def is_strict() -> bool:
    """Tell whether browsers send the Flask session only from page to page of this site."""
    same_site = current_app.session_interface.get_cookie_samesite(current_app)
    return (same_site or "").lower() == "strict"


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
        same_site="Strict" if is_strict() else "Lax",
    )
    return response


def _name(state: State) -> str:
    # Cookies ignore ports: two applications on one host must not take each other's.
    return cookie_name(f"atm_recent_{state.ring.digest('browser')[:8]}", secure=request.is_secure)


def _from_json(value: Any) -> Recent | None:
    try:
        return Recent(
            pending=tuple((str(name), str(path), int(size)) for name, path, size in value["p"]),
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
