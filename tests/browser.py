"""A real Chromium, and what its pages complained about."""

import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from playwright.sync_api import Browser, Dialog, Page, sync_playwright

TIMEOUT_S = 60.0


@contextmanager
def start_browser() -> Generator[Browser]:
    """Chromium of this machine."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program is not None, "no Chromium: scripts/chromium.sh installs it"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page with its complaints and the addresses that it asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list[str])
    requests: list[str] = field(default_factory=list[str])

    def dismiss(self, dialog: Dialog) -> None:
        """No script of ours opens one."""
        self.complaints.append(dialog.message)
        dialog.dismiss()


@contextmanager
def visit(
    browser: Browser, url: str, *, width: int = 1280, height: int = 900, scheme: Literal["light", "dark"] = "light"
) -> Generator[Visit]:
    """The page at an address."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(TIMEOUT_S * 1000)
    visited = Visit(context.new_page())
    visited.page.on("console", lambda said: visited.complaints.append(said.text))
    visited.page.on("pageerror", lambda error: visited.complaints.append(str(error)))
    visited.page.on("dialog", visited.dismiss)
    visited.page.on("request", lambda request: visited.requests.append(request.url))
    visited.page.goto(url)
    yield visited
    context.close()


def wait_until(holds: Callable[[], object]) -> None:
    """Until it is true, for a minute at most."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come true within a minute"
        time.sleep(0.05)
