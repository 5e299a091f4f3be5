"""A signed-in page and an API call, in one file.

Without a provider of your own: ``python examples/quickstart.py`` starts a fake provider and a fake
API beside the application.

With one: set FLASK_SECRET_KEY, FLASK_ATM_ISSUER, FLASK_ATM_CLIENT_ID, FLASK_ATM_CLIENT_SECRET and
FLASK_ATM_APIS, and run ``flask --app examples/quickstart.py run``.
"""

from collections.abc import Mapping
from typing import Any

from flask import Flask, render_template_string

from flask_atm import ATM, requires_token

PAGE = """
{% if current_login %}
  <p>Hello {{ current_login.claims.name }}!</p>
  <p><a href="{{ url_for('latest') }}">Your invoices</a></p>
  <form method="post" action="{{ url_for('atm.logout') }}"><button>Sign out</button></form>
{% else %}
  <p>Hello stranger!</p>
  <p><a href="{{ url_for('atm.login') }}">Sign in</a></p>
{% endif %}
"""

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

    @app.get("/")
    def index() -> str:
        return render_template_string(PAGE)

    @app.get("/invoices")
    @requires_token
    def latest() -> Any:
        return invoices.get("latest").json()

    return app


# Below: only for trying it without a provider.


def main() -> None:
    """Run the application beside a provider that signs in whoever comes, until Ctrl-C."""
    from flask_atm.testing import FakeAPI, FakeProvider

    with FakeProvider(auto_approve=False) as provider, FakeAPI(provider) as api:
        apis = {"invoices": {"base_url": api.base_url}}
        create_app(provider.settings(ATM_APIS=apis)).run(port=5000)


if __name__ == "__main__":
    main()
