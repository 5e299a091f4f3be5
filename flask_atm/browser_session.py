"""Which grants a browser has: ``flask.session["_atm"] = {provider: "<store id>.<handle>"}``.

The value is always assigned, never changed in place, so that Flask notices. A grant id is
``<provider>.<handle>``; the provider is the key here and is not repeated. The store id tells a
grant that has ended from one that lives in another store. In session mode a sealed copy of the
grant follows behind a second dot: see :mod:`flask_atm.grants.stores.session`.
"""

from typing import Any

from flask import g, session

from flask_atm.grants.stores.session import SESSION_KEY, Handle, put_into_session, take_out

__all__ = ["SESSION_KEY", "forget", "handle_of", "handles", "remember"]


def handles() -> dict[str, tuple[str, str]]:
    """Give ``(store id, grant id)`` by provider; what is not ours is left out."""
    found = {provider: handle_of(provider) for provider in _present()}
    return {provider: handle for provider, handle in found.items() if handle is not None}


def handle_of(provider: str) -> tuple[str, str] | None:
    """Give the store id and the grant id that the browser has for a provider."""
    parts = Handle.parts(_present().get(provider))
    return None if parts is None else (parts[0], f"{provider}.{parts[1]}")


def remember(provider: str, store_id: str, grant_id: str) -> None:
    """Put a grant into the browser's session."""
    handle = Handle(store_id=store_id, secret=grant_id.removeprefix(f"{provider}."))
    put_into_session({**_present(), provider: str(handle)})
    _forget_looked_up()


def forget(provider: str) -> None:
    """Take a provider's grant out of the browser's session."""
    take_out(provider)
    put_into_session({name: value for name, value in _present().items() if name != provider})
    _forget_looked_up()


def _present() -> dict[str, Any]:
    value = session._get_current_object().get(SESSION_KEY)  # type: ignore[attr-defined]
    return value if isinstance(value, dict) else {}


def _forget_looked_up() -> None:
    g.pop("_atm", None)
