"""Which grants a browser has: ``flask.session["_atm"] = {provider: "<store id>.<handle>"}``.

The value is always assigned, never changed in place, so that Flask notices. A grant id is
``<provider>.<handle>``; the provider is the key here and is not repeated. The store id tells a
grant that has ended from one that lives in another store.
"""

from typing import Any, Final

from flask import g, session

__all__ = ["SESSION_KEY", "forget", "handle_of", "handles", "remember"]


SESSION_KEY: Final = "_atm"


def handles() -> dict[str, tuple[str, str]]:
    """Give ``(store id, grant id)`` by provider; what is not ours is left out."""
    found = {provider: handle_of(provider) for provider in _present()}
    return {provider: handle for provider, handle in found.items() if handle is not None}


def handle_of(provider: str) -> tuple[str, str] | None:
    """Give the store id and the grant id that the browser has for a provider."""
    handle = _present().get(provider)
    if not isinstance(handle, str):
        return None
    store_id, dot, secret = handle.partition(".")
    return (store_id, f"{provider}.{secret}") if dot and "." not in secret else None


def remember(provider: str, store_id: str, grant_id: str) -> None:
    """Put a grant into the browser's session."""
    handle = f"{store_id}.{grant_id.removeprefix(provider + '.')}"
    session[SESSION_KEY] = {**_present(), provider: handle}
    _forget_looked_up()


def forget(provider: str) -> None:
    """Take a provider's grant out of the browser's session."""
    left = {name: handle for name, handle in _present().items() if name != provider}
    if left:
        session[SESSION_KEY] = left
    else:
        session.pop(SESSION_KEY, None)
    _forget_looked_up()


def _present() -> dict[str, Any]:
    value = session._get_current_object().get(SESSION_KEY)  # type: ignore[attr-defined]
    return value if isinstance(value, dict) else {}


def _forget_looked_up() -> None:
    g.pop("_atm", None)
