"""What the application needs around it: a provider, an API, a folder, and a server to run in."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from application import create_app
from backstage import make_backstage
from flask_atm.testing import FakeAPI, FakeProvider
from journal import Journal

__all__ = ["Stage", "set_up"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What is running.

    :param url: of the application.
    """

    url: str
    provider: FakeProvider
    api: FakeAPI


@contextmanager
def set_up(*, lifetime: int) -> Iterator[Stage]:
    """Run everything on free ports, and leave nothing behind.

    :param lifetime: seconds that an access token lives.
    """
    # All of it is on this machine: a proxy that the environment names would be in the way.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    with (
        TemporaryDirectory(prefix="flask-atm-demo-") as folder,
        FakeProvider(expires_in=lifetime, auto_approve=False) as provider,
        FakeAPI(provider) as api,
    ):
        journal = Journal(api_port=urlsplit(api.base_url).port or 0)
        app = create_app(configure(provider, api, Path(folder)))
        app.register_blueprint(make_backstage(provider, journal))
        journal.watch(app)
        with _served(app) as url:
            yield Stage(url=url, provider=provider, api=api)


def configure(provider: FakeProvider, api: FakeAPI, folder: Path) -> dict[str, Any]:
    """Give the application's configuration; elsewhere it comes from the environment."""
    nightly_secret = secrets.token_urlsafe(32)
    provider.register("nightly-job", nightly_secret)
    # The issuer, a registration there, and a SECRET_KEY are in these settings already.
    return provider.settings(
        ATM_CLIENT_ID="flask-atm-demo",
        ATM_SCOPE="openid profile email greetings",
        ATM_STORE=f"sqlite:///{folder / 'grants.sqlite3'}",
        ATM_APIS={"greetings": {"base_url": api.base_url}},
        ATM_CLIENTS={
            "nightly": {
                "issuer": provider.issuer,
                "client_id": "nightly-job",
                "client_secret": nightly_secret,
                "scope": "reports",
            }
        },
        SESSION_COOKIE_SAMESITE="Lax",
        TRUSTED_HOSTS=["localhost"],
        DEMO_LIFETIME=provider.rules.expires_in,
    )


@contextmanager
def _served(app: Flask) -> Iterator[str]:
    """Serve an application from other threads; give its URL.

    It is ``localhost`` because the provider is ``127.0.0.1``: cookies do not know ports.
    """
    server: BaseWSGIServer = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://localhost:{server.port}/"
    finally:
        server.shutdown()
        thread.join()


class _Quiet(WSGIRequestHandler):
    """Leaves the terminal alone."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: codes and states are in request lines."""
