"""A record as a row of a table: whole milliseconds, no time zone, no fractions to round."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from flask_atm.grants.control import Control, Stored

__all__ = ["COLUMNS", "FLAGS", "TEXTS", "TIMES", "from_row", "to_milliseconds", "to_row"]

#: The columns of a control, in the order of its fields.
COLUMNS: Final = tuple(field.name for field in fields(Control))
TIMES: Final = frozenset({"lease_until", "lease", "retry_at", "ends_at"})
FLAGS: Final = frozenset({"doubt", "tombstone"})
TEXTS: Final = frozenset({"lease_owner", "intent", "suspect", "dead", "commit_id"})


def to_milliseconds(seconds: float) -> int:
    """Give an instant or a length of time as it is stored."""
    return round(seconds * 1000)


def to_row(control: Control, prefix: str = "") -> dict[str, Any]:
    """Give the columns of a control, each named with a prefix."""
    return {prefix + name: _to_column(name, getattr(control, name)) for name in COLUMNS}


def _to_column(name: str, value: Any) -> Any:
    if name in TIMES:
        return to_milliseconds(value)
    return int(value) if name in FLAGS else value


def from_row(row: Mapping[str, Any]) -> Stored:
    """Read a row: the columns of a control, ``sealed``, and the clock of the store in ``now``."""
    values = {name: row[name] for name in COLUMNS}
    values |= {name: values[name] / 1000 for name in TIMES}
    values |= {name: bool(values[name]) for name in FLAGS}
    return Stored(control=Control(**values), sealed=bytes(row["sealed"]), now=row["now"] / 1000)
