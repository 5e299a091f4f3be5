"""``flask atm metadata`` and ``token``: what servers say and give."""

import sys
from typing import Final

import click

from flask_atm.cli.group import Misconfigured, atm
from flask_atm.cli.output import json_option, line, show_json, show_members, show_table
from flask_atm.oauth.metadata import ENDPOINTS
from flask_atm.state import current_state
from flask_atm.tokens import TokenParameters, fingerprint

__all__ = ["metadata", "token"]

_LABELS: Final = {
    "code_challenge_methods_supported": "PKCE",
    "scopes_supported": "scopes",
    "token_endpoint_auth_methods_supported": "client auth",
    "id_token_signing_alg_values_supported": "ID token algorithms",
    "authorization_response_iss_parameter_supported": "iss in callbacks",
}


@atm.command()
@click.argument("provider", required=False)
@json_option
def metadata(provider: str | None, as_json: bool) -> None:
    """Fetch the metadata of a provider.

    PROVIDER is a name in ATM_PROVIDERS; left out, it is the default one.
    """
    state = current_state()
    if provider is None and state.hooks.default_provider is not None:
        raise Misconfigured("The default provider is another one for each request: name one.")
    location = state.provider(provider).location
    found = state.metadata.get(location)
    names = ("issuer", *ENDPOINTS, *_LABELS)
    row = {
        "provider": location.name,
        **{name: getattr(found, name) for name in names},
        "age": state.metadata.age(location),
    }
    if as_json:
        show_json([row])
        return
    show_members(row, _LABELS)


@atm.command()
@click.argument("client")
@click.option("--reveal", is_flag=True, help="Print the token itself; on a terminal only.")
@json_option
def token(client: str, reveal: bool, as_json: bool) -> None:
    """Get an access token of a client.

    CLIENT is a name in ATM_CLIENTS. The token comes from the store or the server, as the
    application gets it; shown is what is known about it.
    """
    if reveal and not sys.stdout.isatty():
        raise Misconfigured(
            "--reveal prints a secret, so standard output has to be a terminal; it is none."
        )
    found = current_state().client(client).get(TokenParameters())
    row = {
        "client": client,
        "type": found.token_type,
        "scope": found.scope,
        "expires_at": round(found.expires_at),
        "fingerprint": fingerprint(found.value),
    }
    if as_json:
        show_json([{**row, "token": found.value} if reveal else row])
        return
    show_table([row])
    if reveal:
        click.echo(line(found.value))
