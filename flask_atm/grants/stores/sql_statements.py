"""The tables of the SQL store, and every statement that it ever sends.

Instants are whole milliseconds since 1970 by the clock of the database, read inside the statement:
no time zone, no daylight saving time, no clock of this host.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    TableValuedAlias,
    UniqueConstraint,
    and_,
    any_,
    bindparam,
    case,
    column,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.types import TypeEngine

from flask_atm.grants.control import Control, bury
from flask_atm.grants.stores.rows import COLUMNS, FLAGS, TEXTS, TIMES, to_row

__all__ = ["CLOCKS", "Command", "Statements"]

#: A statement and its parameters; ``None``: it has them in itself.
Command: TypeAlias = tuple[Insert | Update, Mapping[str, Any] | None]

#: The present in milliseconds. Not ``NOW()``: in a transaction PostgreSQL's stands still, and
#: MySQL's is local time, which has an hour twice a year that means two.
CLOCKS: Final[dict[str, str]] = {
    "mariadb": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000",
    "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
    "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
}

#: What is the same in all tombstones.
_BURIED: Final = {
    name: value
    for name, value in to_row(bury(Control(ends_at=0.0))).items()
    if name not in ("version", "ends_at")
}

#: What arrays hold. No lengths: PostgreSQL cuts what is longer.
_PLAIN: Final[dict[type, type[TypeEngine[Any]]]] = {
    bytes: LargeBinary,
    int: BigInteger,
    str: String,
}


def _text() -> TypeEngine[str]:
    """Give a type that compares and sorts by bytes, whatever the database does by default."""
    exact = mysql.VARCHAR(255, charset="ascii", collation="ascii_bin")
    by_bytes = String(255, collation="C")
    return (
        String(255)
        .with_variant(by_bytes, "postgresql")
        .with_variant(exact, "mysql")
        .with_variant(exact, "mariadb")
    )


def _bytes() -> TypeEngine[bytes]:
    """Give a type for some hundred kilobytes: MySQL's BLOB ends at 64."""
    return (
        LargeBinary()
        .with_variant(mysql.MEDIUMBLOB(), "mysql")
        .with_variant(mysql.MEDIUMBLOB(), "mariadb")
    )


def _column(name: str) -> Column[Any]:
    if name in TEXTS:
        return Column(name, _text())
    kind: type[TypeEngine[int]] = BigInteger if name in TIMES or "version" in name else Integer
    return Column(name, SmallInteger if name in FLAGS else kind, nullable=False)


def _upsert(table: Table, dialect: str, column: str) -> Insert:
    """Insert rows; of those that are there already one column is changed."""
    if dialect in ("mysql", "mariadb"):
        into = mysql.insert(table)
        return into.on_duplicate_key_update({column: into.inserted[column]})
    key = list(table.primary_key)
    if dialect == "postgresql":
        there = postgresql.insert(table)
        return there.on_conflict_do_update(
            index_elements=key, set_={column: there.excluded[column]}
        )
    here = sqlite.insert(table)
    return here.on_conflict_do_update(index_elements=key, set_={column: here.excluded[column]})


def _among(key: Column[Any], dialect: str) -> ColumnElement[bool]:
    """Choose the rows of the parameter ``keys``."""
    if dialect == "postgresql":
        return key == any_(bindparam("keys", type_=postgresql.ARRAY(String)))
    return key.in_(bindparam("keys", expanding=True))


def _given(*columns: Column[Any]) -> TableValuedAlias:
    """Give the rows of a parameter ``all_…`` for each column, which is an array."""
    arrays = [
        bindparam(f"all_{one.name}", type_=postgresql.ARRAY(_PLAIN[one.type.python_type]))
        for one in columns
    ]
    names = [column(one.name, one.type) for one in columns]
    return func.unnest(*arrays).table_valued(*names).render_derived(name="given")


class Statements:
    """The two tables, and what is done to them, for one dialect.

    The indexes are unique constraints, because those are made together with their table: a process
    that is killed in between leaves no table without them.

    An entry is written before the record that it names, and removed after it. It counts for a
    record of its own kind only, alive or a tombstone, so that all entries of a record change
    together with it.

    A statement with a value for each of many rows takes longer to make than to run. PostgreSQL
    takes the values as arrays, and is always sent the same statements.

    :ivar metadata: the tables, for Alembic.
    """

    def __init__(self, table: str, dialect: str | None = None) -> None:
        options: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
        self.metadata = MetaData()
        self.grants = grants = Table(
            table,
            self.metadata,
            Column("record_key", _text(), primary_key=True),
            *map(_column, COLUMNS),
            Column("sealed", _bytes(), nullable=False),
            UniqueConstraint("ends_at", "record_key", name=f"{table}_ends"),
            **options,
        )
        names = ("entry", "record_key", "tombstone")
        self.entries = entries = Table(
            f"{table}_index",
            self.metadata,
            Column("entry", _text(), primary_key=True),
            Column("record_key", _text(), primary_key=True),
            Column("tombstone", SmallInteger, primary_key=True, autoincrement=False),
            Column("ends_at", BigInteger, nullable=False),
            UniqueConstraint("record_key", "entry", "tombstone", name=f"{table}_index_key"),
            UniqueConstraint("ends_at", *names, name=f"{table}_index_ends"),
            **options,
        )
        if dialect is not None:
            self._takes_arrays = dialect == "postgresql"
            self._of_records(grants, CLOCKS[dialect], dialect)
            self._of_index(grants, entries, CLOCKS[dialect], dialect)
            if self._takes_arrays:
                self._of_arrays(grants, entries)

    def _of_records(self, grants: Table, clock: str, dialect: str) -> None:
        key, columns = grants.c.record_key, [grants.c[name] for name in COLUMNS]
        among = _among(key, dialect)
        # On its own, so that it is read once and every comparison with it can use an index.
        now = select(literal_column(clock, BigInteger).label("now")).subquery("clock")
        present = select(now.c.now).scalar_subquery()
        lives = and_(key == bindparam("at_key"), grants.c.ends_at > now.c.now)
        #: The clock, and the record if there is one that has not ended.
        self.read = select(now.c.now, *columns, grants.c.sealed).select_from(
            now.outerjoin(grants, lives)
        )
        whole = select(present.label("now"), key, *columns, grants.c.sealed)
        self._alive = alive = grants.c.ends_at > present
        self.read_many = whole.where(among, alive)
        self.scan = (
            whole.where(key > bindparam("after"), alive)
            .order_by(key)
            .limit(bindparam("most", type_=Integer))
        )
        unchanged = and_(
            key == bindparam("at_key"),
            *(column.is_not_distinct_from(bindparam(f"was_{column.name}")) for column in columns),
        )
        self.swap = (
            update(grants)
            .where(unchanged)
            .values({name: bindparam(f"new_{name}") for name in (*COLUMNS, "sealed")})
        )
        self.remove = delete(grants).where(unchanged)
        self.insert = insert(grants)
        ended = grants.c.ends_at <= present
        self.clear_ended = delete(grants).where(key == bindparam("at_key"), ended)
        #: Two steps, because MySQL knows no limit for what is chosen inside a DELETE.
        self.ended = (
            select(key).where(ended).order_by("ends_at").limit(bindparam("most", type_=Integer))
        )
        self.trim = delete(grants).where(among, ended)
        self.remove_buried = delete(grants).where(among, grants.c.sealed == bindparam("mark"))

    def _buried(self, which: ColumnElement[bool], sealed: ColumnElement[Any]) -> Update:
        after = {**_BURIED, "version": self.grants.c.version + 1, "sealed": sealed}
        return update(self.grants).where(which).values(after)

    def bury(self, found: Mapping[str, Control], sealed: Mapping[str, bytes]) -> Command:
        """Make tombstones of records, by key, that are of this version and kind still."""
        keys, key = list(found), self.grants.c.record_key
        versions = {one: control.version for one, control in found.items()}
        kinds = {one: int(control.tombstone) for one, control in found.items()}
        if self._takes_arrays:
            return self._bury_given, {
                "all_record_key": keys,
                "all_version": list(versions.values()),
                "all_tombstone": list(kinds.values()),
                "all_sealed": [sealed[one] for one in keys],
            }
        fenced = and_(
            key.in_(keys),
            self.grants.c.version == case(versions, value=key),
            self.grants.c.tombstone == case(kinds, value=key),
            self._alive,
        )
        return self._buried(fenced, case(sealed, value=key)), None

    def _of_index(self, grants: Table, entries: Table, clock: str, dialect: str) -> None:
        key = entries.c.record_key
        present = select(literal_column(clock, BigInteger)).scalar_subquery()
        ended = entries.c.ends_at <= present
        among = _among(key, dialect)
        self.enter = _upsert(entries, dialect, "ends_at")
        alive = entries.c.tombstone == 0
        others = entries.c.entry.not_in(bindparam("kept", expanding=True))
        self.leave = delete(entries).where(key == bindparam("at_key"), or_(alive, others))
        self.leave_alive = delete(entries).where(key == bindparam("at_key"), alive, others)
        self.leave_many = delete(entries).where(among, alive)
        self.leave_for_good = delete(entries).where(among)
        self.find = (
            select(key)
            .join_from(
                entries,
                grants,
                and_(key == grants.c.record_key, entries.c.tombstone == grants.c.tombstone),
            )
            .where(
                entries.c.entry == bindparam("at_entry"),
                entries.c.ends_at > present,
                grants.c.ends_at > present,
            )
            .limit(bindparam("most", type_=Integer))
        )
        self.ended_entries = (
            select(key).where(ended).order_by("ends_at").limit(bindparam("most", type_=Integer))
        )
        self.trim_entries = delete(entries).where(among, ended)

    def _of_arrays(self, grants: Table, entries: Table) -> None:
        same = (grants.c.record_key, grants.c.version, grants.c.tombstone)
        given = _given(*same, grants.c.sealed)
        fenced = and_(self._alive, *(one == given.c[one.name] for one in same))
        self._bury_given = self._buried(fenced, given.c.sealed)
        self._enter_given = self.enter.from_select(entries.c.keys(), select(_given(*entries.c)))

    def enter_many(self, rows: Sequence[Mapping[str, Any]]) -> Command:
        """Write many entries in one statement."""
        if self._takes_arrays:
            names = self.entries.c.keys()
            return self._enter_given, {f"all_{name}": [row[name] for row in rows] for name in names}
        return self.enter.values(list(rows)), None

    @property
    def tables(self) -> list[CreateTable]:
        """The statements that make the tables where they are not there yet."""
        return [CreateTable(table, if_not_exists=True) for table in (self.grants, self.entries)]

    def ddl(self, dialect: str) -> list[str]:
        """Give the same as text in a dialect."""
        spoken = URL.create(dialect).get_dialect()()
        return [str(table.compile(dialect=spoken)).strip() for table in self.tables]
