"""An application under gevent, for ``test_greenlets.py``: a process of its own.

``python -m gevent.monkey --module tests.top.greenlets``, with JSON on standard input.
"""

import json
import sys
import time
from collections import Counter
from typing import Any

import gevent
import requests
from flask import Flask
from gevent import monkey

from flask_atm.decorators import requires_token
from flask_atm.extension import ATM
from flask_atm.state import STATE_KEY
from tests.grants.support import grant_from

GREENLETS = 200


def make_app(config: dict[str, Any], instance: str, ahead: list[float]) -> Flask:
    """Make the application; its clock runs ahead."""
    app = Flask(__name__, instance_path=instance)
    app.config.update(config)
    atm = ATM(app, clock=lambda: time.time() + ahead[-1])
    api = atm.api("api")

    @app.get("/me")
    @requires_token
    def me() -> Any:
        return api.get("me").json()

    @app.get("/drip")
    def drip() -> str:
        try:
            return api.get("drip").text
        except requests.ReadTimeout:
            return "late"

    return app


def main() -> None:
    """Do all of it, and tell what came of it."""
    assert monkey.is_module_patched("threading")
    told = json.load(sys.stdin)
    ahead = [0.0]
    app = make_app(told["config"], told["instance"], ahead)
    state = app.extensions[STATE_KEY]
    handle = grant_from(state, told["response"], sub="alice").partition(".")[2]
    ahead.append(1000.0)

    def call(path: str) -> str:
        client = app.test_client()
        with client.session_transaction() as session:
            session["_atm"] = {"oidc": f"{state.store_id()}.{handle}"}
        answer = client.get(path)
        return f"{answer.status_code} {answer.json.get('sub') if answer.json else answer.text}"

    def bystander() -> None:
        """The provider answers when this one, which does not wait for it, got through."""
        for gate in ("asked", "answer"):
            requests.get(f"{told['config']['ATM_ISSUER']}/{gate}", timeout=30).raise_for_status()

    def everybody(path: str, count: int, *others: Any) -> Counter[str]:
        crowd = [gevent.spawn(call, path) for _ in range(count)]
        gevent.joinall([*crowd, *others], timeout=60, raise_error=True)
        return Counter(one.value for one in crowd)

    found = [everybody("/me", GREENLETS, gevent.spawn(bystander)), everybody("/drip", 20)]
    ahead.append(2000.0)
    found.append(everybody("/me", 20))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
