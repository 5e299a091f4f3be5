"""A small web application that uses flask-atm. All that this takes is in this file."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from flask import Flask, render_template

from flask_atm import (
    ATM,
    AccessToken,
    current_login,
    current_user_token,
    requires_login,
    requires_token,
)

__all__ = ["create_app"]

atm = ATM()
greetings = atm.api("greetings")  # ATM_APIS says where it is


def create_app(config: Mapping[str, Any]) -> Flask:
    """Make the application."""
    app = Flask(__name__)
    app.config.from_mapping(config)  # elsewhere: app.config.from_prefixed_env()
    atm.init_app(app)

    @app.get("/")
    def index() -> str:
        """Show who is signed in: this needs no token, and nothing of the network."""
        return render_template("index.html")

    @app.get("/token")
    @requires_token
    def token() -> dict[str, Any]:
        """Describe the user's token, which has just been renewed if that was due."""
        return describe(current_user_token)

    @app.get("/call")
    @requires_token
    def call() -> dict[str, Any]:
        """Call an API for the user. Had it refused the token, there would be a new one by now."""
        answer = greetings.get("hello")
        return {"status": answer.status_code, "answer": answer.json()}

    @app.post("/twenty")
    @requires_login
    def twenty() -> dict[str, Any]:
        """Call the API from twenty threads at once. All they need is the grant."""
        grant_id = current_login.grant_id

        def call_in_thread(number: int) -> int:
            with app.app_context(), atm.use_grant(grant_id):
                return greetings.get("parallel").status_code

        with ThreadPoolExecutor(20) as threads:
            return {"statuses": list(threads.map(call_in_thread, range(20)))}

    @app.get("/client-token")
    def client_token() -> dict[str, Any]:
        """Describe a token of this application itself: no user has to do with it."""
        return describe(atm.get_client_token("nightly"))

    return app


def describe(token: AccessToken) -> dict[str, Any]:
    """Give what a page may show of a token, which is never the token."""
    return {
        "type": token.token_type,
        "scope": (token.scope or "").split(),
        "expires_in": token.expires_in,
        "fingerprint": sha256(token.value.encode()).hexdigest()[:8],
    }
