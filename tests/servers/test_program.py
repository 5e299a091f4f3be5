"""The programs that the tests start leave nothing behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .postgres_server import PostgresServer
from .program import Program
from .redis_server import RedisServer

ROOT = Path(__file__).parents[2]
UNTIL_KILLED = """
import sys
from {module} import {name}
server = {name}().__enter__()
print(server.pid, server.folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=[RedisServer, PostgresServer])
def program(request: pytest.FixtureRequest) -> type[Program]:
    kind: type[Program] = request.param
    return kind


def is_there(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for yet does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_program_ends_with_its_context(program: type[Program]) -> None:
    with program() as server:
        folder, pid = server.folder, server.pid
        assert folder.exists()
        assert is_there(pid)
    assert not folder.exists()
    assert not is_there(pid)


def test_a_program_ends_when_its_test_is_killed(program: type[Program]) -> None:
    code = UNTIL_KILLED.format(module=program.__module__, name=program.__name__)
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as test:
        assert test.stdout is not None
        pid, folder = test.stdout.readline().decode().split()
        assert is_there(int(pid))
        test.kill()
    give_up = time.monotonic() + 20
    while is_there(int(pid)) or Path(folder).exists():
        assert time.monotonic() < give_up
        time.sleep(0.01)
