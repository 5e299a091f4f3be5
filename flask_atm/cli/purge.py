"""``flask atm purge``: removes what has ended, and revokes what is left of it."""

import click

from flask_atm.cli.group import atm
from flask_atm.cli.outbox import drain
from flask_atm.cli.output import json_option, note, show
from flask_atm.cli.records import named_providers
from flask_atm.grants.stores import MemoryStore
from flask_atm.protocols import AtomicGrantStore
from flask_atm.state import current_state

__all__ = ["purge"]


@atm.command()
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=10_000),
    default=500,
    show_default=True,
    help="Records that are removed in one step: others who write wait for so long.",
)
@click.option(
    "--provider",
    "names",
    metavar="NAME",
    multiple=True,
    help="Drain only the outbox of this provider; also one that only a loader knows.",
)
@json_option
@click.pass_context
def purge(context: click.Context, batch: int, names: tuple[str, ...], as_json: bool) -> None:
    """Remove records that have ended, and revoke what is still to be revoked.

    Nobody sees ended records; what is won is their space. Redis removes them by itself, the other
    stores remove a few at each sign-in. Run this now and then, once a day at most.

    \b
    Exit codes:
      0  fine; what is shown as to revoke has to wait for its time
      1  the store does not answer, or a provider could not be asked
    """
    state = current_state()
    if isinstance(state.store, MemoryStore):
        note("This store is in memory: what other processes hold cannot be reached from here.")
    removed = _remove(state.store, batch)
    drained = drain(state, named_providers(state, names), batch)
    row = {"removed": removed, "revoked": drained.revoked, "to_revoke": drained.waiting}
    show([row], as_json)
    if drained.failed:
        context.exit(1)


def _remove(store: AtomicGrantStore, batch: int) -> int:
    removed = 0
    while done := store.purge(batch):
        removed += done
        if done == batch:
            note(f"{removed} removed so far.")
    return removed
