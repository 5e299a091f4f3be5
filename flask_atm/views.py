"""The blueprint ``atm``: sign-in, callback, sign-out, here and from outside."""

import logging
import re
from typing import Final

from flask import Blueprint, Response, abort, current_app, request

from flask_atm import login, logout
from flask_atm.backchannel_logout import backchannel_logout
from flask_atm.config import Config
from flask_atm.destinations import callback_provider, local_path
from flask_atm.errors import ConfigurationError
from flask_atm.pages import (
    TEMPLATES,
    login_required_response,
    register_error_handlers,
    render,
)
from flask_atm.state import current_state

__all__ = ["login_required_response", "make_blueprint", "register_error_handlers"]

log = logging.getLogger("flask_atm.views")

_NAME: Final = re.compile(r"[a-z0-9_]{1,64}")


def make_blueprint(config: Config) -> Blueprint:
    """Make the routes of an application."""
    blueprint = Blueprint(
        "atm", __name__, url_prefix=config.url_prefix, template_folder=str(TEMPLATES)
    )
    add = blueprint.add_url_rule
    add("/login", "login", _login)
    add("/login/<provider>", "login", _login)
    add("/callback", "callback", _callback, methods=["GET", "POST"])
    add("/callback/<provider>", "callback", _callback, methods=["GET", "POST"])
    add("/logout", "logout", _logout, methods=["GET", "POST"])
    add("/logged-out", "logged_out", logout.logged_out)
    add("/backchannel-logout", "backchannel_logout", _ended, methods=["POST"])
    add("/backchannel-logout/<provider>", "backchannel_logout", _ended, methods=["POST"])

    # Not at registration: CSRFProtect may come after us. It looks at its list after this.
    @blueprint.url_value_preprocessor
    def exempt_from_csrf_protect(endpoint: object, values: object) -> None:
        csrf = current_app.extensions.get("csrf")
        if csrf is not None:
            csrf.exempt(blueprint)

    return blueprint


def _login(provider: str | None = None) -> Response:
    return login.begin(_known(provider), request.args.get("next"))


def _callback(provider: str | None = None) -> Response:
    if request.method == "HEAD":
        abort(405)  # A look without a visit must not use up a code.
    return login.finish(_known(provider or callback_provider(current_state()) or ""))


def _logout() -> Response:
    if request.method != "POST":
        return _page(
            token=logout.form_token(), next_path=local_path(request.args.get("next")), status=200
        )
    if not logout.is_own_request():
        return _page(token=logout.form_token(), next_path=None, status=403)
    return logout.logout(request.form.get("next"), None)


def _ended(provider: str | None = None) -> Response:
    return backchannel_logout(_known(provider or callback_provider(current_state()) or ""))


def _page(*, token: str, next_path: str | None, status: int) -> Response:
    page = render("atm/logout.html", token=token, next=next_path, refused=status == 403)
    response = Response(page, status, mimetype="text/html")
    response.headers["Cache-Control"] = "no-store"
    response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
    return response


def _known(provider: str | None) -> str:
    """Give the name of a provider that there is, or answer 404."""
    state = current_state()
    name = None
    try:
        wanted = state.default_provider() if provider is None else provider
        name = state.provider(wanted).name if _NAME.fullmatch(wanted) else None
    except ConfigurationError as error:
        log.warning("no sign-in at %r: %s", provider, error)
    return name or abort(404)
