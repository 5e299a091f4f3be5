"""``flask atm grants``: what the store holds."""

from collections.abc import Iterator, Sequence
from typing import Any

import click

from flask_atm.cli.group import Misconfigured, atm
from flask_atm.cli.output import json_option, note, show, show_json, show_members
from flask_atm.cli.records import (
    Reader,
    Records,
    describe,
    find_record,
    named_providers,
    reader_of,
    readers,
)
from flask_atm.grants.batches import read_many
from flask_atm.grants.control import Stored
from flask_atm.grants.stores import MemoryStore
from flask_atm.state import State, current_state

__all__ = ["grants"]


@atm.command()
@click.argument("name", metavar="[GRANT]", required=False)
@click.option("--subject", metavar="SUB", help="Only the sign-ins of this subject.")
@click.option(
    "--provider",
    "names",
    metavar="NAME",
    multiple=True,
    help="With --subject only at this provider; also one that only a loader knows.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="The most records to list.",
)
@json_option
def grants(
    name: str | None, subject: str | None, names: tuple[str, ...], limit: int, as_json: bool
) -> None:
    """List what is in the store, by the beginnings of its keys, or show one record.

    GRANT is the beginning of a key as it is listed (the grant=… of log lines, too), or a grant id.
    Whoever has a grant id acts as the user, so rather use the key where others see the terminal.

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
    if name is not None and subject is not None:
        raise Misconfigured("name a grant, or a subject, not both.")
    state = current_state()
    known = tuple(readers(state, names))
    if name is not None:
        _show_one(state, name, known, as_json)
        return
    # Known beforehand, so that a large store is shown page by page.
    longest = max((len(reader.name) for reader in known), default=0)
    widths = {"key": 8, "kind": 12, "provider": longest, "state": 10, "ends_at": 25}
    records = Records(state.store, limit)
    found = records if subject is None else _of_subject(state, subject, names, limit)
    show((describe(*record, known) for record in found), as_json, widths)
    if subject is None and records.has_more():
        note(f"There are more than these {limit}: see --limit.")
    if isinstance(state.store, MemoryStore):
        note("This store is in memory: what other processes hold cannot be seen from here.")
    if state.hooks.provider_loader is not None or state.hooks.client_loader is not None:
        note("What belongs to providers and clients that only a loader knows is listed as other.")


def _of_subject(
    state: State, subject: str, names: Sequence[str], limit: int
) -> Iterator[tuple[str, Stored]]:
    """Give the records of a subject, by the index."""
    providers = named_providers(state, names)
    # Providers with one registration have the same entries.
    entries = dict.fromkeys(e for one in providers for e in one.tokens.entries("sub", subject))
    for entry in entries:
        keys = state.store.find(entry, limit)
        limit -= len(keys)
        for key, stored in zip(keys, read_many(state.store, keys), strict=True):
            if stored is not None:
                yield key, stored
        if limit <= 0:
            note("There may be more than these: see --limit.")
            return


def _show_one(state: State, name: str, known: Sequence[Reader], as_json: bool) -> None:
    key, stored = find_record(state.store, name)
    row: dict[str, Any] = {**describe(key, stored, known), "key": key}
    row["sealed_by"] = state.ring.key_id(stored.sealed) if stored.sealed else None
    found = reader_of(key, stored, known)
    if found is not None:
        grant = found[1].grant
        row["signed_in_at"] = round(grant.signed_in_at) or None
        row["used_at"] = round(grant.used_at) or None
        row["scope"] = grant.scope
        row["resources"] = grant.resources
        row["indexed_by"] = grant.indexed_by
    if as_json:
        show_json([row])
    else:
        show_members(row)
