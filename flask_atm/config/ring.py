# ruff: noqa: RUF009 -- key() is dataclasses.field() with a reader beside it
"""Which secrets seal what is stored: ``ATM_ENCRYPTION_KEYS``, or those of Flask's sessions."""

import re
from dataclasses import dataclass
from typing import Final

from flask_atm import settings as read
from flask_atm.config.reading import Section, key
from flask_atm.tokens import Secret

__all__ = ["ring_of", "to_bytes", "weakness"]

_CURE: Final = "python -c 'import secrets; print(secrets.token_hex())'"
_SHORTEST: Final = 32

# Printed in the documentation of Flask, copied ever since.
_EXAMPLES: Final = (
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
    "5f352379324c22463451387a0aec5d2f",
)
_PLACEHOLDERS: Final = re.compile(
    "changeme|changethis|replaceme|replacethis|yoursecret|supersecret|notsosecret|insecure"
    "|placeholder|example|neverguess|hardtoguess|secretkeyhere"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _FlaskKeys:
    secret_key: Secret | None = key(read.key_material, None, "Flask's own")
    secret_key_fallbacks: tuple[Secret, ...] = key(
        read.listed(read.key_material), (), "Flask's own"
    )


def to_bytes(secret: Secret) -> bytes:
    """Give the bytes of what :func:`flask_atm.settings.key_material` read."""
    return secret.reveal().encode("utf-8", "surrogateescape")


def weakness(secret: Secret) -> str | None:
    """Tell why a secret can be guessed; ``None`` where nothing speaks against it."""
    raw = to_bytes(secret)
    if len(raw) < _SHORTEST:
        return f"is shorter than {_SHORTEST} bytes"
    if raw in (raw + raw)[1:-1] or len(set(raw)) < 8:
        return "repeats itself"
    word = re.sub(r"[^a-z0-9]", "", secret.reveal().lower())
    if word in _EXAMPLES or _PLACEHOLDERS.search(word):
        return "is a well-known example"
    return None


def ring_of(
    explicit: tuple[Secret, ...],
    top: Section,
    flask: Section,
    *,
    signs_in: bool,
    seals: bool,
    strict: bool,
) -> tuple[Secret, ...]:
    """Give the secrets of the key ring, the one that seals first.

    :param explicit: what ``ATM_ENCRYPTION_KEYS`` says.
    :param top: the keys of the application.
    :param flask: a section with ``SECRET_KEY`` and ``SECRET_KEY_FALLBACKS``.
    :param signs_in: whether there are Flask sessions to sign.
    :param seals: whether there is a store that outlives the process.
    :param strict: whether weak secrets are refused.
    :returns: an empty tuple where nothing has to be sealed beyond the process.
    """
    own = top.has("encryption_keys", "encryption_keys_file")
    if not (signs_in or seals or own):
        return ()
    found = _FlaskKeys(**flask.read(_FlaskKeys))
    if not flask.has("secret_key") and (signs_in or not own):
        why = "sign-ins need it" if signs_in else "the store is sealed with it"
        flask.problem("secret_key", f"missing, and {why}; make one with {_CURE}")
    derived = (found.secret_key, *found.secret_key_fallbacks) if found.secret_key else ()
    if strict:
        _refuse_weak(top, "encryption_keys", explicit)
        if signs_in or not own:
            _refuse_weak(flask, "secret_key", derived[:1])
            _refuse_weak(flask, "secret_key_fallbacks", derived[1:])
    return explicit or derived


def _refuse_weak(section: Section, low: str, secrets: tuple[Secret, ...]) -> None:
    for number, secret in enumerate(secrets, start=1):
        if why := weakness(secret):
            which = f"number {number} " if len(secrets) > 1 else ""
            section.problem(low, f"{which}{why}; make one with {_CURE}")
