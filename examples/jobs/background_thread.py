"""A job in a thread: the browser goes on while an export is made.

``python examples/jobs/background_thread.py`` shows it, beside a fake provider and a fake API.
"""

import secrets
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from time import sleep
from typing import Any

from flask import Flask, abort, session, url_for
from requests import HTTPError

from flask_atm import ATM, LoginRequired, ServerUnavailable, current_login, requires_login

atm = ATM()
invoices = atm.api("invoices")


def create_app(settings: Mapping[str, Any] | None = None) -> Flask:
    """Make the application.

    :param settings: what the environment does not say.
    """
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.update(settings or {})
    atm.init_app(app)
    pool = ThreadPoolExecutor(4)
    exports: dict[str, tuple[list[Any], Future[str]]] = {}

    @app.post("/export")
    @requires_login
    def begin() -> Any:
        months: list[Any] = []
        # Whom the job is for is known here. A thread has no request, and so no user.
        job = pool.submit(work, app, current_login.grant_id, months)
        name = session["export"] = secrets.token_urlsafe(16)
        exports[name] = months, job
        return {"look at": url_for("look")}, 202

    @app.get("/export")
    @requires_login
    def look() -> Any:
        months, job = exports.get(session.get("export", "")) or abort(404)
        return {"state": job.result() if job.done() else "running", "months": months}

    return app


def work(app: Flask, grant_id: str, months: list[Any]) -> str:
    """Do it, for minutes or for hours: tokens are renewed as in a view. Give how it ended."""
    try:
        with app.app_context(), atm.use_grant(grant_id):
            for month in range(1, 13):
                answer = invoices.get(f"2026/{month}")
                answer.raise_for_status()
                months.append(answer.json())
    except LoginRequired:
        # Signed out, here or at the provider. What is there stays. The page says so, and begins
        # another job after the next sign-in, which has a grant id of its own.
        return "stopped: sign in to go on"
    except ServerUnavailable as error:
        return f"stopped: try again in {error.retry_after} seconds"
    except HTTPError as error:
        return f"stopped: the API answered {error.response.status_code}"
    return "done"


# Below: only for trying it without a provider.


def main() -> None:
    """Sign in, begin a job, and look until it has ended."""
    from flask_atm.testing import FakeAPI, FakeProvider

    with FakeProvider() as provider, FakeAPI(provider) as api:
        apis = {"invoices": {"base_url": api.base_url}}
        browser = create_app(provider.settings(ATM_APIS=apis)).test_client()
        browser.get(provider.approve(browser.get("/oidc/login").location or ""))
        print("begun:", browser.post("/export").get_json())
        while (export := browser.get("/export").get_json())["state"] == "running":
            sleep(0.1)
        print(export["state"], "with", len(export["months"]), "months of", api.calls[-1].sub)


if __name__ == "__main__":
    main()
