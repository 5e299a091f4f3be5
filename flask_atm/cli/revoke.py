"""``flask atm revoke``: ends sign-ins, as a logout does."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import click

from flask_atm.cli.group import Misconfigured, Problem, atm
from flask_atm.cli.outbox import drain
from flask_atm.cli.output import json_option, note, show
from flask_atm.cli.records import Reader, find_record, named_providers, reader_of, readers
from flask_atm.endings import end_grants, end_subject
from flask_atm.grants.stores import MemoryStore
from flask_atm.state import Provider, State, current_state

__all__ = ["revoke"]

_BATCH: Final = 500
_MOST_OF_ONE_SUBJECT: Final = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chosen:
    """Which sign-ins are to end."""

    state: State
    providers: Sequence[Provider]
    name: str | None
    subject: str | None

    def batches(self) -> Iterator[tuple[Provider, list[str]]]:
        """Give their keys, by provider; a batch is in memory at a time."""
        if self.name is not None:
            yield self._one(self.name)
        elif self.subject is not None:
            known: set[str] = set()  # providers with one registration find the same
            for one in self.providers:
                keys = [key for key in self._of_subject(one, self.subject) if key not in known]
                known.update(keys)
                yield one, keys
        else:
            yield from self._all()

    def end(self) -> int:
        """End them; tell how many."""
        if self.subject is not None:
            return sum(end_subject(self.state, one, self.subject) for one in self.providers)
        return sum(end_grants(self.state, one, keys) for one, keys in self.batches())

    def _one(self, name: str) -> tuple[Provider, list[str]]:
        key, stored = find_record(self.state.store, name)
        found = reader_of(key, stored, self._readers())
        if found is None:
            raise Problem("this record is no sign-in, has ended already, or does not open.")
        return self.state.provider(found[0].name), [key]

    def _of_subject(self, provider: Provider, subject: str) -> list[str]:
        return [
            key
            for entry in provider.tokens.entries("sub", subject)
            for key in self.state.store.find(entry, _MOST_OF_ONE_SUBJECT)
        ]

    def _all(self) -> Iterator[tuple[Provider, list[str]]]:
        known, after = self._readers(), ""
        while page := self.state.store.scan(after, _BATCH):
            after = page[-1][0]
            keys: dict[str, list[str]] = {}
            for key, stored in page:
                found = reader_of(key, stored, known)
                if found is not None and found[0].is_present(found[1]):
                    keys.setdefault(found[0].name, []).append(key)
            yield from ((self.state.provider(name), some) for name, some in keys.items())

    def _readers(self) -> list[Reader]:
        names = [provider.name for provider in self.providers]
        every = readers(self.state, names)
        return [one for one in every if one.kind == "grant" and one.name in names]


@atm.command()
@click.argument("name", metavar="[GRANT]", required=False)
@click.option("--subject", metavar="SUB", help="All sign-ins of this subject.")
@click.option("--all", "everybody", is_flag=True, help="All sign-ins of everybody.")
@click.option(
    "--provider",
    "names",
    metavar="NAME",
    multiple=True,
    help="Only at this provider; also one that only a loader knows. May be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Only tell how many sign-ins would end.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def revoke(
    name: str | None,
    subject: str | None,
    everybody: bool,
    names: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """End sign-ins at once, and revoke their refresh tokens.

    GRANT is the beginning of a key as flask atm grants lists it (the grant=… of log lines, too), or
    a grant id. The users are signed out with their next request, in every process. Connected
    accounts end like sign-ins. What cannot be revoked at the provider now stays in the outbox, from
    where the next logout or flask atm purge revokes it.
    """
    if (name is not None) + (subject is not None) + everybody != 1:
        raise Misconfigured("name one grant, or give --subject, or --all.")
    state = current_state()
    providers = named_providers(state, names)
    chosen = _Chosen(state=state, providers=providers, name=name, subject=subject)
    if isinstance(state.store, MemoryStore):
        note("This store is in memory: what other processes hold cannot be reached from here.")
    if dry_run or not yes:
        count = sum(len(keys) for _, keys in chosen.batches())
        if dry_run:
            show([{"would_end": count}], as_json)
            return
        _ask(count)
    ended = chosen.end()
    drained = drain(state, providers, _BATCH)
    row = {"ended": ended, "revoked": drained.revoked, "to_revoke": drained.waiting}
    show([row], as_json)
    if drained.waiting:
        note("What is still to be revoked stays in the outbox: see flask atm purge.")


def _ask(count: int) -> None:
    if not sys.stdin.isatty():
        raise Misconfigured("this ends sign-ins: give --yes, or run it in a terminal to be asked.")
    click.confirm(f"End {count} sign-ins?", abort=True, err=True)
