"""Small sealed values in cookies of their own: what a browser has to bring back."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from typing import Any, Final, Literal

from flask import Response, request

from flask_atm.grants.seal import Unreadable
from flask_atm.state import State

__all__ = ["cookie_name", "drop_cookie", "open_cookie", "seal_cookie"]

_SECURE: Final = "__Secure-"


def cookie_name(name: str, *, secure: bool) -> str:
    """Give the name of a cookie; browsers take ``__Secure-`` from https pages only."""
    return f"{_SECURE}{name}" if secure else name


def seal_cookie(
    response: Response,
    state: State,
    name: str,
    value: Any,
    *,
    record: str,
    path: str,
    max_age: int,
    same_site: Literal["Strict", "Lax", "None"] = "Lax",
) -> None:
    """Put a sealed JSON value into a cookie, which scripts cannot read.

    :param record: what it is bound to: without it the value does not open.
    """
    sealed = state.ring.seal_json(value, purpose=f"cookie {_plain(name)}", record=record)
    response.set_cookie(
        name,
        urlsafe_b64encode(sealed).decode().rstrip("="),
        max_age=max_age,
        path=path,
        secure=name.startswith(_SECURE) or same_site == "None",
        httponly=True,
        samesite=same_site,
    )


def open_cookie(state: State, name: str, *, record: str) -> Any:
    """Give the value of a cookie of the present request; ``None`` if it is not there, or not ours.

    :param record: what it was bound to.
    """
    text = request.cookies.get(name)
    if not text or not text.isascii():
        return None
    try:
        sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return state.ring.open_json(sealed, purpose=f"cookie {_plain(name)}", record=record)
    except (Base64Error, Unreadable):
        return None


def drop_cookie(response: Response, name: str, *, path: str) -> None:
    """Take a cookie away."""
    response.delete_cookie(
        name, path=path, secure=name.startswith(_SECURE), httponly=True, samesite="Lax"
    )


def _plain(name: str) -> str:
    return name.removeprefix(_SECURE)
