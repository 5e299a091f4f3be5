"""``flask atm ddl``: the tables of an SQL store."""

import click

from flask_atm.cli.group import Misconfigured, atm
from flask_atm.cli.output import json_option, show_json
from flask_atm.grants.stores import SQLStore
from flask_atm.grants.stores.sql import ddl as statements_of
from flask_atm.state import State, current_state

__all__ = ["ddl"]


@atm.command()
@click.option(
    "--dialect",
    type=click.Choice(["postgresql", "mysql", "mariadb", "sqlite"]),
    help="The database to write for; left out, that of ATM_STORE.",
)
@json_option
def ddl(dialect: str | None, as_json: bool) -> None:
    """Print the statements that make the tables of an SQL store.

    Only needed where the user of the database may not make them. Their names begin with
    ATM_STORE_PREFIX.
    """
    table, spoken = _table_and_dialect(current_state(), dialect)
    statements = statements_of(table, spoken)
    if as_json:
        show_json({"statement": statement} for statement in statements)
        return
    for statement in statements:
        click.echo("\n".join(line.rstrip() for line in statement.splitlines()) + ";\n")


def _table_and_dialect(state: State, dialect: str | None) -> tuple[str, str]:
    if isinstance(state.store, SQLStore):
        return state.store.table, dialect or state.store.dialect
    if dialect is None:
        raise Misconfigured("ATM_STORE is no SQL database: name one with --dialect.")
    return f"{state.config.store_prefix}_grants", dialect
