"""C13: a store in the memory of one process, and several processes."""

import logging
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from flask_atm.grants.stores import MemoryStore, SQLiteStore
from flask_atm.workers import memory_problem, several_workers

from .support_cli import shop

SETTINGS: dict[str, Any] = {
    "SECRET_KEY": "f3cf1ae79ee3bbd77d3a5a0be2eb1cf26a1f3b7ac7a1d2f5",
    "ATM_STORE": "memory",
    "ATM_ISSUER": "https://id.example.com",
    "ATM_CLIENT_ID": "shop",
    "ATM_CLIENT_SECRET": "secret",
}
CLIENT = {"token_endpoint": "https://id.example/token", "client_id": "a", "client_secret": "b"}


@pytest.mark.parametrize(
    ("environ", "arguments", "found"),
    [
        ({}, [], None),
        ({}, ["flask", "run"], None),
        ({"WEB_CONCURRENCY": "1"}, [], None),
        ({"WEB_CONCURRENCY": "four"}, [], None),
        ({"WEB_CONCURRENCY": "4"}, [], "WEB_CONCURRENCY=4"),
        ({}, ["/usr/bin/gunicorn", "-w", "3", "app:app"], "gunicorn has 3 workers"),
        ({}, ["gunicorn", "-w3", "app:app"], "gunicorn has 3 workers"),
        ({}, ["gunicorn", "--workers=2", "app:app"], "gunicorn has 2 workers"),
        ({}, ["gunicorn", "--workers", "1", "app:app"], None),
        ({}, ["something", "-w", "3"], None),
        ({"GUNICORN_CMD_ARGS": "--workers 5 --preload"}, [], "gunicorn has 5 workers"),
    ],
)
def test_c13_what_speaks_for_several_workers(
    environ: dict[str, str], arguments: list[str], found: str | None
) -> None:
    assert several_workers(environ, arguments) == found


def test_c13_only_a_store_in_memory_is_a_problem(tmp_path: Path) -> None:
    environ = {"WEB_CONCURRENCY": "4"}
    problem = memory_problem(MemoryStore(), environ, [])
    assert problem is not None
    assert "ATM_STORE" in problem
    assert memory_problem(SQLiteStore(tmp_path / "g.sqlite3"), environ, []) is None
    assert memory_problem(MemoryStore(), {}, []) is None
    assert memory_problem(MemoryStore(), {}, [], is_pair=True) is None


def test_c13_a_pair_in_memory_is_called_by_its_own_setting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    shop({**SETTINGS, "ATM_STORE": "session", "ATM_PAIRED_STORE": "memory"})
    (said,) = (one.getMessage() for one in caplog.records if "WEB_CONCURRENCY=4" in one.message)
    assert "Set ATM_PAIRED_STORE to sqlite or redis://" in said
    assert "ATM_STORE" not in said


def test_c13_a_warning_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    shop(SETTINGS)
    assert not caplog.records
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    shop({**SETTINGS, "ATM_STORE": f"sqlite:///{tmp_path / 'g.sqlite3'}"})
    # Without users there is only one token request more.
    shop({"ATM_CLIENTS": {"reports": CLIENT}})
    assert not caplog.records
    shop(SETTINGS)
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "flask_atm.config")
    assert "WEB_CONCURRENCY=2" in record.getMessage()
    assert "ATM_STORE" in record.getMessage()


ARBITER = """
    class Arbiter:
        def __init__(self, num_workers):
            self.num_workers = num_workers

        def spawn_worker(self, load):
            return load()
"""


@pytest.mark.parametrize(("workers", "found"), [(1, "None"), (3, "gunicorn has 3 workers")])
def test_c13_a_worker_that_gunicorn_has_forked_knows_it(
    tmp_path: Path, workers: int, found: str
) -> None:
    """Whatever the number comes from: a configuration file, a signal, the command line."""
    (tmp_path / "gunicorn").mkdir()
    (tmp_path / "gunicorn" / "__init__.py").touch()
    (tmp_path / "gunicorn" / "arbiter.py").write_text(textwrap.dedent(ARBITER))
    script = f"""
        from gunicorn.arbiter import Arbiter
        from flask_atm.workers import several_workers
        print(Arbiter({workers}).spawn_worker(lambda: several_workers({{}}, [])))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )
    assert done.stdout.strip() == found
