"""A socket that is open for hours: whose it is, is taken down when it connects.

``python examples/jobs/socket_events.py`` shows it, beside a fake provider and a fake API.
"""

from collections.abc import Mapping
from typing import Any

from flask import Flask, request, url_for
from flask_socketio import ConnectionRefusedError, SocketIO, disconnect, emit
from requests import HTTPError

from flask_atm import ATM, ATMError, LoginRequired, current_login

atm = ATM()
invoices = atm.api("invoices")
socketio = SocketIO(async_mode="threading")
#: The grant id of each open socket. It stays in this process, as the sockets do.
grant_ids: dict[str, str] = {}


def create_app(settings: Mapping[str, Any] | None = None) -> Flask:
    """Make the application.

    :param settings: what the environment does not say.
    """
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.update(settings or {})
    atm.init_app(app)
    socketio.init_app(app)
    return app


@socketio.on("connect")
def connected() -> None:
    """Let those in who are signed in. The browser sends its session cookie here, and only here."""
    if not bool(current_login):
        raise ConnectionRefusedError("sign in")
    grant_ids[request.sid] = current_login.grant_id


@socketio.on("disconnect")
def disconnected(reason: str) -> None:
    """Forget whose it was."""
    grant_ids.pop(request.sid, None)


@socketio.on("latest")
def latest() -> Any:
    """Answer an event, now or in some hours: tokens are renewed as in a view."""
    with atm.use_grant(grant_ids[request.sid]):
        answer = invoices.get("latest")
        answer.raise_for_status()
        return answer.json()


@socketio.on_error_default
def failed(error: Exception) -> Any:
    """Tell the page what to do: an event has no answer with a status."""
    if isinstance(error, LoginRequired):
        # Signed out, here or at the provider: nobody may go on listening. The page goes to the URL,
        # comes back with another sign-in, and connects again.
        emit("sign in", url_for("atm.login"))
        disconnect()
        return None
    if isinstance(error, ATMError | HTTPError):
        return {"error": "not now, try again later"}
    raise error


# Below: only for trying it without a provider and a browser.


def main() -> None:
    """Sign in, connect, ask, sign out elsewhere, and ask again."""
    from flask_atm.testing import FakeAPI, FakeProvider

    with FakeProvider() as provider, FakeAPI(provider) as api:
        apis = {"invoices": {"base_url": api.base_url}}
        app = create_app(provider.settings(ATM_APIS=apis))
        browser = app.test_client()
        browser.get(provider.approve(browser.get("/oidc/login").location or ""))
        socket = socketio.test_client(app, flask_test_client=browser)
        print("latest:", socket.emit("latest", callback=True))
        browser.post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
        socket.emit("latest")
        print("after the sign-out:", "connected" if socket.is_connected() else "disconnected")


if __name__ == "__main__":
    main()
