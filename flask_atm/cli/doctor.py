"""``flask atm doctor``: looks whether everything is as it has to be."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

from flask_atm.cli.group import atm
from flask_atm.cli.output import json_option, line, show_json
from flask_atm.doctor.finding import Finding
from flask_atm.doctor.provider import check_provider
from flask_atm.doctor.ring import check_ring
from flask_atm.doctor.store import check_store
from flask_atm.doctor.web import check_web
from flask_atm.state import State, current_state

__all__ = ["doctor"]


@atm.command()
@click.option("--offline", is_flag=True, help="Ask no provider.")
@click.option(
    "--provider",
    "names",
    metavar="NAME",
    multiple=True,
    help="Also a provider that only a loader knows. May be given several times.",
)
@json_option
@click.pass_context
def doctor(context: click.Context, offline: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Look whether everything is as it has to be; no secret is shown.

    Run it where the application runs, with the same environment and as the same user: a line per
    check, and under it what to do. The race for the store makes a record of its own and removes it.

    \b
    Checks:
      store, atomic, pair, workers, eviction, file system, disk, permissions
      keys, records         the key ring, and whether it opens what the store has
      provider, PKCE, JWKS  what each provider says of itself
      clock                 its clock and this one
      cookie, own URL       the session cookie, proxies

    \b
    Exit codes:
      0  all is well
      1  there are warnings
      2  something failed, or the call or the configuration is wrong
    """
    results: set[str] = set()
    findings = _seen(_findings(current_state(), offline, names), results)
    if as_json:
        show_json(asdict(finding) for finding in findings)
    else:
        for finding in findings:
            click.echo(f"{finding.result:<7}  " + line(f"{finding.check}: {finding.text}"))
            if finding.cure:
                click.echo(f"         -> {line(finding.cure)}")
    context.exit(2 if "failed" in results else 1 if "warning" in results else 0)


def _findings(state: State, offline: bool, names: Sequence[str]) -> Iterator[Finding]:
    every = tuple(dict.fromkeys((*state.config.providers, *names)))
    # The store first: it is asked by processes that are forked, before there are threads.
    yield from check_store(state)
    yield from check_ring(state, every)
    yield from check_web(state)
    for name in () if offline else every:
        yield from check_provider(state, name)


def _seen(findings: Iterator[Finding], results: set[str]) -> Iterator[Finding]:
    for finding in findings:
        results.add(finding.result)
        yield finding
