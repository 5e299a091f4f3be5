"""Checks of the providers: what they say of themselves, their keys, their clocks."""

import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final

from flask_atm.doctor.finding import Finding, failed, ok, warning
from flask_atm.errors import ATMError
from flask_atm.oauth.answer import Answer
from flask_atm.oauth.metadata import ServerMetadata
from flask_atm.state import Provider, State

__all__ = ["check_provider", "clock_finding"]

_BYTES: Final = 2**20
#: Seconds that a clock may be off: ID tokens are refused at clock_skew, 60.
_OFF: Final = 5.0


def check_provider(state: State, name: str) -> Iterator[Finding]:
    """Look at one provider; these are requests to it."""
    check = f"provider {name}"
    try:
        provider = state.provider(name)
        metadata = state.metadata.get(provider.location)
    except ATMError as error:
        cure = "ATM_ISSUER has to be the issuer as the provider writes it, and reachable from here"
        yield failed(check, _text(error), cure)
        return
    if provider.config.issuer is None:
        yield ok(check, "its endpoints are configured; it has no metadata")
        return
    yield ok(check, f"its metadata are those of {metadata.issuer}")
    yield _pkce(name, metadata)
    yield _keys(state, provider, metadata)
    yield _clock(state, provider, metadata)


def _text(error: ATMError) -> str:
    return getattr(error, "description", None) or str(error)


def _pkce(name: str, metadata: ServerMetadata) -> Finding:
    check, methods = f"PKCE {name}", metadata.code_challenge_methods_supported
    if methods is None:
        text = "the metadata do not say whether PKCE is supported; S256 is used all the same"
        return warning(check, text, "look into the provider's documentation, or its settings")
    if "S256" not in methods:
        text = f"the metadata name {', '.join(methods) or 'nothing'}, but not S256"
        return failed(check, text, "allow S256 at the provider: there is no sign-in without it")
    return ok(check, "S256")


def _keys(state: State, provider: Provider, metadata: ServerMetadata) -> Finding:
    check = f"JWKS {provider.name}"
    if metadata.jwks_uri is None:
        if not provider.config.sign_in:
            return ok(check, "none, and no sign-in that would need one")
        cure = "ATM_JWKS_URI, or sign_in False for a provider that signs nobody in"
        return failed(check, "the metadata name no keys, so no ID token can be checked", cure)
    problem, usable = "", 0
    try:
        usable = len(state.metadata.keys(metadata))
    except ATMError as error:
        problem = _text(error)
    if not usable:
        text = problem or "there is no key in it that can verify an ID token"
        return failed(check, text, "look at the provider's keys, and whether jwks_uri is reachable")
    return ok(check, f"keys that can verify ID tokens: {usable}")


def _clock(state: State, provider: Provider, metadata: ServerMetadata) -> Finding:
    url = metadata.jwks_uri or metadata.token_endpoint or ""
    began = time.monotonic()
    answer = state.back_channel.send(
        "GET",
        url,
        deadline=began + state.config.token_timeout,
        max_bytes=_BYTES,
        name=provider.name,
    )
    date = answer.headers.get("date") if isinstance(answer, Answer) else None
    took = time.monotonic() - began
    skew = provider.config.id_token.clock_skew
    return clock_finding(provider.name, date, now=state.clock(), took=took, skew=skew)


def clock_finding(name: str, date: str | None, *, now: float, took: float, skew: float) -> Finding:
    """Compare a ``Date`` header with the time of this host.

    :param took: seconds between question and answer.
    :param skew: seconds by which ID tokens may be off.
    """
    check = f"clock {name}"
    theirs = None
    with suppress(ValueError):
        theirs = parsedate_to_datetime(date).timestamp() if date else None
    if theirs is None:
        text = "the provider does not tell its time, so clocks cannot be compared"
        return warning(check, text, "look whether this host is synchronised (NTP)")
    # The header has whole seconds, and was written at some moment between question and answer.
    off = max(0.0, theirs - now, now - took - theirs - 1.0)
    if off > skew:
        text = f"the provider's clock is {off:.0f} s off: ID tokens are refused"
        return failed(check, text, "synchronise the clock of this host (NTP)")
    if off > _OFF:
        text = f"the provider's clock is {off:.0f} s off"
        return warning(check, text, "synchronise the clock of this host (NTP)")
    return ok(check, "no difference that matters")
