"""``flask atm``: what is configured, what a server says of itself, what the store holds.

Nothing here shows a secret, but the token that ``--reveal`` puts on a terminal, and nothing shows
who the users are.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import click
from flask.cli import AppGroup
from werkzeug.exceptions import HTTPException

from flask_atm.config.keys import APIConfig, ClientConfig
from flask_atm.errors import ATMError, ConfigurationError
from flask_atm.grants.client_tokens import ClientTokens
from flask_atm.grants.control import Stored, in_doubt, lease_left, pause_left
from flask_atm.grants.record import Snapshot
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.user_tokens import UserTokens
from flask_atm.grants.vault import Vault
from flask_atm.oauth.metadata import ENDPOINTS
from flask_atm.protocols import AtomicGrantStore
from flask_atm.state import State, current_state
from flask_atm.tokens import TokenParameters, fingerprint

__all__ = ["atm"]

_PAGE: Final = 100
#: In the last days of the year 9999: no record ends then, and no calendar goes further.
_NEVER: Final = 253_402_000_000

Row = Mapping[str, Any]


class _Misconfigured(click.ClickException):
    exit_code = 2


class _Group(AppGroup):
    """Commands whose errors are one line, and whose options come from the command line only."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Flask's prefix would take options from FLASK_ATM_…, where the settings are.
        ctx.auto_envvar_prefix = None
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ATMError as error:
            problem = _problem(error)
        raise problem


def _problem(error: ATMError) -> click.ClickException:
    if isinstance(error, ConfigurationError):
        return _Misconfigured(_line("; ".join(error.problems)))
    text = error.description if isinstance(error, HTTPException) else str(error)
    return click.ClickException(_line(text or type(error).__name__))


atm = _Group(
    "atm",
    help="""Look at the access token management of this application.

    No command shows who the users are, or a secret, except for token --reveal. Times are local;
    with --json they are epoch seconds. Options are not read from the environment.

    \b
    Exit codes:
      0  fine
      1  a problem: a server or the store does not answer, or answers wrongly
      2  a mistake in the call or in the configuration
    """,
)

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document, a list of objects."
)


# -- what is configured


@atm.command()
@_json_option
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
    _show(rows, as_json)
    if state.hooks.provider_loader is not None:
        _note("Providers that only the provider_loader knows are not listed.")
    elif not rows:
        _note("No provider is configured: set ATM_ISSUER and ATM_CLIENT_ID.")


def _default(state: State) -> str | None:
    """Give the default provider; ``None``: there is none, or a callable says so by request."""
    return None if state.hooks.default_provider else state.config.default_provider


@atm.command()
@_json_option
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
    _show(rows, as_json)
    if state.hooks.client_loader is not None:
        _note("Clients that only the client_loader knows are not listed.")
    elif not rows:
        _note("No client is configured: see ATM_CLIENTS.")


def _server(client: ClientConfig) -> str:
    return client.issuer or client.token_endpoint or f"provider:{client.provider}"


@atm.command()
@_json_option
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
    _show(rows, as_json)
    if not rows:
        _note("No API is configured: see ATM_APIS.")


def _source(api: APIConfig, state: State) -> str | None:
    if api.client:
        return f"client:{api.client}"
    provider = api.provider or _default(state)
    return f"provider:{provider}" if provider else None


# -- what servers say


_LABELS: Final = {
    "code_challenge_methods_supported": "PKCE",
    "scopes_supported": "scopes",
    "token_endpoint_auth_methods_supported": "client auth",
    "id_token_signing_alg_values_supported": "ID token algorithms",
    "authorization_response_iss_parameter_supported": "iss in callbacks",
}


@atm.command()
@click.argument("provider", required=False)
@_json_option
def metadata(provider: str | None, as_json: bool) -> None:
    """Fetch the metadata of a provider.

    PROVIDER is a name in ATM_PROVIDERS; left out, it is the default one.
    """
    state = current_state()
    if provider is None and state.hooks.default_provider is not None:
        raise _Misconfigured("The default provider is another one for each request: name one.")
    location = state.provider(provider).location
    found = state.metadata.get(location)
    names = ("issuer", *ENDPOINTS, *_LABELS)
    row = {
        "provider": location.name,
        **{name: getattr(found, name) for name in names},
        "age": state.metadata.age(location),
    }
    if as_json:
        _show_json([row])
        return
    members = [
        {"member": _LABELS.get(name, name), "value": _cell(name, value)}
        for name, value in row.items()
    ]
    _show_table(members)


@atm.command()
@click.argument("client")
@click.option("--reveal", is_flag=True, help="Print the token itself; on a terminal only.")
@_json_option
def token(client: str, reveal: bool, as_json: bool) -> None:
    """Get an access token of a client.

    CLIENT is a name in ATM_CLIENTS. The token comes from the store or the server, as the
    application gets it; shown is what is known about it.
    """
    if reveal and not sys.stdout.isatty():
        raise _Misconfigured(
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
        _show_json([{**row, "token": found.value} if reveal else row])
        return
    _show_table([row])
    if reveal:
        click.echo(_line(found.value))


# -- what the store holds


@atm.command()
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="The most records to list.",
)
@_json_option
def grants(limit: int, as_json: bool) -> None:
    """List what is in the store, by the beginnings of its keys.

    \b
    Kinds of records:
      grant         a sign-in, or a connected account
      client token  a token of this application itself
      to revoke     a sign-in that has ended, whose refresh token is still to be revoked
      other         marks of our own, and what no present key and no known provider opens

    \b
    States:
      ok          usable
      refreshing  being refreshed now
      in doubt    a refresh was begun, and nobody knows its end
      dead        the provider refused its refresh token
      ended       signed out, or of an issuer or client id that is not configured any more
    """
    state = current_state()
    readers = tuple(_readers(state))
    # Known beforehand, so that a large store is shown page by page.
    longest = max((len(reader.name) for reader in readers), default=0)
    widths = {"key": 8, "kind": 12, "provider": longest, "state": 10, "ends_at": 25}
    records = _Records(state.store, limit)
    _show((_describe(*record, readers) for record in records), as_json, widths)
    if records.has_more():
        _note(f"There are more than these {limit}: see --limit.")
    if isinstance(state.store, MemoryStore):
        _note("This store is in memory: what other processes hold cannot be seen from here.")
    if state.hooks.provider_loader is not None or state.hooks.client_loader is not None:
        _note("What belongs to providers and clients that only a loader knows is listed as other.")


class _Records:
    """The first records of a store, read in pages."""

    def __init__(self, store: AtomicGrantStore, limit: int) -> None:
        self._store = store
        self._left = limit
        self._last = ""

    def __iter__(self) -> Iterator[tuple[str, Stored]]:
        while self._left and (page := self._store.scan(self._last, min(self._left, _PAGE))):
            yield from page
            self._left -= len(page)
            self._last = page[-1][0]

    def has_more(self) -> bool:
        """Tell whether there are records after those that were read."""
        return bool(self._store.scan(self._last, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """Recognises the records of one provider or client."""

    kind: str
    name: str
    vault: Vault
    issuer: str
    client_id: str

    @classmethod
    def of(cls, kind: str, source: UserTokens | ClientTokens) -> "_Reader":
        return cls(
            kind=kind,
            name=source.name,
            vault=source.engine.vault,
            issuer=source.issuer,
            client_id=source.client_id,
        )

    def is_present(self, snapshot: Snapshot) -> bool:
        """Tell whether a grant is of the issuer and client id that are configured now."""
        grant = snapshot.grant
        return (grant.issuer, grant.client_id) == (self.issuer, self.client_id)


def _readers(state: State) -> Iterator[_Reader]:
    for name in state.config.providers:
        provider = state.provider(name)
        yield _Reader.of("grant", provider.tokens)
        yield _Reader.of("client token", provider.client_tokens)
    for name in state.config.clients:
        yield _Reader.of("client token", state.client(name))


def _describe(key: str, stored: Stored, readers: Sequence[_Reader]) -> Row:
    control = stored.control
    row = {
        "key": key[:8],
        "kind": "other",
        "provider": None,
        "state": None,
        "version": control.version,
        "failures": control.failures,
        "retry_pause": round(pause_left(control, stored.now), 1) or None,
        "ends_at": round(control.ends_at),
        "slots": None,
        "refreshable": None,
    }
    if control.tombstone:
        kind = "to revoke" if stored.sealed else "grant"
        return {**row, "kind": kind, "state": "ended"}
    for reader in readers if stored.sealed else ():
        snapshot = reader.vault.recognise(key, stored)
        if snapshot is not None:
            return {
                **row,
                "kind": reader.kind,
                "provider": reader.name,
                "state": _state(snapshot) if reader.is_present(snapshot) else "ended",
                "slots": len(snapshot.grant.slots),
                "refreshable": snapshot.grant.refresh_token is not None,
            }
    return row


def _state(snapshot: Snapshot) -> str:
    if snapshot.is_dead:
        return "dead"
    if lease_left(snapshot.control, snapshot.now):
        return "refreshing"
    return "in doubt" if in_doubt(snapshot.control, snapshot.now) else "ok"


# -- output


def _show(rows: Iterable[Row], as_json: bool, widths: Mapping[str, int] | None = None) -> None:
    if as_json:
        _show_json(rows)
    else:
        _show_table(rows, widths)


def _show_json(rows: Iterable[Row]) -> None:
    """Print one document, an object at a time."""
    before = "["
    for row in rows:
        click.echo(f"{before}\n  {json.dumps(row)}", nl=False)
        before = ","
    click.echo("[]" if before == "[" else "\n]")


def _show_table(rows: Iterable[Row], widths: Mapping[str, int] | None = None) -> None:
    """Print columns as ``flask routes`` does; nothing where there are no rows.

    :param widths: the longest cells by column, so that rows are printed as they come; ``None``:
        find out. A column that is not there is as wide as its header.
    """
    if widths is None:
        rows = list(rows)
        widths = {name: max(len(_cell(name, row[name])) for row in rows) for name in _names(rows)}
    wide: list[int] = []
    for row in rows:
        if not wide:
            headers = [_header(name) for name in row]
            wide = [max(len(_header(name)), widths.get(name, 0)) for name in row]
            _echo(headers, wide)
            _echo(["-" * width for width in wide], wide)
        _echo([_cell(name, value) for name, value in row.items()], wide)


def _names(rows: Sequence[Row]) -> Iterable[str]:
    return rows[0] if rows else ()


def _header(name: str) -> str:
    text = name.replace("_", " ").capitalize()
    return _HEADERS.get(name, text)


def _echo(cells: Iterable[str], widths: Iterable[int]) -> None:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    click.echo("  ".join(padded).rstrip())


def _cell(name: str, value: Any) -> str:
    if value is None or value == ():
        return "-"
    if name in _CELLS:
        return _CELLS[name](value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _line(" ".join(value) if isinstance(value, tuple) else str(value))


def _instant(seconds: float) -> str:
    if seconds >= _NEVER:
        return "never"
    return datetime.fromtimestamp(round(seconds)).astimezone().isoformat(timespec="seconds")


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s"


_HEADERS: Final = {"base_url": "Base URL", "client_id": "Client ID", "sign_in": "Sign-in"}
_CELLS: Final[Mapping[str, Callable[[float], str]]] = {
    "age": _seconds,
    "ends_at": _instant,
    "expires_at": _instant,
    "retry_pause": _seconds,
}


def _line(text: str) -> str:
    """Make one line of a text that may come from a server: nothing in it moves the cursor."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for char in " ".join(text.split())
    )


def _note(text: str) -> None:
    click.echo(text, err=True)
