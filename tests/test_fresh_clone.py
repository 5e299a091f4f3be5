"""The commands of the README in a fresh clone, where there is nothing but Python.

No Node, no Redis, no browser on PATH; an empty virtual environment for each command. Everything
comes from the package indexes, so this is for ``tox -e slow``.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "env", "sh")
MISSING = ("node", "npm", "redis-server", "valkey-server", "chromium", "gcc", "git")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What git would give somebody now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    copy = tmp_path / "flask-atm"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH with Python and a shell, and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python3").symlink_to(os.path.realpath(sys.executable))
    for tool in TOOLS:
        (folder / tool).symlink_to(str(shutil.which(tool)))
    for tool in MISSING:
        assert shutil.which(tool, path=str(folder)) is None
    ours = ("PYTHON", "PYTEST_", "TOX_", "COV_", "COVERAGE_", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PATH": str(folder)}


def commands() -> dict[str, str]:
    """The two commands, as the README has them."""
    text = (ROOT / "README.rst").read_text("utf-8")
    demo, tests = re.findall(r"^ +(python3 -m venv .*)$", text, flags=re.MULTILINE)
    (some,) = re.findall(r"^ +\.venv/bin/tox( -e py -- .*)$", text, flags=re.MULTILINE)
    # The demo goes through itself and ends; of the tests those that the README names.
    return {"demo": f"{demo} --check", "tests": f"{tests}{some}"}


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_a_command_of_the_readme_works_with_nothing_but_python(
    name: str, clone: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        ["bash", "-c", commands()[name]],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    if name == "demo":
        assert "All of it works." in output
    else:
        passed = re.search(r"^=* ?(\d+) passed", output, flags=re.MULTILINE)
        assert passed is not None, output[-5000:]
        assert int(passed[1]) >= 4
        assert "skipped" not in output
