"""What a process keeps of users that it has served: resident memory before and after.

Run it with ``python -m benchmarks.growth``, with a number of users if 100,000 are not enough. Each
user comes once, with a cookie of its own, and calls a view that uses ``current_user_token``; of
every twentieth the token has expired, so it is renewed.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from flask import Flask, session
from werkzeug.test import EnvironBuilder, run_wsgi_app

from benchmarks.filling import fill, grant_id
from benchmarks.many_grants import MANY, ROOT
from benchmarks.setting import signed_in
from flask_atm import ATM, current_login, current_user_token
from flask_atm.browser_session import SESSION_KEY, remember
from flask_atm.state import STATE_KEY, State

__all__ = ["measure"]

WARM, EVERY = 2_000, 20
#: Megabytes that a process may have grown by.
LIMIT = 30.0


def measure(many: int = MANY) -> list[tuple[str, float, float]]:
    """Give ``(what, figure, limit)``."""
    endpoint = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.refresh", "--serve"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert endpoint.stdout is not None
        url = f"http://127.0.0.1:{endpoint.stdout.readline().strip()}/token"
        config = {"ATM_ISSUER": None, "ATM_SIGN_IN": False, "ATM_SCOPE": "read"}
        config |= {"ATM_TOKEN_ENDPOINT": url, "ATM_AUTHORIZATION_ENDPOINT": url}
        with signed_in(**config) as (app, state, _):
            fill(state, range(many))
            fill(state, range(0, many, EVERY), left=-60)
            config |= {key: app.config[key] for key in KEPT}
            served = subprocess.run(
                [sys.executable, "-m", "benchmarks.growth", "--serve", str(many)],
                input=json.dumps(config),
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                check=True,
            )
    finally:
        endpoint.terminate()
        endpoint.wait(10)
    before, after = json.loads(served.stdout)
    print(f"  {before:.1f} MB after {WARM} users, {after:.1f} MB after {many}")
    return [(f"MB that a process grows by while it serves {many} users", after - before, LIMIT)]


KEPT = ("SECRET_KEY", "ATM_CLIENT_ID", "ATM_CLIENT_SECRET", "ATM_STORE")


def resident() -> float:
    """Give the megabytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def application(folder: Path, config: dict[str, Any]) -> Flask:
    """Make an application whose one view says who came."""
    app = Flask("benchmark", instance_path=str(folder))
    app.config.update(
        SECRET_KEY="0123456789abcdef" * 3 + "benchmark",
        ATM_ISSUER="http://127.0.0.1:9",
        ATM_CLIENT_ID="benchmark",
        ATM_CLIENT_SECRET="s",
    )
    app.config.update(config)
    ATM(app)

    @app.get("/")
    def index() -> str:
        return f"{current_login.subject} {current_user_token.value[0]}"

    return app


def serve(config: dict[str, Any], many: int) -> None:
    """Serve so many users, and tell what this process weighs early and late."""
    with tempfile.TemporaryDirectory() as folder:
        app = application(Path(folder), config)
        visit, renewed = Visitor(app), 0
        for number in range(WARM):
            renewed += visit(number)
        before = resident()
        for number in range(WARM, many):
            renewed += visit(number)
        assert renewed == len(range(0, many, EVERY))
        print(json.dumps([before, resident()]))


class Visitor:
    """Comes as any of the users, with that user's cookie."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._state: State = app.extensions[STATE_KEY]
        self._store_id = self._state.store_id()
        self._environ = EnvironBuilder("/").get_environ()

    def __call__(self, number: int) -> bool:
        """Come, and tell whether the token was renewed for it."""
        cookie = f"session={self._session(number)}"
        body, status, _ = run_wsgi_app(self._app, {**self._environ, "HTTP_COOKIE": cookie})
        assert status == "200 OK", status
        said = b"".join(body)
        # A token of the endpoint begins with "a", one that was filled in with a digit.
        assert said in (b"user-%d 0" % number, b"user-%d a" % number)
        return said.endswith(b"a")

    def _session(self, number: int) -> str:
        with self._app.test_request_context():
            remember("oidc", self._store_id, grant_id(number))
            signed = self._app.session_interface.get_signing_serializer(self._app)  # type: ignore[attr-defined]
            value: str = signed.dumps({SESSION_KEY: session[SESSION_KEY]})
            return value


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve(json.load(sys.stdin), int(sys.argv[2]))
    else:
        for what, figure, limit in measure(*map(int, sys.argv[1:])):
            print(f"{what}: {figure:.2f} (limit {limit})")
