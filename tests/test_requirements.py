"""``tests/README.rst`` says which test shows what; what it names is there."""

import ast
import re
import tomllib
from configparser import RawConfigParser
from functools import cache
from pathlib import Path

import pytest

from tests import lines

TESTS = Path(__file__).parent
TEXT = (TESTS / "README.rst").read_text("utf-8")
NAMED = re.findall(r"``([\w/]+\.py)::((?:\w+::)?test_\w+)``", TEXT)
LINES = re.findall(r"^   \* - ([A-Z]+[0-9]+)$", TEXT, flags=re.MULTILINE)


#: The tests that a test class of a store inherits, and where they are written.
CONTRACTS = {"StoreContract": ("store_contract.py", "store_races.py")}


@cache
def defined(path: Path) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Give the tests of a file: ``test_x``, or ``Class::test_x``; those that it inherits too."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = [("", node) for node in tree.body]
    for one in tree.body:
        if isinstance(one, ast.ClassDef):
            inherited = [
                file for base in one.bases for file in CONTRACTS.get(ast.unparse(base), ())
            ]
            classes = [node for file in inherited for node in _classes(file)]
            nodes += [(f"{one.name}::", node) for each in [*classes, one] for node in each.body]
    return {
        prefix + node.name: node
        for prefix, node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def _classes(file: str) -> list[ast.ClassDef]:
    text = (TESTS.parent / "flask_atm" / "testing" / file).read_text("utf-8")
    return [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_a_test_that_is_named_is_there(path: str, name: str) -> None:
    assert (TESTS / path).is_file(), path
    assert name in defined(TESTS / path), f"{path} has no {name}"


def test_every_test_that_looks_named_was_read() -> None:
    assert len(NAMED) == TEXT.count("::test_")


def test_every_line_has_its_tests() -> None:
    rows = re.split(r"^   \* - ", TEXT, flags=re.MULTILINE)[1:]
    for row in rows:
        if not row.startswith(("line\n", "what must hold\n")):
            assert "::test_" in row or "``tox -e " in row, row
    assert len(LINES) == len(set(LINES))
    assert len(LINES) > 60


def test_nothing_that_is_skipped_or_expected_to_fail_is_named_as_a_proof() -> None:
    for path, name in sorted(set(NAMED)):
        marks = [ast.unparse(mark) for mark in defined(TESTS / path)[name].decorator_list]
        assert not [mark for mark in marks if "mark.skip" in mark and "skipif" not in mark], name
        assert not [mark for mark in marks if "xfail" in mark], f"{path}::{name} does not hold"


def test_a_mark_stands_at_a_test() -> None:
    """Anywhere else it does nothing."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                marks = [ast.unparse(one) for one in node.decorator_list]
                is_test = node.name.lower().startswith("test")
                assert is_test or not any("mark." in one for one in marks), f"{path}:{node.lineno}"


def test_the_commands_are_environments_of_tox() -> None:
    tox = RawConfigParser()
    tox.read(TESTS.parent / "tox.ini")
    known = {section.removeprefix("testenv:") for section in tox.sections()}
    known |= set(tox["tox"]["env_list"].replace(" ", "").split(","))
    assert set(re.findall(r"``tox -e (\w+)``", TEXT)) <= known


def test_so_much_is_covered_as_it_says() -> None:
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text("utf-8"))
    coverage = project["tool"]["coverage"]
    assert coverage["run"]["branch"] is True
    least = coverage["report"]["fail_under"]
    assert f"at least {least} % of the statements and branches" in " ".join(TEXT.split())


def test_what_is_not_covered_says_why() -> None:
    package = TESTS.parent / "flask_atm"
    for path in package.rglob("*.py"):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            found = re.search(r"pragma: no (?:cover|branch)(.*)", line)
            assert found is None or re.search(r"\w{3}", found[1]), f"{path}:{number} says no reason"


def test_the_table_of_stores_is_what_the_names_of_the_tests_say() -> None:
    there = TEXT.partition(lines.BEGIN)[2].partition(lines.END)[0]
    assert there == lines.table(), "python -m tests.lines"


def test_a_file_that_is_said_to_run_on_a_store_speaks_of_it() -> None:
    for file, stores in lines.RUNS_ON.items():
        text = (TESTS / file.partition("::")[0]).read_text("utf-8")
        for store in stores.split():
            assert store in lines.STORES
            assert re.search(lines.EVIDENCE[store], text), f"{file} says nothing of {store}"


def test_a_name_may_stand_for_several_lines() -> None:
    assert lines.lines_of("test_c2_a23_redis_is_away_for_3_s") == ["C2", "A23"]
    assert lines.lines_of("test_b1a_down_for_10_min") == ["B1"]
    assert lines.lines_of("test_a_name_may_stand_for_several_lines") == []
