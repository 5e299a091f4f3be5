"""A job in Celery: what goes through the broker is a sealed ticket, not the grant id.

``python examples/jobs/celery_task.py`` shows it, with a worker in this process, beside a fake
provider and a fake API.
"""

from collections.abc import Mapping
from time import sleep
from typing import Any

from celery import Celery, Task, shared_task
from celery.result import AsyncResult
from cryptography.fernet import Fernet, InvalidToken
from flask import Flask, abort, current_app, session, url_for

from flask_atm import ATM, LoginRequired, ServerUnavailable, current_login, requires_login

atm = ATM()
invoices = atm.api("invoices")


def create_app(settings: Mapping[str, Any] | None = None) -> Flask:
    """Make the application.

    :param settings: what the environment does not say.
    """
    app = Flask(__name__)
    app.config["CELERY"] = {"broker_url": "memory://", "result_backend": "cache+memory://"}
    app.config.from_prefixed_env()
    app.config.update(settings or {})
    atm.init_app(app)
    init_celery(app)

    @app.post("/export")
    @requires_login
    def begin() -> Any:
        session["export"] = export.delay(seal(current_login.grant_id)).id
        return {"look at": url_for("look")}, 202

    @app.get("/export")
    @requires_login
    def look() -> Any:
        job = AsyncResult(session.get("export") or abort(404))
        return job.get() if job.ready() else {"state": "running"}

    return app


def init_celery(app: Flask) -> None:
    """Let every task run with an application context."""

    class FlaskTask(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery = app.extensions["celery"] = Celery(app.name, task_cls=FlaskTask)
    celery.config_from_object(app.config["CELERY"])
    celery.set_default()


@shared_task(bind=True, max_retries=None)
def export(self: Any, ticket: str) -> Any:
    """Do it for the user of a ticket, for minutes or for hours: tokens are renewed as in a view."""
    try:
        with atm.use_grant(unseal(ticket)):
            answers = [invoices.get(f"2026/{month}") for month in range(1, 13)]
    except (LoginRequired, InvalidToken):
        # Signed out, here or at the provider: no retry helps. The page says so, and begins another
        # job after the next sign-in, which has a grant id of its own.
        return {"state": "stopped: sign in to go on"}
    except ServerUnavailable as error:
        raise self.retry(countdown=error.retry_after) from None
    if any(not answer.ok for answer in answers):
        return {"state": "stopped: the API did not answer as it should"}
    return {"state": "done", "months": [answer.json() for answer in answers]}


# A grant id acts as its user for whoever can begin a task: it must not be read in the broker, a
# monitor, a log or a dump. A ticket is of no use without the key, nor after a day.


def seal(grant_id: str) -> str:
    """Make a ticket of a grant id."""
    return Fernet(current_app.config["JOBS_KEY"]).encrypt(grant_id.encode()).decode()


def unseal(ticket: str) -> str:
    """Give the grant id of a ticket.

    :raises InvalidToken: it is none of ours, or too old.
    """
    return Fernet(current_app.config["JOBS_KEY"]).decrypt(ticket, ttl=86400).decode()


# Below: only for trying it without a provider and a broker.


def main() -> None:
    """Sign in, begin a job, and look until it has ended."""
    from celery.contrib.testing.worker import start_worker

    from flask_atm.testing import FakeAPI, FakeProvider

    with FakeProvider() as provider, FakeAPI(provider) as api:
        apis = {"invoices": {"base_url": api.base_url}}
        key = Fernet.generate_key().decode()
        app = create_app(provider.settings(ATM_APIS=apis, JOBS_KEY=key))
        browser = app.test_client()
        browser.get(provider.approve(browser.get("/oidc/login").location or ""))
        with start_worker(app.extensions["celery"], pool="threads", perform_ping_check=False):
            print("begun:", browser.post("/export").get_json())
            while (export := browser.get("/export").get_json())["state"] == "running":
                sleep(0.1)
        print(export["state"], "with", len(export["months"]), "months of", api.calls[-1].sub)


if __name__ == "__main__":
    main()
