"""Logout from outside: the provider says that a session has ended (Back-Channel Logout 1.0).

Section 2.8 knows two answers. 200: the sign-ins are gone, or there were none. 400: nothing is
known to be gone; that is what a provider gets that sends no proper token, and also one whose keys
cannot be had, or whose sign-ins cannot be removed because the store is silent. It has its chance to
send the token again then, which does no harm: whatever is done is done once.
"""

import logging
import time
from typing import Final

from flask import Response, current_app, json, request
from werkzeug.exceptions import HTTPException

from flask_atm.endings import drain_behind, end_session
from flask_atm.errors import ATMError, StoreError
from flask_atm.oauth.logout_token import LogoutToken, LogoutTokenRejected
from flask_atm.state import Provider, State, current_state

__all__ = ["backchannel_logout"]

log = logging.getLogger("flask_atm.logout")

#: Bytes of a request: a logout token has some hundred.
_LONGEST: Final = 65536
_PARAMETER: Final = "logout_token"
_AGAIN: Final = "temporarily_unavailable"


def backchannel_logout(provider_name: str) -> Response:
    """End what the logout token of the present request names, and say whether that was done."""
    state = current_state()
    provider = state.provider(provider_name)
    token, problem = _received()
    if token is None:
        return _refuse(provider, problem)
    try:
        return _end(state, provider, provider.id_tokens.check_logout(token))
    except LogoutTokenRejected as error:
        return _refuse(provider, str(error))
    except StoreError as error:
        problem = f"the store does not answer: {error}"
    except ATMError as error:
        problem = f"the token cannot be checked now: {error}"
    log.log(_level(state, provider), "a logout at %r is not done, %s", provider.name, problem)
    return _answer({"error": _AGAIN, "error_description": "Send the token again."}, 400)


def _received() -> tuple[str | None, str]:
    """Give the token, or what is wrong with the request."""
    request.max_content_length = _LONGEST
    try:
        found = request.form.getlist(_PARAMETER)
    except HTTPException:
        return None, "The request is too large, or no form."
    if len(found) != 1 or not found[0]:
        return None, f"The request needs the form parameter {_PARAMETER}, once."
    return found[0], ""


def _end(state: State, provider: Provider, token: LogoutToken) -> Response:
    ended = end_session(state, provider, token)
    log.info("a logout at %r has ended %d sign-ins by %s", provider.name, ended, token.entry[0])
    if ended:
        # Not waited for: a provider that waits for this answer may have no thread for another.
        for one in state.sign_ins_like(provider):
            drain_behind(state, one)
    return _answer({}, 200)


def _level(state: State, provider: Provider) -> int:
    """Give the level of the next line: anybody may send tokens that name a key nobody knows."""
    name, now = f"logout at {provider.name}", time.monotonic()
    if now - state.complaints.get(name, -60.0) < 60.0:
        return logging.INFO
    state.complaints[name] = now
    return logging.ERROR


def _refuse(provider: Provider, description: str) -> Response:
    log.warning("a logout at %r was refused: %s", provider.name, description)
    return _answer({"error": "invalid_request", "error_description": description}, 400)


def _answer(body: dict[str, str], status: int) -> Response:
    text = json.dumps(body) if body else ""
    response = current_app.response_class(text, status, mimetype="application/json")
    if not body:
        del response.headers["Content-Type"]
    if body.get("error") == _AGAIN:
        response.headers["Retry-After"] = "1"
    response.headers["Cache-Control"] = "no-store"
    return response
