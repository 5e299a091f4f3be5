"""``flask atm keys``: the key ring, and the change of its first key."""

from dataclasses import asdict

import click
from flask.cli import with_appcontext

from flask_atm.cli.group import Group, atm
from flask_atm.cli.output import json_option, note, show
from flask_atm.cli.records import named_providers, readers
from flask_atm.grants.key_use import key_use
from flask_atm.grants.rotation import Progress, Rotation
from flask_atm.grants.stores import MemoryStore
from flask_atm.state import State, current_state

__all__ = ["keys", "rotate"]

_provider_option = click.option(
    "--provider",
    "names",
    metavar="NAME",
    multiple=True,
    help="Also a provider that only a loader knows. May be given several times.",
)


@atm.group(cls=Group, invoke_without_command=True)
@_provider_option
@json_option
@click.pass_context
@with_appcontext
def keys(context: click.Context, names: tuple[str, ...], as_json: bool) -> None:
    """Show which key of the ring is needed by how many records, without showing a key.

    A key is named by 8 digits that are made from it, and of no use to make it. All records of the
    store are read, page by page.

    \b
    Roles:
      seals    the first key: it seals what is written
      opens    another key of the ring
      missing  not in the ring: put it back, or let these users sign in again

    \b
    Columns:
      grants      sign-ins and connected accounts that it sealed
      indexed     those that are found by it, by user or by session at the provider
      to revoke   ended sign-ins with tokens that are still to be revoked
      passing     records of some minutes, and client tokens: nothing has to be done for them
      unreadable  does not open: for want of the key, or of the provider, or because it was changed

    A key with 0 grants, 0 indexed and 0 to revoke can be dropped: see keys rotate.
    """
    if context.invoked_subcommand is not None:
        return
    state = current_state()
    known = tuple(readers(state, names))
    found = key_use(
        state.store,
        state.ring,
        [one.vault for one in known if one.kind == "grant"],
        [one.vault for one in known if one.kind == "client token"],
    )
    show([asdict(one) for one in found], as_json)
    _notes(state)


@keys.command()
@_provider_option
@click.option(
    "--after", metavar="KEY", default="", help="Begin after this key, as the last progress said."
)
@json_option
@click.pass_context
def rotate(context: click.Context, names: tuple[str, ...], after: str, as_json: bool) -> None:
    """Seal with the first key what other keys of the ring sealed.

    Put the new key in front of the ring, and restart all processes, before. It can be stopped at
    any time and run again: it goes on where something is left. Sign-ins go on meanwhile.

    \b
    Columns:
      sealed anew  grants
      outbox       ended sign-ins with tokens that are still to be revoked
      current      nothing to be done
      busy         being refreshed, or in doubt: left for the next run
      unreadable   no key opens it, or no provider that was named

    \b
    Exit codes:
      0  the other keys can be dropped, unless --after left something out
      1  something is left: run it again after a while; or a server or the store does not answer
    """
    state = current_state()
    every = (*state.config.providers, *names)
    rotation = Rotation(
        store=state.store,
        ring=state.ring,
        tokens=[one.tokens for one in named_providers(state, tuple(dict.fromkeys(every)))],
        passing=[one.vault for one in readers(state, names) if one.kind == "client token"],
    )
    progress = Progress()
    for progress in rotation.run(after):
        _tell(progress)
    row = {name: value for name, value in asdict(progress).items() if name != "after"}
    show([row], as_json)
    _notes(state)
    if progress.left:
        note(_left(progress))
        context.exit(1)
    if after:
        note("What comes before was not looked at: run it without --after before you drop a key.")


def _tell(progress: Progress) -> None:
    looked_at = progress.sealed_anew + progress.current + progress.left
    if looked_at and looked_at % 1000 == 0:
        note(f"{looked_at} looked at so far, the last one was {progress.after}")


def _left(progress: Progress) -> str:
    text = f"{progress.left} are left: keep the other keys in the ring."
    if progress.busy:
        text += " Those that are busy can be sealed anew once they were refreshed."
    if progress.unreadable:
        text += " See flask atm keys for those that are unreadable."
    return text


def _notes(state: State) -> None:
    if isinstance(state.store, MemoryStore):
        note("This store is in memory: what other processes hold cannot be seen from here.")
    if state.hooks.provider_loader is not None:
        note("Of providers that only the provider_loader knows, those named by --provider count.")
