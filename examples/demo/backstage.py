"""The buttons that make trouble, and what the page shows of the scenes behind it."""

from typing import Any

from flask import Blueprint, Response, abort, request

from flask_atm import current_user_token, requires_token
from flask_atm.testing import FakeProvider
from journal import Journal

__all__ = ["make_backstage"]


def make_backstage(provider: FakeProvider, journal: Journal) -> Blueprint:
    """Make the views that break things and mend them."""
    backstage = Blueprint("backstage", __name__, url_prefix="/backstage")
    state = {"up": True}

    @backstage.before_request
    def buttons_of_this_page_only() -> None:
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        if request.method == "POST" and site != "same-origin":
            abort(403)

    @backstage.post("/break")
    @requires_token
    def break_token() -> tuple[str, int]:
        provider.revoke(current_user_token.value)
        journal.add("you", "You broke the token: the provider has revoked it.")
        return "", 204

    @backstage.post("/stop")
    def stop() -> tuple[str, int]:
        provider.stop()
        state["up"] = False
        journal.add("you", "You stopped the provider.")
        return "", 204

    @backstage.post("/start")
    def start() -> tuple[str, int]:
        provider.start()
        state["up"] = True
        journal.add("you", "You started the provider.")
        return "", 204

    @backstage.get("/status")
    def status() -> dict[str, Any]:
        done = [seen for seen in provider.requests if seen.status == 200]
        return {
            "up": state["up"],
            "refreshes": sum(seen.grant_type == "refresh_token" for seen in done),
            "client_tokens": sum(seen.grant_type == "client_credentials" for seen in done),
            "revocations": sum(seen.endpoint == "revoke" for seen in done),
            "replays": provider.replays,
            "log": journal.latest(),
        }

    @backstage.after_app_request
    def protect(response: Response) -> Response:
        # Signing out is a form, and browsers check where its redirects lead, too.
        response.headers.setdefault(
            "Content-Security-Policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
            f" connect-src 'self'; form-action 'self' {provider.issuer};"
            " base-uri 'none'; frame-ancestors 'none'",
        )
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "same-origin")
        return response

    return backstage
