"""The page of the demo in Chromium: every button, as a person presses them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import pytest
from playwright.sync_api import ConsoleMessage, Error, Page, expect, sync_playwright

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
LIFETIME = 8
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
]
# What the browser itself says about the answers that the test provokes.
PROVOKED = re.compile(r"Failed to load resource.* (401|503) ")


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The demo in a process of its own; its URL."""
    process = subprocess.Popen(
        [sys.executable, "examples/demo", "--lifetime", str(LIFETIME)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield _url(process)
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def _url(process: subprocess.Popen[str]) -> str:
    found: Queue[str] = Queue()

    def read() -> None:
        lines = process.stdout or ()
        urls = (re.search(r"http://localhost:\d+/", line) for line in lines)
        found.put(next((url[0] for url in urls if url), ""))

    Thread(target=read, daemon=True).start()
    try:
        url = found.get(timeout=20)
    except Empty:
        url = ""
    assert url, "the demo shows no banner"
    return url


@pytest.fixture
def page(demo: str) -> Iterator[Page]:
    """The page before anybody has signed in; scripts and CSP must not complain."""
    complaints: list[str] = []

    def complain(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not PROVOKED.search(message.text):
            complaints.append(message.text)

    def crash(error: Error) -> None:
        complaints.append(str(error))

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_context(locale="en-GB").new_page()
        tab.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        tab.on("console", complain)
        tab.on("pageerror", crash)
        tab.goto(demo)
        yield tab
        browser.close()
    assert complaints == []


def sign_in(page: Page, name: str) -> None:
    page.get_by_role("link", name="Sign in", exact=True).click()
    page.get_by_role("button", name=name).click()
    expect(page.locator("#name")).to_have_text(name)


def refreshes(page: Page) -> int:
    return int(page.locator("#refreshes").inner_text())


def test_every_button_of_the_page(page: Page) -> None:
    sign_in(page, "Alice Adams")

    expect(page.locator("#token-type")).to_have_text("Bearer")
    expect(page.locator("#fingerprint")).to_have_text(re.compile(r"^[0-9a-f]{8}$"))
    expect(page.locator("#scope")).to_contain_text("greetings")
    expect(page.locator("#seconds")).to_have_text(str(LIFETIME - 2))

    page.get_by_role("button", name="Call it").click()
    expect(page.locator("#result")).to_contain_text("200 Hello, Alice Adams")

    before = page.locator("#fingerprint").inner_text()
    page.get_by_role("button", name="Break it and call").click()
    expect(page.locator("#break-result")).to_contain_text("401, one refresh")
    expect(page.locator("#fingerprint")).not_to_have_text(before)
    expect(page.locator("#log")).to_contain_text("GET /hello answered 401")
    expect(page.locator("#log")).to_contain_text("The token of Alice Adams was renewed.")

    page.get_by_role("button", name="Twenty calls at its end").click()
    expect(page.locator("#twenty-result")).to_contain_text("Nobody calls until then")
    expect(page.locator("#ring")).to_have_attribute("data-phase", "due")
    expect(page.locator("#twenty-result")).to_contain_text("20 × 200, one refresh.")
    expect(page.locator("#dots [data-kind=good]")).to_have_count(20)

    page.get_by_role("button", name="Get a client token").click()
    expect(page.locator("#client-result")).to_contain_text("new from the provider")
    page.get_by_role("button", name="Get a client token").click()
    expect(page.locator("#client-result")).to_contain_text("from the cache")

    page.get_by_role("button", name="Stop the provider").click()
    expect(page.locator("#provider")).to_have_text("Provider stopped")
    expect(page.locator("#stop-result")).to_contain_text("Calls go on")
    expect(page.locator("#sign-out")).to_be_disabled()
    expect(page.locator("#stop-result")).to_contain_text("Retry-After: ")
    expect(page.locator("#result")).to_contain_text("503 No token is left")
    spent = refreshes(page)
    page.get_by_role("button", name="Start the provider").click()
    expect(page.locator("#stop-result")).to_contain_text("Nobody had to sign in again.")
    expect(page.locator("#refreshes")).to_have_text(str(spent + 1))
    page.get_by_label("every second").uncheck()

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in", exact=True)).to_be_visible()
    expect(page.locator("#log")).to_contain_text("Alice Adams signed out.")


def test_a_sign_out_elsewhere_is_explained(page: Page) -> None:
    sign_in(page, "Bob Brown")
    page.context.clear_cookies(domain="localhost")
    page.get_by_role("button", name="Call it").click()
    expect(page.locator("#result")).to_contain_text("Your sign-in has ended.")
    page.get_by_role("link", name="Sign in again").click()
    expect(page.locator("#name")).to_have_text("Bob Brown")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_is_cut_off(page: Page, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 900})
    sign_in(page, "Bob Brown")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width


def test_a_stopped_provider_can_be_started_without_a_sign_in(page: Page, demo: str) -> None:
    expect(page.get_by_role("button", name="Start the provider again")).to_be_hidden()
    page.request.post(f"{demo}backstage/stop")
    page.get_by_role("button", name="Start the provider again").click()
    expect(page.locator("#provider")).to_have_text("Provider running")
    sign_in(page, "Bob Brown")
