"""What commands print: columns as ``flask routes`` has them, or one JSON document."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click

from flask_atm.tokens import FrozenDict

__all__ = [
    "Row",
    "cell",
    "json_option",
    "line",
    "note",
    "show",
    "show_json",
    "show_members",
    "show_table",
]

#: In the last days of the year 9999: no record ends then, and no calendar goes further.
_NEVER: Final = 253_402_000_000

_NO_LABELS: Final = FrozenDict()

Row = Mapping[str, Any]

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document, a list of objects."
)


def show(rows: Iterable[Row], as_json: bool, widths: Mapping[str, int] | None = None) -> None:
    """Print objects as a document, or as a table."""
    if as_json:
        show_json(rows)
    else:
        show_table(rows, widths)


def show_json(rows: Iterable[Row]) -> None:
    """Print one document, an object at a time."""
    before = "["
    for row in rows:
        click.echo(f"{before}\n  {json.dumps(row)}", nl=False)
        before = ","
    click.echo("[]" if before == "[" else "\n]")


def show_table(rows: Iterable[Row], widths: Mapping[str, int] | None = None) -> None:
    """Print columns as ``flask routes`` does; nothing where there are no rows.

    :param widths: the longest cells by column, so that rows are printed as they come; ``None``:
        find out. A column that is not there is as wide as its header.
    """
    if widths is None:
        rows = list(rows)
        widths = {name: max(len(cell(name, row[name])) for row in rows) for name in _names(rows)}
    wide: list[int] = []
    for row in rows:
        if not wide:
            headers = [_header(name) for name in row]
            wide = [max(len(_header(name)), widths.get(name, 0)) for name in row]
            _echo(headers, wide)
            _echo(["-" * width for width in wide], wide)
        _echo([cell(name, value) for name, value in row.items()], wide)


def show_members(row: Row, labels: Mapping[str, str] = _NO_LABELS) -> None:
    """Print the members of one object below each other."""
    show_table([{"member": labels.get(name, name), "value": cell(name, row[name])} for name in row])


def _names(rows: Sequence[Row]) -> Iterable[str]:
    return rows[0] if rows else ()


def _header(name: str) -> str:
    text = name.replace("_", " ").capitalize()
    return _HEADERS.get(name, text)


def _echo(cells: Iterable[str], widths: Iterable[int]) -> None:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    click.echo("  ".join(padded).rstrip())


def cell(name: str, value: Any) -> str:
    """Give what stands in a table for a value."""
    if value is None or value == ():
        return "-"
    if name in _CELLS:
        return _CELLS[name](value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return line(" ".join(value) if isinstance(value, tuple) else str(value))


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
    "signed_in_at": _instant,
    "used_at": _instant,
}


def line(text: str) -> str:
    """Make one line of a text that may come from a server: nothing in it moves the cursor."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for char in " ".join(text.split())
    )


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)
