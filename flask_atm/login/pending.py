"""A pending sign-in: a sealed cookie per attempt, which the callback alone gets to see.

It opens only with the ``state`` that was sent along, so it proves that state, and that the browser
is the one that was sent away. Afterwards it stays until it expires, so that a second click on the
same answer ends where the first one did.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Self
from urllib.parse import urlsplit

from flask import Response, after_this_request

from flask_atm.destinations import local_path
from flask_atm.login.recent import recent, remember_recent
from flask_atm.sealed_cookies import cookie_name, drop_cookie, open_cookie, seal_cookie
from flask_atm.state import State
from flask_atm.tokens import Secret

__all__ = ["LIFETIME", "Pending", "find_pending", "put_pending"]

#: Seconds that a user has to sign in at the provider.
LIFETIME: Final = 600
#: Seconds that the clocks of two hosts may differ.
_SLACK: Final = 60
#: Bytes that sealing adds to a cookie, about.
_SEAL: Final = 64
_STATE: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """What has to be known when the browser comes back.

    :param next_path: where to go then; ``None``: to ``ATM_AFTER_LOGIN``.
    :param scope: what was asked for, if not what the configuration says.
    :param max_age: seconds that may have passed since the user was asked for proof of identity.
    :param acr_values: one of these is required: a step-up.
    :param automatic: a redirect of ours started it, not the user.
    :param form_post: the answer comes as a form, posted from the provider's site.
    """

    provider: str
    nonce: Secret
    verifier: Secret
    redirect_uri: str
    issued_at: float
    next_path: str | None = None
    scope: str | None = None
    max_age: int | None = None
    acr_values: tuple[str, ...] = ()
    step_up: bool = False
    automatic: bool = False
    form_post: bool = False

    def as_json(self) -> dict[str, Any]:
        """Give the members that are sealed; short, because browsers send all of them."""
        members = {
            "p": self.provider,
            "n": self.nonce.reveal(),
            "v": self.verifier.reveal(),
            "r": self.redirect_uri,
            "i": self.issued_at,
            "t": self.next_path,
            "s": self.scope,
            "m": self.max_age,
            "a": self.acr_values or None,
            "u": self.step_up or None,
            "l": self.automatic or None,
        }
        return {name: value for name, value in members.items() if value is not None}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Self | None:
        """Read the members that were sealed; ``None``: another version has sealed them."""
        try:
            return cls(
                provider=str(members["p"]),
                nonce=Secret(str(members["n"])),
                verifier=Secret(str(members["v"])),
                redirect_uri=str(members["r"]),
                issued_at=float(members["i"]),
                next_path=local_path(str(members.get("t", ""))),
                scope=str(members["s"]) if "s" in members else None,
                max_age=int(members["m"]) if "m" in members else None,
                acr_values=tuple(map(str, members.get("a", ()))),
                step_up=bool(members.get("u")),
                automatic=bool(members.get("l")),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return None


def put_pending(state: State, login_state: Secret, pending: Pending) -> None:
    """Let the answer to the present request remember a sign-in; of too many the oldest go."""
    parts = urlsplit(pending.redirect_uri)
    path = parts.path or "/"
    name = _name(login_state, secure=parts.scheme == "https")
    members = pending.as_json()
    size = len(name) + len(json.dumps(members)) * 4 // 3 + _SEAL
    known, too_many = recent(state).with_pending((name, path, size))
    remember_recent(state, known)

    def put(response: Response) -> Response:
        for old_name, old_path, _ in too_many:
            drop_cookie(response, old_name, path=old_path)
        seal_cookie(
            response,
            state,
            name,
            members,
            record=login_state.reveal(),
            path=path,
            max_age=LIFETIME,
            same_site="None" if pending.form_post else "Lax",
        )
        return response

    after_this_request(put)


def find_pending(state: State, login_state: Secret) -> Pending | None:
    """Give the sign-in that this state belongs to; ``None``: not of this browser, or too old."""
    if not _STATE.fullmatch(login_state.reveal()):
        return None
    for secure in (True, False):
        name = _name(login_state, secure=secure)
        members = open_cookie(state, name, record=login_state.reveal())
        pending = Pending.from_json(members) if members else None
        # What is for https counts only under the name that http pages cannot set.
        if pending is not None and pending.redirect_uri.startswith("https:") == secure:
            age = state.clock() - pending.issued_at
            return pending if -_SLACK <= age <= LIFETIME else None
    return None


def _name(login_state: Secret, *, secure: bool) -> str:
    short = sha256(login_state.reveal().encode()).hexdigest()[:16]
    return cookie_name(f"atm_pending_{short}", secure=secure)
