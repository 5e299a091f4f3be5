"""The demo goes through itself, and ends as it should."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import pytest
import requests

ROOT = Path(__file__).parents[1]
# The store keeps its connections as long as the process lives: Python 3.13 complains at the end.
DEMO = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "examples/demo"]
PATIENCE = 30
STEPS = [
    "sign in",
    "token",
    "call",
    "break",
    "20 requests",
    "20 threads",
    "provider stops",
    "provider starts",
    "client token",
    "sign out",
]

Demo = Callable[[], AbstractContextManager[tuple[subprocess.Popen[str], str]]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which temporary files are those of this test."""
    return {**os.environ, "TMPDIR": str(tmp_path)}


@pytest.fixture
def demo(environment: dict[str, str]) -> Demo:
    """Runs the demo; gives its process and its URL."""

    @contextmanager
    def run() -> Iterator[tuple[subprocess.Popen[str], str]]:
        process = subprocess.Popen(
            DEMO, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            yield process, _url(process)
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)

    return run


def _url(process: subprocess.Popen[str]) -> str:
    """Read the banner up to the address; a demo that says nothing fails the test."""
    found: Queue[str] = Queue()

    def read() -> None:
        lines = process.stdout or ()
        urls = (re.search(r"http://localhost:\d+/", line) for line in lines)
        found.put(next((url[0] for url in urls if url), ""))

    Thread(target=read, daemon=True).start()
    try:
        url = found.get(timeout=PATIENCE)
    except Empty:
        url = ""
    assert url, "the demo shows no banner"
    return url


def test_the_check_goes_through_all_of_it(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--check"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line[4:20].strip() for line in lines if line.startswith("ok  ")] == STEPS
    assert sum("20 times 200, one refresh" in line for line in lines) == 2
    assert any("then 503 with Retry-After" in line for line in lines)
    assert lines[-1] == "All of it works."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_of_it_and_nothing_is_left(
    demo: Demo, number: signal.Signals, tmp_path: Path
) -> None:
    with demo() as (process, url):
        assert requests.get(url, timeout=PATIENCE).status_code == 200
        assert list(tmp_path.glob("flask-atm-demo-*"))
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_page_allows_nothing_but_its_own_files(demo: Demo) -> None:
    with demo() as (_, url):
        page = requests.get(url, timeout=PATIENCE)
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        assert not re.search(r"\sstyle=|\son\w+=|<style|<script>", page.text)
        files = re.findall(r'(?:href|src)="/(static/[^"]+)"', page.text)
        assert files
        for path in files:
            assert requests.get(url + path, timeout=PATIENCE).status_code == 200


def test_buttons_work_from_the_page_only(demo: Demo) -> None:
    with demo() as (_, url):
        headers = {"Sec-Fetch-Site": "same-site"}
        stop = requests.post(url + "backstage/stop", headers=headers, timeout=PATIENCE)
        assert stop.status_code == 403
        assert requests.get(url + "backstage/status", timeout=PATIENCE).json()["up"] is True


def test_nobody_reaches_the_demo_by_another_name(demo: Demo) -> None:
    with demo() as (_, url):
        strange = requests.get(url, headers={"Host": "evil.example"}, timeout=PATIENCE)
        assert strange.status_code == 400
