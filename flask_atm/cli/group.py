"""The group ``flask atm``, and what its errors look like."""

from typing import Any

import click
from flask.cli import AppGroup
from werkzeug.exceptions import HTTPException

from flask_atm.cli.output import line
from flask_atm.errors import ATMError, ConfigurationError

__all__ = ["Misconfigured", "Problem", "atm"]


class Misconfigured(click.ClickException):
    """A mistake in the call or in the configuration."""

    exit_code = 2


class Problem(click.ClickException):
    """What was asked for is not there, or could not be done."""

    exit_code = 1


class Group(AppGroup):
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
        return Misconfigured(line("; ".join(error.problems)))
    text = error.description if isinstance(error, HTTPException) else str(error)
    return click.ClickException(line(text or type(error).__name__))


atm = Group(
    "atm",
    help="""Look at the access token management of this application.

    No command shows who the users are, or a secret, except for token --reveal. Times are local;
    with --json they are epoch seconds. Options are not read from the environment.

    \b
    Exit codes:
      0  fine
      1  a problem: a server or the store does not answer, or answers wrongly, or not everything
         could be done
      2  a mistake in the call or in the configuration

    doctor has exit codes of its own: see doctor --help.
    """,
)
