"""Where a browser is sent: paths of this application, and the URLs that providers send it back to.

Nothing here trusts what a browser says of itself: a path is taken only if every reader sees a path
of this application in it, and a host only if the configuration names it.
"""

import re
import unicodedata
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from flask import Response, current_app, redirect, request, url_for
from werkzeug.routing import BuildError

from flask_atm.config import FLAT
from flask_atm.errors import ConfigurationError
from flask_atm.settings import is_loopback
from flask_atm.state import State, current_state

__all__ = [
    "CannotReturn",
    "after_login",
    "after_logout",
    "callback_endpoint",
    "callback_provider",
    "check_return_url",
    "external_url",
    "local_path",
    "own_origins",
    "redirect_to",
    "referring_path",
    "requested_path",
]

_LONGEST: Final = 1024
#: Printable ASCII that begins with one slash: what a browser itself makes of a path.
_PATH: Final = re.compile(r"/(?![/\\])[!-\[\]-~]*")
#: In a path that was decoded: another host, a control character, a way out of the path.
_UNSAFE: Final = re.compile(r"//|.*[\\\x00-\x1f\x7f-\x9f]|.*/\.\.?(/|$)", re.DOTALL)
_NETLOC: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class CannotReturn(ConfigurationError):
    """Nobody can say safely where a provider is to send the browser back to."""


def redirect_to(url: str) -> Response:
    """Redirect, with an answer that nothing keeps; after a POST the next request is a GET."""
    code = 302 if request.method in {"GET", "HEAD"} else 303
    response = current_app.make_response(redirect(url, code))
    response.headers["Cache-Control"] = "no-store"
    return response


# -- paths of this application


def local_path(url: str | None) -> str | None:
    """Give back a path of this application; ``None`` for anything else, or over 1 kB.

    :param url: what somebody asked for; absolute URLs are refused, also our own.
    """
    if not url or len(url) > _LONGEST or not _PATH.fullmatch(url):
        return None
    path, decoded = "", re.split(r"[?#]", url, maxsplit=1)[0]
    while path != decoded:  # Each proxy on the way may decode once more.
        if _UNSAFE.match(unicodedata.normalize("NFKC", decoded)):
            return None
        path, decoded = decoded, unquote(decoded)
    return url


def requested_path() -> str | None:
    """Give the path and query of the present request, to come back to."""
    path = quote(request.script_root + request.path, safe="/:@!$&'()*+,;=~")
    query = request.query_string.decode("latin-1")
    return local_path(f"{path}?{query}" if query else path)


def referring_path() -> str | None:
    """Give the path of the page that the present request came from, if it is one of ours."""
    referrer = request.referrer or ""
    for origin in own_origins():
        if referrer.startswith(f"{origin}/"):
            return local_path(referrer.removeprefix(origin))
    return None


def own_origins() -> set[str]:
    """Give the origins that pages of this application have."""
    # Behind a proxy that speaks TLS the scheme that the browser sees may be unknown here.
    origins = {f"{request.scheme}://{request.host}", f"https://{request.host}"}
    if external := current_state().config.external_url:
        parts = urlsplit(external)
        origins.add(f"{parts.scheme}://{parts.netloc}")
    return origins


def after_login() -> str:
    """Give the place to go to after a sign-in that has none of its own."""
    return _place(current_state().config.after_login)


def after_logout() -> str:
    """Give the place to go to after a sign-out that has none of its own."""
    return _place(current_state().config.after_logout)


def _place(target: str) -> str:
    if not target.startswith("/"):
        return url_for(target)
    # A path of the application, which may be mounted below another one.
    root = request.script_root
    return target if target.startswith(f"{root}/") else root + target


# -- URLs that providers know


def callback_provider(state: State) -> str | None:
    """Give the provider whose redirect URI has no name in it: the flat one, or the only one."""
    names = state.config.providers
    if FLAT in names:
        return FLAT
    return next(iter(names)) if len(names) == 1 else None


def callback_endpoint(state: State, provider: str) -> tuple[str, dict[str, str]]:
    """Give the endpoint of a provider's redirect URI, and its values.

    Providers never share one, so that none can pass its answer off as another's (RFC 9207).
    """
    return "atm.callback", {} if provider == callback_provider(state) else {"provider": provider}


def external_url(endpoint: str, **values: str) -> str:
    """Give the URL of an endpoint for a provider to send the browser to.

    :raises CannotReturn: the host of this application is not known for sure, or plain http.
    :raises ConfigurationError: there is no such route.
    """
    try:
        path = url_for(endpoint, _external=False, **values)
        seen = urlsplit(url_for(endpoint, _external=True, **values))
    except BuildError:
        path = ""
    if not path:
        raise ConfigurationError(
            f"There is no route {endpoint!r} (ATM_ROUTES is False): give atm.login(redirect_uri=…)"
            " the URL of your own callback route."
        )
    external = current_state().config.external_url
    if external:
        if urlsplit(external).path:  # It says where the application is mounted.
            path = path.removeprefix(request.script_root)
        return check_return_url(external + path)
    _check_host(seen.netloc)
    return check_return_url(f"{seen.scheme}://{seen.netloc}{path}")


def check_return_url(url: str) -> str:
    """Give back a URL unless it is plain http to another machine.

    :raises CannotReturn: it is.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    allowed = current_state().config.back_channel.allowed_http_hosts
    if parts.scheme == "https" or (
        parts.scheme == "http" and (is_loopback(host) or host in allowed)
    ):
        return url
    raise CannotReturn(
        f"This application seems to be at {parts.scheme}://{host}, and authorization codes never"
        " travel over plain http. Set ATM_EXTERNAL_URL to its https URL; or, behind a proxy that"
        " speaks TLS, use werkzeug.middleware.proxy_fix.ProxyFix(app.wsgi_app, x_proto=1)."
    )


def _check_host(netloc: str) -> None:
    """Raise unless the host is configured, or this machine: anybody can send any Host header."""
    config = current_app.config
    server_name = config.get("SERVER_NAME")
    if config.get("TRUSTED_HOSTS"):
        return
    if server_name and (netloc == server_name or netloc.endswith(f".{server_name}")):
        return
    host = _NETLOC.fullmatch(netloc)
    if host and is_loopback(host[1].strip("[]")):
        return
    raise CannotReturn(
        "This application does not know its own host name, and what browsers send as such cannot"
        " be trusted. Set ATM_EXTERNAL_URL (https://app.example.com), TRUSTED_HOSTS or SERVER_NAME."
    )
