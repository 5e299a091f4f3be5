"""Which grants a browser has: ``flask.session["_atm"] = {provider: "<store id>.<handle>"}``.

The value is always assigned, never changed in place, so that Flask notices. A grant id is
``<provider>.<handle>``; the provider is the key here and is not repeated. The store id tells a
grant that has ended from one that lives in another store.
"""

from typing import Any, Final

from flask import g, session

__all__ = ["SESSION_KEY", "forget", "handles", "remember"]


SESSION_KEY: Final = "_atm"


def handles() -> dict[str, tuple[str, str]]:
    """Give ``(store id, grant id)`` by provider; what is not ours is left out."""
    value = session.get(SESSION_KEY)
    if not isinstance(value, dict):
        return {}
    found = {}
    for provider, handle in value.items():
        parts = handle.split(".") if isinstance(handle, str) else []
        if len(parts) == 2 and isinstance(provider, str):
            found[provider] = (parts[0], f"{provider}.{parts[1]}")
    return found


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
    value = session.get(SESSION_KEY)
    return value if isinstance(value, dict) else {}


def _forget_looked_up() -> None:
    g.pop("_atm", None)
