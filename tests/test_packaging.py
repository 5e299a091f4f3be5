"""What is built from the sources holds what an installation needs, and nothing else."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SOURCES = ("flask_atm", "tests", "docs", "examples", "benchmarks")
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist and the wheel from a copy of the sources, without the network."""
    copy = tmp_path_factory.mktemp("sources")
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, copy)
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", "_build")
    for name in SOURCES:
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    (copy / "dist").mkdir()
    built = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-2000:]
    return copy / "dist"


def _wheel(dist: Path) -> ZipFile:
    return ZipFile(next(dist.glob("*.whl")))


def test_the_wheel_holds_the_package_and_nothing_else(dist: Path) -> None:
    with _wheel(dist) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "flask_atm").rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert "flask_atm/py.typed" in names
    assert names == wanted | {"_flask_atm_pytest.py"}


def test_the_wheel_holds_licence_and_entry_points(dist: Path) -> None:
    with _wheel(dist) as wheel:
        info = f"flask_atm-{PROJECT['version']}.dist-info"
        assert "BSD 3-Clause" in wheel.read(f"{info}/licenses/LICENSE").decode()
        points = wheel.read(f"{info}/entry_points.txt").decode()
        metadata = wheel.read(f"{info}/METADATA").decode()
    assert "atm = flask_atm.cli:atm" in points
    assert "flask_atm = _flask_atm_pytest" in points
    assert "License-Expression: BSD-3-Clause" in metadata


def test_the_sdist_holds_what_the_suite_needs(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.rst", "CHANGES.rst", "tox.ini", "flask_atm/py.typed"} <= names
    assert {"tests/test_packaging.py", "tests/requirements/lowest.txt", "docs/conf.py"} <= names
    assert not [name for name in names if "node_modules" in name or name.endswith(".pyc")]


def test_dependencies_have_lower_bounds_only() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", line) for line in PROJECT["dependencies"])


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    text = (ROOT / "tests/requirements/lowest.txt").read_text("utf-8")
    block = text.partition("\n\n")[0].splitlines()
    pins = [line for line in block if not line.startswith("#")]
    assert pins == [line.replace(">=", "==") for line in PROJECT["dependencies"]]
