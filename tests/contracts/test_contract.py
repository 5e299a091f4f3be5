"""The contract finds every store that is wrong, and each of its lines finds some."""

import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import pytest

from flask_atm.grants.stores import MemoryStore
from flask_atm.testing import StoreClock, StoreContract
from tests.contracts import wrong_stores
from tests.contracts.wrong_stores import FOUND_BY

ROOT = Path(__file__).parents[2]
LINES = sorted(name for name in dir(StoreContract) if name.startswith("test_"))


@cache
def outcomes() -> dict[str, str]:
    """Run what is wrong with the lines that have to find it, and what is right with all of them."""
    file = Path(wrong_stores.__file__).relative_to(ROOT)
    chosen = [f"{file}::TestWrong"]
    chosen += [
        f"{file}::Test{k.__name__}::test_{line}" for k, ls in FOUND_BY.items() for line in ls
    ]
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "--tb=no", "-p", "no:cacheprovider", f"--junitxml={report}"]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *chosen],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert report.exists(), run.stdout + run.stderr
        return {
            f"{case.get('classname', '').rpartition('.Test')[2]}: {case.get('name')}": (
                case[0].tag if len(case) else "passed"
            )
            for case in ElementTree.parse(report).iter("testcase")  # noqa: S314 - written just now
        }


@pytest.mark.parametrize(
    ("kind", "line"), [(kind.__name__, line) for kind, lines in FOUND_BY.items() for line in lines]
)
def test_c12_every_wrong_store_fails_its_line(kind: str, line: str) -> None:
    assert outcomes()[f"{kind}: test_{line}"] == "failure"


def test_c12_every_line_finds_some_wrong_store() -> None:
    finding = {f"test_{line.partition('[')[0]}" for lines in FOUND_BY.values() for line in lines}
    assert sorted(finding) == LINES


def test_the_one_that_is_right_passes_all_of_them() -> None:
    found = {name: how for name, how in outcomes().items() if name.startswith("Wrong: ")}
    assert set(found.values()) == {"passed"}
    assert {name.partition("[")[0].removeprefix("Wrong: ") for name in found} == set(LINES)


def test_a_clock_that_is_the_stores_own_is_asked_and_waited_for() -> None:
    before = time.time()
    clock = StoreClock(MemoryStore())
    now = clock()
    assert before <= now <= time.time()
    assert now + 0.05 <= clock.advance(0.05) <= time.time()
