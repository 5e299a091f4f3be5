"""What a browser, or a script in it, gets to see when something is wrong."""

import logging
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from flask import Flask, Response, current_app, json, render_template, request, url_for
from jinja2 import BaseLoader, ChoiceLoader, FileSystemLoader
from werkzeug.routing import BuildError

from flask_atm.destinations import CannotReturn, referring_path, requested_path
from flask_atm.errors import (
    ATMError,
    BrowserError,
    InsufficientScope,
    LoginFailed,
    LoginRequired,
    ProtocolError,
    ServerUnavailable,
    StepUpRequired,
    StoreError,
)
from flask_atm.login import begin_again
from flask_atm.login.recent import recent
from flask_atm.state import current_state

__all__ = ["TEMPLATES", "login_required_response", "register_error_handlers", "render"]

log = logging.getLogger("flask_atm.views")

TEMPLATES: Final = Path(__file__).with_name("templates")
_STORE_RETRY: Final = 5
_LOOP: Final = (
    "You have just signed in, and are asked to sign in again. Another try would not help."
    " Likely causes: another instance of this application with a store of its own (give all of"
    " them the same ATM_STORE); a session cookie that does not come back (too large, Secure on a"
    " plain http page, another host name); a sign-in that the provider repeats silently although"
    " this application has ended it."
)
_STEP_UP_LOOP: Final = (
    "You have just confirmed your identity, and are asked to do so again. The provider does not"
    " give what the service asks for (acr_values, max_age)."
)


# -- handlers


def register_error_handlers(app: Flask) -> None:
    """Let an application answer our errors, unless it has handlers of its own for them.

    Ours are registered for classes without a status code, so that Flask asks first whoever is
    nearer: handlers of a status code, and those of a blueprint, catch-all ones too.
    """
    handlers: dict[type[Exception], Callable[[Any], Response]] = {
        BrowserError: _browser_error,
        StoreError: _store_error,
        ProtocolError: _protocol_error,
        CannotReturn: _cannot_return,
    }
    known = app.error_handler_spec[None].get(None, {})
    for kind, handler in handlers.items():
        if kind not in known and ATMError not in known:
            app.register_error_handler(kind, handler)


def _browser_error(error: ATMError) -> Response:
    """Answer an error that is an HTTP exception too."""
    answers: dict[type[Exception], Callable[[Any], Response]] = {
        LoginRequired: login_required_response,
        InsufficientScope: _insufficient_scope,
        LoginFailed: _login_failed,
        ServerUnavailable: _server_unavailable,
    }
    return next(answer(error) for kind, answer in answers.items() if isinstance(error, kind))


def login_required_response(error: LoginRequired) -> Response:
    """Answer :exc:`~flask_atm.LoginRequired`: a page load goes to the provider and comes back.

    Anything else gets 401 and a problem document (RFC 9457) with ``login_url``.
    """
    if error.reason == "outside_request":
        raise error  # A mistake in the program, which no sign-in cures.
    if not _is_navigation():
        return _problem(error, 401, login_url=_login_url(error.provider), reason=error.reason)
    try:
        _break_loop(error)
        return begin_again(error, _place_to_come_back())
    except ATMError as problem:
        # Flask asks no handler for what is raised in one.
        return current_app.make_response(current_app.handle_user_exception(problem))


def _break_loop(error: LoginRequired) -> None:
    """End a loop of sign-ins, or of step-ups.

    :raises LoginFailed: it is one.
    """
    state = current_state()
    name, known, now = error.provider or state.default_provider(), recent(state), state.clock()
    text = None
    if isinstance(error, StepUpRequired):
        text = _STEP_UP_LOOP if known.is_step_up_loop(name, now) else None
    elif known.is_loop(name, now):
        text = _LOOP
    if text is not None:
        log.warning("a browser is in a loop of sign-ins at %r (%s)", name, error.reason)
        raise LoginFailed(
            "The sign-in does not last.",
            error="login_loop",
            error_description=text,
            provider=name,
        )


def _place_to_come_back() -> str | None:
    if request.method in {"GET", "HEAD"}:
        return requested_path()
    return referring_path()


def _insufficient_scope(error: InsufficientScope) -> Response:
    return _answer(
        error, "You are not allowed to do this", error.description or "", scope=error.scope
    )


def _login_failed(error: LoginFailed) -> Response:
    response = _answer(
        error,
        "Sign-in failed",
        error.description or "",
        error=error.error,
        detail=error.error_description,
        reference=error.reference,
        login_url=_login_url(error.provider),
    )
    response.headers["Referrer-Policy"] = "no-referrer"  # the URL may have a code in it
    return response


def _server_unavailable(error: ServerUnavailable) -> Response:
    response = _answer(error, "Sign-in is not available", "Please try again in a moment.")
    response.headers["Retry-After"] = str(error.retry_after)
    return response


def _store_error(error: StoreError) -> Response:
    log.error("the store failed: %s", error)
    response = _answer(error, "Not available", "Please try again in a moment.", status=503)
    response.headers["Retry-After"] = str(_STORE_RETRY)
    return response


def _protocol_error(error: ProtocolError) -> Response:
    log.error("a server answered what it should not: %s", error)
    text = "The sign-in server gave an answer that cannot be used."
    return _answer(error, "Something went wrong", text, status=502)


def _cannot_return(error: CannotReturn) -> Response:
    log.error("no sign-in is possible: %s", error)
    return _answer(error, "This application is not set up yet", str(error), status=500)


# -- what is sent


def _answer(
    problem: ATMError, title: str, text: str, /, *, status: int | None = None, **more: Any
) -> Response:
    code = status or int(getattr(problem, "code", None) or 500)
    if not _wants_page():
        return _problem(problem, code, **{"detail": text, **_present(more)})
    page = render("atm/error.html", title=title, text=text, status=code, **more)
    return _uncached(Response(page, code, mimetype="text/html"))


def _problem(problem: ATMError, code: int, /, **members: Any) -> Response:
    status = HTTPStatus(code)
    body = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": getattr(problem, "description", None),
        **members,
    }
    text = json.dumps(_present(body))
    return _uncached(Response(text, status.value, mimetype="application/problem+json"))


def render(template: str, **values: Any) -> str:
    """Render one of our templates, or what the application has in its place."""
    ours = FileSystemLoader(TEMPLATES)
    # Without our blueprint (ATM_ROUTES is False) Flask does not look into our folder.
    theirs = current_app.jinja_env.loader or ours
    try:
        return _rendered(ChoiceLoader([theirs, ours]), template, values)
    except StoreError:
        # Layouts like to ask who is signed in, also on the page that says that nobody can tell.
        return _rendered(ours, template, values)


def _rendered(loader: BaseLoader, template: str, values: dict[str, Any]) -> str:
    environment = current_app.jinja_env.overlay(loader=loader)
    return render_template(environment.get_template(template), **values)


def _present(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _uncached(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def _login_url(provider: str | None) -> str | None:
    """Give the path of the login route, if there is one; without anything else."""
    state = current_state()
    plain = provider is None or provider == state.config.default_provider
    try:
        return url_for("atm.login", provider=None if plain else provider)
    except BuildError:
        return None


# -- who asks


def _wants_page() -> bool:
    """Tell whether the client names HTML among what it takes."""
    return any(kind == "text/html" and quality > 0 for kind, quality in request.accept_mimetypes)


def _is_navigation() -> bool:
    """Tell whether the answer becomes a page: only then does a redirect to sign-in help."""
    headers = request.headers
    return (
        _wants_page()
        and headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
        and "HX-Request" not in headers
        and "X-Requested-With" not in headers
    )
