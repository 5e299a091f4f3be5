"""Checks of what browsers and proxies have to do with: cookies and the application's own URL."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_atm.doctor.finding import Finding, failed, ok, warning
from flask_atm.settings import is_loopback
from flask_atm.state import State

__all__ = ["check_web"]


def check_web(state: State) -> Iterator[Finding]:
    """Look at the session cookie, and at how the application learns its own URL."""
    if not state.config.providers and state.hooks.provider_loader is None:
        return
    yield from _cookies(state)
    yield _own_url(state)


def _cookies(state: State) -> Iterator[Finding]:
    app, interface = state.app, state.app.session_interface
    external = urlsplit(state.config.external_url or "")
    if interface.get_cookie_secure(app):
        yield ok("cookie Secure", "the session cookie goes over https only")
    elif external.scheme == "http" and is_loopback(external.hostname or ""):
        yield ok("cookie Secure", "off, which a loopback address needs")
    else:
        text = "the session cookie goes over plain http, too: whoever listens is signed in"
        yield warning("cookie Secure", text, "SESSION_COOKIE_SECURE = True where there is https")
    if interface.get_cookie_httponly(app):
        yield ok("cookie HttpOnly", "scripts cannot read the session cookie")
    else:
        text = "scripts of a page can read the session cookie, and act as the user elsewhere"
        yield failed("cookie HttpOnly", text, "SESSION_COOKIE_HTTPONLY = True")
    same_site = interface.get_cookie_samesite(app)
    if (same_site or "").lower() in ("lax", "strict"):
        yield ok("cookie SameSite", same_site or "")
    else:
        text = f"{same_site or 'not set'}: other sites can send requests in the name of the user"
        yield warning("cookie SameSite", text, 'SESSION_COOKIE_SAMESITE = "Lax"')


def _own_url(state: State) -> Finding:
    check, app = "own URL", state.app
    external = state.config.external_url
    proxied = _is_proxied(app)
    if external:
        return ok(check, f"ATM_EXTERNAL_URL is {external}")
    if not (app.config.get("TRUSTED_HOSTS") or app.config.get("SERVER_NAME")):
        text = "only loopback addresses can sign in: no host is trusted"
        cure = "ATM_EXTERNAL_URL (https://app.example.com), TRUSTED_HOSTS or SERVER_NAME"
        return warning(check, text, cure)
    if not proxied and app.config.get("PREFERRED_URL_SCHEME") != "https":
        text = "hosts are trusted, but no ProxyFix: behind a proxy the redirect URI would be http"
        cure = "app.wsgi_app = ProxyFix(app.wsgi_app, …), or ATM_EXTERNAL_URL"
        return warning(check, text, cure)
    return ok(check, "trusted hosts" + (" and ProxyFix" if proxied else ""))


def _is_proxied(app: Flask) -> bool:
    """Look for ProxyFix among the layers around the application."""
    layer: object = app.wsgi_app
    for _ in range(20):
        if isinstance(layer, ProxyFix):
            return True
        layer = getattr(layer, "app", None) or getattr(layer, "wsgi_app", None)
    return False
