"""Drives the demo in a real browser: for the demo's test, and for the picture in the README.

``python -m tests.browser images/demo.png``, from the repository's root, takes that picture anew.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from tests.processes import started

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OWN_HOSTS = ("127.0.0.1", "localhost", "")  # "": data: and blob: addresses
ANSWER_SECONDS = 120  # a busy machine
PICTURE_SIZE = {"width": 1280, "height": 800}
PICTURE_EXAMPLE, PICTURE_QUESTIONS = 1, ("", "Where is it?")


@dataclass
class Window:
    """A page of the demo, and what the browser did beside showing it.

    Attributes:
        errors: what the page wrote to the console as an error.
        foreign: addresses on other machines that it asked for.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def click_example(self, number: int) -> None:
        """Takes an example, and waits until its photo is there."""
        self.page.locator("#examples button").nth(number).click()
        self.page.locator("#photo img").first.wait_for()

    def ask(self, question: str = "") -> str:
        """Asks, and waits for the whole answer."""
        bots = self.page.locator("#chat .message.bot")
        before = bots.count()
        self.page.locator("#question textarea").fill(question)
        self.page.locator("#send").click()
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            if bots.count() > before and (answer := bots.last.inner_text().strip()) not in ("", "…"):
                return answer
            self.page.wait_for_timeout(100)
        raise TimeoutError(f"no answer to {question!r} in {ANSWER_SECONDS} s")


@contextmanager
def running_demo(arguments: Sequence[str] = ()) -> Iterator[str]:
    """Starts the demo as a user does; yields the address that it prints."""
    command = [sys.executable, "web_demo.py", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with started(command, cwd=ROOT / "code", env=environment, **options) as process:
        printed = ""
        for line in process.stdout:
            printed += line
            if found := re.match(r"Open (http://\S+)", line):
                yield found.group(1)
                return
        raise RuntimeError(f"the demo did not start:\n{printed}")


def installed_browser() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def window(address: str, size: dict[str, int] | None = None) -> Iterator[Window]:
    """Opens the demo in a browser, and listens to its console and its requests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed_browser(), args=list(FLAGS))
        try:
            opened = Window(browser.new_page(viewport=size or PICTURE_SIZE))
            page = opened.page
            page.set_default_timeout(1000 * ANSWER_SECONDS)
            page.on("console", lambda said: said.type == "error" and opened.errors.append(said.text))
            page.on("pageerror", lambda error: opened.errors.append(str(error)))
            page.on("request", lambda asked: _is_foreign(asked.url) and opened.foreign.append(asked.url))
            page.goto(address)
            page.locator("#send").wait_for()
            yield opened
        finally:
            browser.close()


def _is_foreign(url: str) -> bool:
    return (urlsplit(url).hostname or "") not in OWN_HOSTS


def take_picture(target: Path, arguments: Sequence[str] = ()) -> None:
    """The demo after an example with references and a follow-up question, as PNG."""
    with running_demo(arguments) as address, window(address) as opened:
        opened.click_example(PICTURE_EXAMPLE)
        opened.page.wait_for_timeout(1500)  # the references' thumbnails
        for question in PICTURE_QUESTIONS:
            opened.ask(question)
        opened.page.wait_for_timeout(1500)  # scrolling and fading end
        opened.page.screenshot(path=target, full_page=True)
    with Image.open(target) as picture:  # six bits a channel look the same and take a third less
        picture.convert("RGB").point(lambda value: (value >> 2) * 255 // 63).save(target, optimize=True)


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]).resolve(), sys.argv[2:])
