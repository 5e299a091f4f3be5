"""``flask atm providers``, ``clients`` and ``apis``: what is configured."""

from flask_atm.cli.group import atm
from flask_atm.cli.output import json_option, note, show
from flask_atm.config.keys import APIConfig, ClientConfig
from flask_atm.state import State, current_state

__all__ = ["apis", "clients", "providers"]


@atm.command()
@json_option
def providers(as_json: bool) -> None:
    """List the providers of ATM_ISSUER and ATM_PROVIDERS."""
    state = current_state()
    default = _default(state)
    rows = [
        {
            "name": provider.name,
            "issuer_or_endpoint": provider.issuer or provider.token_endpoint,
            "client_id": provider.client_id,
            "sign_in": provider.sign_in,
            "client_auth": provider.client_auth,
            "default": provider.name == default,
        }
        for provider in state.config.providers.values()
    ]
    show(rows, as_json)
    if state.hooks.provider_loader is not None:
        note("Providers that only the provider_loader knows are not listed.")
    elif not rows:
        note("No provider is configured: set ATM_ISSUER and ATM_CLIENT_ID.")


def _default(state: State) -> str | None:
    """Give the default provider; ``None``: there is none, or a callable says so by request."""
    return None if state.hooks.default_provider else state.config.default_provider


@atm.command()
@json_option
def clients(as_json: bool) -> None:
    """List the client-credentials clients of ATM_CLIENTS."""
    state = current_state()
    rows = [
        {
            "name": client.name,
            "issuer_or_endpoint": _server(client),
            "client_id": client.client_id or None,
            # Without a registration of its own it is the provider's, which a loader knows.
            "client_auth": client.client_auth if client.client_id else None,
            "scope": " ".join(client.scope) or None,
        }
        for client in state.config.clients.values()
    ]
    show(rows, as_json)
    if state.hooks.client_loader is not None:
        note("Clients that only the client_loader knows are not listed.")
    elif not rows:
        note("No client is configured: see ATM_CLIENTS.")


def _server(client: ClientConfig) -> str:
    return client.issuer or client.token_endpoint or f"provider:{client.provider}"


@atm.command()
@json_option
def apis(as_json: bool) -> None:
    """List the APIs of ATM_APIS.

    The source is the provider or client that the tokens come from.
    """
    state = current_state()
    rows = [
        {
            "name": api.name,
            "base_url": api.base_url,
            "token": api.token,
            "source": _source(api, state),
            "scope": " ".join(api.scope or ()) or None,
        }
        for api in state.config.apis.values()
    ]
    show(rows, as_json)
    if not rows:
        note("No API is configured: see ATM_APIS.")


def _source(api: APIConfig, state: State) -> str | None:
    if api.client:
        return f"client:{api.client}"
    provider = api.provider or _default(state)
    return f"provider:{provider}" if provider else None
