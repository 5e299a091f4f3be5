"""What databases answer when they do not do what was asked: what it means, and what cures it."""

import re
from typing import Final

from sqlalchemy.exc import DBAPIError

__all__ = ["cure_for", "described", "is_race", "may_pass", "misses_table"]

_NO_TABLE: Final = re.compile(r"\b(42P01|1146):|no such table")
#: Two processes that made the same table at the same moment, in the words of PostgreSQL.
_RACE: Final = re.compile(r"\b(23505|42P07|42710):")
#: Passing by nature, but of a class of errors that is not: read-only while another one takes over.
_PASSING: Final = re.compile(r"\b(25006|40001|40P01):")
_CURES: Final = (
    (
        r"42501|1142|1044|permission denied|attempt to write a readonly",
        "its user lacks a right: it reads, inserts, updates and deletes in {table} and"
        " {table}_index; where it may not create tables, make them with `flask atm ddl`",
    ),
    (
        r"28P01|28000|1045|password|authentication",
        "user or password are wrong, or missing in the URL (special characters as %xx)",
    ),
    (
        r"53300|1040|1203|too many|remaining connection slots|QueuePool",
        "there are too many connections: raise its limit, or lower pool_size of SQLStore",
    ),
    (r"25006|1290|1836|read.only", "this server is a replica: name the primary"),
    (r"3D000|1049|does not exist|unknown database", "create the database that the URL names"),
    (
        r"database is locked|database table is locked",
        "somebody keeps the file locked for long; it has to be on a local disk",
    ),
    (
        r"unable to open|readonly database|not a database",
        "the URL has to name a file on a local disk, in a folder that this process may write to",
    ),
    (
        r"40001|40P01|1213|1205|57014|1969|3024|deadlock|could not serialize",
        "somebody else keeps rows of {table} locked: only flask-atm writes there",
    ),
    (
        r"no answer within|2013: .*timed out",
        "it is too slow, or out of reach, or somebody else keeps rows of {table} locked",
    ),
    (
        r"certificate|SSL",
        "the way to it has to be encrypted with a certificate that this host trusts",
    ),
    (r"", "is it running, and reachable from this host, where the URL says?"),
)


def described(error: BaseException) -> str:
    """Name an error of a driver with its code and the first line of its text."""
    orig = getattr(error, "orig", None) or error
    code = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
    if orig.args and isinstance(orig.args[0], int):
        code = orig.args[0]  # MySQL's own numbers say more
    text = str(orig.args[-1] if orig.args else orig).strip().partition("\n")[0]
    return f"{type(orig).__name__}{f' {code}' if code else ''}: {text[:200]}"


def cure_for(description: str, table: str) -> str:
    """Give what helps against an error, as :func:`described` describes it."""
    cure = next(cure for pattern, cure in _CURES if re.search(pattern, description, re.IGNORECASE))
    return cure.format(table=table)


def misses_table(error: DBAPIError) -> bool:
    """Tell whether there is no such table yet."""
    return bool(_NO_TABLE.search(described(error)))


def is_race(error: DBAPIError) -> bool:
    """Tell whether somebody else made the same table at the same moment."""
    return bool(_RACE.search(described(error)))


def may_pass(error: BaseException) -> bool:
    """Tell whether another connection, a moment later, may do better."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return True
    kinds = {kind.__name__ for kind in type(error.orig).__mro__}
    passing = kinds & {"OperationalError", "InterfaceError"}
    return bool(passing) or bool(_PASSING.search(described(error)))
