"""``flask atm ddl``: what it prints makes the tables that the store works with."""

import sqlite3
from pathlib import Path

import pytest

from .support_cli import Shop, shop
from .test_cli import TWO, assert_error


def at(path: Path) -> Shop:
    url = f"sqlite+pysqlite:///{path}"
    return shop({**TWO, "ATM_STORE": url, "ATM_STORE_PREFIX": "shop"})


def test_ddl_prints_statements_that_a_database_takes(tmp_path: Path) -> None:
    made = at(tmp_path / "grants.sqlite3")
    script = made.run("ddl").stdout
    assert script.count(";") == 2
    database = sqlite3.connect(tmp_path / "grants.sqlite3")
    database.executescript(script)
    names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")
    assert names.fetchall() == [("shop_grants",), ("shop_grants_index",)]
    database.close()
    made.sign_in()
    assert [row["state"] for row in made.objects("grants")] == ["ok"]


@pytest.mark.parametrize(
    ("dialect", "words"),
    [
        ("postgresql", "BYTEA NOT NULL"),
        ("mysql", "ENGINE=InnoDB"),
        ("mariadb", "MEDIUMBLOB NOT NULL"),
        ("sqlite", "BLOB NOT NULL"),
    ],
)
def test_ddl_for_another_database(dialect: str, words: str) -> None:
    statements = [one["statement"] for one in shop(TWO).objects("ddl", "--dialect", dialect)]
    assert [one.split()[5] for one in statements] == ["flask_atm_grants", "flask_atm_grants_index"]
    assert any(words in one for one in statements)


def test_ddl_of_a_store_that_has_no_tables() -> None:
    assert_error(shop(TWO).run("ddl"), 2, "no SQL database: name one with --dialect")


def test_ddl_for_the_dialect_of_another_store(tmp_path: Path) -> None:
    (first, _) = at(tmp_path / "x").objects("ddl", "--dialect", "postgresql")
    assert first["statement"].startswith("CREATE TABLE IF NOT EXISTS shop_grants")
    assert 'COLLATE "C"' in first["statement"]
