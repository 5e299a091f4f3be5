"""Grants in the Flask session: ``session["_atm"] = {provider: "<store id>.<handle>.<copy>"}``.

The first two parts say which grant the browser has, whatever the store. The third one is there in
session mode: a sealed copy of the grant, for the day on which the atomic store has lost it.
"""

import logging
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flask import (
    Response,
    after_this_request,
    current_app,
    g,
    has_request_context,
    request,
    session,
)
from flask.sessions import SecureCookieSessionInterface

from flask_atm.errors import SessionTooLarge
from flask_atm.grants.vault import record_key

__all__ = ["SESSION_KEY", "Handle", "SessionStore", "cookie_size", "put_into_session", "take_out"]

log = logging.getLogger("flask_atm.store")

SESSION_KEY: Final = "_atm"
#: What browsers take: the whole line of a cookie, its name and attributes included.
_LARGEST: Final = 4093


@dataclass(frozen=True, kw_only=True, slots=True)
class Handle:
    """What the browser has for one provider.

    :param store_id: of the atomic store.
    :param secret: the grant id without its provider.
    :param copy: the sealed copy as text; empty: none.
    """

    store_id: str
    secret: str = field(repr=False)
    copy: str = field(default="", repr=False)

    @classmethod
    def parse(cls, value: object) -> "Handle | None":
        """Read a value of the session; ``None``: it is not ours."""
        parts = cls.parts(value)
        if parts is None:
            return None
        return cls(store_id=parts[0], secret=parts[1], copy="".join(parts[2:]))

    @staticmethod
    def parts(value: object) -> list[str] | None:
        """Give what a value of the session is made of: the store id, the secret, maybe a copy."""
        parts = value.split(".") if isinstance(value, str) and value.isascii() else []
        return parts if len(parts) in (2, 3) and parts[1] else None

    def __str__(self) -> str:
        return ".".join(part for part in (self.store_id, self.secret, self.copy) if part)


def put_into_session(value: Mapping[str, Any]) -> None:
    """Assign the browser's grants; the answer that carries them is for this browser alone."""
    # Assigned as a whole, so that Flask notices.
    if value:
        session[SESSION_KEY] = dict(value)
    else:
        session.pop(SESSION_KEY, None)
    after_this_request(_uncached)


def take_out(provider: str) -> None:
    """Say that a grant is about to be taken out of the session, to be ended by this request."""
    handle = Handle.parse(_present().get(provider))
    if handle is not None and handle.copy:
        key = record_key(f"{provider}.{handle.secret}")
        g._atm_taken_out = (
            request._get_current_object(),  # type: ignore[attr-defined]
            {**_taken_out(), key: handle},
        )


def _uncached(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


class SessionStore:
    """Keeps copies of grants in the Flask session of the browser: ``ATM_STORE = "session"``.

    It works inside the requests of that browser only. Elsewhere, in threads and jobs, the atomic
    store goes on alone, and the next request brings the copy up to date. What does not fit into a
    cookie any more stays as it is, with a warning. Sessions that are kept on the server
    (Flask-Session) have no such limit.
    """

    def __init__(self) -> None:
        self._store_id: Callable[[], str] | None = None
        self._last_complaint = -60.0

    def __repr__(self) -> str:
        return "<SessionStore>"

    def of(self, store_id: Callable[[], str]) -> "SessionStore":
        """Give one that writes the name of the atomic store along with each copy."""
        bound = SessionStore()
        bound._store_id = store_id
        return bound

    def load(self, key: str) -> bytes | None:
        """See :class:`~flask_atm.protocols.GrantStore`."""
        _, handle = _find(key) or (None, None)
        if handle is None:
            # What was just taken out, to be ended: it may be all that is left of a grant.
            handle = _taken_out().get(key)
        return None if handle is None or not handle.copy else _bytes(handle.copy)

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        """See :class:`~flask_atm.protocols.GrantStore`; does nothing in another request."""
        provider, handle = _find(key) or (None, None)
        if provider is None or handle is None:
            return
        value = self._with(provider, handle, sealed)
        size = cookie_size(value)
        if size <= _LARGEST:
            put_into_session(value[SESSION_KEY])
            return
        now = time.monotonic()
        if now - self._last_complaint >= 60.0:
            self._last_complaint = now
            log.warning(
                "a grant has grown: with it the session cookie would have %d bytes, and browsers"
                " take %d. The older copy stays in the session, and the atomic store goes on"
                " alone. Set ATM_STORE to sqlite, redis://… or an SQL database. grant=%s",
                size,
                _LARGEST,
                key[:8],
            )

    def delete(self, key: str) -> None:
        """See :class:`~flask_atm.protocols.GrantStore`."""
        provider, handle = _find(key) or (None, None)
        if provider is not None and handle is not None:
            bare = Handle(store_id=handle.store_id, secret=handle.secret)
            put_into_session({**_present(), provider: str(bare)})

    def check_room(
        self, provider: str, store_id: str, grant_id: str, sealed: bytes, *, alone: bool
    ) -> None:
        """Find out whether a new grant fits into the session cookie.

        :param alone: whether what else is in the session goes away.
        :raises SessionTooLarge: it does not.
        """
        handle = Handle(store_id=store_id, secret=grant_id.removeprefix(f"{provider}."))
        value = self._with(provider, handle, sealed)[SESSION_KEY]
        kept = {provider: value[provider]} if alone else value
        size = cookie_size({SESSION_KEY: kept}, alone=alone)
        if size > _LARGEST:
            raise SessionTooLarge(
                f"the sign-in at {provider!r} does not fit into the session cookie: it would have"
                f" {size} bytes, and browsers take {_LARGEST}. Set ATM_STORE to sqlite, redis://…"
                " or an SQL database, ask for fewer scopes or claims, or keep less else in the"
                " session"
            )

    def _with(self, provider: str, handle: Handle, sealed: bytes) -> dict[str, Any]:
        text = urlsafe_b64encode(sealed).decode().rstrip("=")
        store_id = handle.store_id if self._store_id is None else self._store_id()
        full = Handle(store_id=store_id, secret=handle.secret, copy=text)
        return {SESSION_KEY: {**_present(), provider: str(full)}}


def cookie_size(changes: Mapping[str, Any], *, alone: bool = False) -> int:
    """Give the bytes of the session cookie with these changes; 0: it does not hold the session.

    :param alone: whether what else is in the session goes away.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    interface = app.session_interface
    if not isinstance(interface, SecureCookieSessionInterface):
        return 0
    present = {} if alone else dict(session)
    candidate = interface.session_class({**present, **changes})
    candidate.modified = True
    scratch = _Scratch()
    interface.save_session(app, candidate, scratch)
    return sum(map(len, scratch.headers.getlist("Set-Cookie")))


class _Scratch(Response):
    """A response that is not sent, so that nobody has to be warned of its cookies."""

    @property
    def max_cookie_size(self) -> int:  # type: ignore[override]
        return 0


def _present() -> dict[str, Any]:
    value = session._get_current_object().get(SESSION_KEY)  # type: ignore[attr-defined]
    return value if isinstance(value, dict) else {}


def _find(key: str) -> tuple[str, Handle] | None:
    """Find the grant of this key in the session of the present request."""
    if not has_request_context():
        return None
    for provider, value in _present().items():
        handle = Handle.parse(value)
        if handle is not None and record_key(f"{provider}.{handle.secret}") == key:
            return provider, handle
    return None


def _taken_out() -> Mapping[str, Handle]:
    if not has_request_context():
        return {}
    # By request, because two of them may share an application context.
    owner, handles = g.get("_atm_taken_out", (None, {}))
    return handles if owner is request._get_current_object() else {}  # type: ignore[attr-defined]


def _bytes(text: str) -> bytes | None:
    try:
        return urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except ValueError:
        return b""  # something is there, and it does not open
