"""An application as a WSGI server imports it: ``tests.servers.served:app``.

Its settings are in the environment. It has used its store before any worker is forked.
"""

import os

from flask import Flask

from flask_atm import ATM, current_user_token, requires_token
from flask_atm.globals import current_login
from flask_atm.state import STATE_KEY

__all__ = ["app"]

app = Flask(__name__, instance_path="/nonexistent")
app.config.from_prefixed_env()
atm = ATM(app)
app.extensions[STATE_KEY].store_id()


@app.get("/token")
@requires_token
def token() -> dict[str, object]:
    """Say who was served, with what, and by which process."""
    return {
        "subject": current_login.subject,
        "token": current_user_token.value,
        "process": os.getpid(),
        "parent": os.getppid(),
    }


@app.get("/health")
def health() -> tuple[dict[str, object], int]:
    """Say whether this process can be sent requests."""
    state = atm.health()
    return state, 200 if state["store"] == "ok" else 503
