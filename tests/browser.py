"""Drives the demo in a real browser: for the demo's test, and for the pictures in the README.

``python -m tests.browser images``, from the repository's root, takes those pictures anew.
"""

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from tests.processes import serving, started

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera
OWN_HOSTS = ("127.0.0.1", "localhost", None)  # None: data: and blob: addresses
ANSWER_SECONDS = 120  # a busy machine
SEND, STOP = "#question .submit-button", "#question .stop-button"
PICTURE_SIZE = {"width": 1280, "height": 800}
PICTURE_EXAMPLE = 6
PICTURES = {"demo.png": ("en-US", "Where are they?"), "demo_zh.png": ("zh-CN", "在哪里？")}  # browser, second question


@dataclass
class Window:
    """A page of the demo, with the errors and the requests of the browser.

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
        self.begin(question)
        return self.answer()

    def begin(self, question: str = "") -> None:
        """Asks, and waits until the question is in the chat."""
        users = self.page.locator("#chat .message.user")
        before = users.count()
        self.page.locator("#question textarea").fill(question)
        self.page.locator(SEND).click()
        users.nth(before).wait_for()

    def answer(self) -> str:
        """The latest answer, once it is complete or stopped: another question can be sent."""
        self.page.locator(SEND).wait_for()
        return str(self.page.locator("#chat .message.bot").last.inner_text()).strip()


@contextmanager
def running_demo(
    arguments: Sequence[str] = (), code: Path = ROOT / "code", before: str = "", **variables: str
) -> Iterator[str]:
    """Starts the demo as a user does, with environment variables; yields the address that it prints.

    Args:
        before: Python statements that run first.
    """
    start = ["-c", f"{before}; from anomalygpt.web_demo import main; main()"] if before else ["web_demo.py"]
    command = [sys.executable, *start, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | variables
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with started(command, cwd=code, env=environment, **options) as process:
        printed = ""
        for line in process.stdout:
            printed += line
            if found := re.match(r"Open (http://\S+)", line):
                yield found.group(1)
                return
        raise RuntimeError(f"the demo did not start:\n{printed}")


@contextmanager
def behind_nginx(address: str, folder: Path) -> Iterator[str]:
    """Runs nginx as docs/page.md says, with files in ``folder``; yields the page's address there."""
    [location] = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "page.md").read_text(), re.DOTALL)
    assert "http://127.0.0.1:7860/" in location
    location = location.replace("http://127.0.0.1:7860", address.rstrip("/"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in kinds)
    icon = "location = /favicon.ico { return 204; }"  # browsers ask the host for it by themselves
    server = f"server {{ listen 127.0.0.1:{port}; {icon}\n{location} }}"
    about = f"user {getpass.getuser()}; daemon off; pid {folder}/pid; error_log stderr; events {{}}"
    (folder / "nginx.conf").write_text(f"{about}\nhttp {{ access_log off; {temporary}\n{server} }}\n")
    with started(["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf")]):
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/factory/inspect/"


@contextmanager
def proxied(address: str, prefix: str) -> Iterator[str]:
    """A reverse proxy, as nginx with ``location PREFIX { proxy_pass ADDRESS/; }``; yields the page's address there."""
    import httpx
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    client = httpx.AsyncClient(base_url=address, timeout=None, trust_env=False)

    async def forward(request: Request) -> StreamingResponse:
        path = httpx.URL(path="/" + request.path_params["path"], query=request.url.query.encode())
        headers = {name: value for name, value in request.headers.items() if name != "transfer-encoding"}
        headers |= {"x-forwarded-host": headers["host"], "x-forwarded-proto": "http"}
        asked = client.build_request(request.method, path, headers=headers, content=request.stream())
        given = await client.send(asked, stream=True)
        kept = {name: value for name, value in given.headers.items() if name != "transfer-encoding"}
        return StreamingResponse(given.aiter_raw(), given.status_code, kept, background=BackgroundTask(given.aclose))

    icon = Route("/favicon.ico", lambda _: Response())  # which browsers ask the host for by themselves
    app = Starlette(routes=[icon, Route(f"{prefix}{{path:path}}", forward, methods=["GET", "POST", "HEAD"])])
    with serving(app, timeout_graceful_shutdown=1) as host:
        yield host + prefix


def installed_browser() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def window(address: str, size: dict[str, int] | None = None, locale: str = "en-US", **options: Any) -> Iterator[Window]:
    """Opens the demo in a browser, and listens to its console and its requests; ``options``: of Playwright's page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed_browser(), args=FLAGS)
        try:
            opened = Window(browser.new_page(viewport=size or PICTURE_SIZE, locale=locale, **options))
            page = opened.page
            page.set_default_timeout(1000 * ANSWER_SECONDS)
            page.on("console", lambda message: message.type == "error" and opened.errors.append(message.text))
            page.on("pageerror", lambda error: opened.errors.append(str(error)))
            page.on(
                "request",
                lambda asked: urlsplit(asked.url).hostname in OWN_HOSTS or opened.foreign.append(asked.url),
            )
            page.goto(address)
            page.locator(SEND).wait_for()
            yield opened
        finally:
            browser.close()


def take_pictures(folder: Path, arguments: Sequence[str] = ()) -> None:
    """The demo after an example with references and a follow-up question, as PNG."""
    with running_demo(arguments) as address:
        for name, (locale, question) in PICTURES.items():
            with window(address, locale=locale) as opened:
                opened.click_example(PICTURE_EXAMPLE)
                opened.page.locator("#map img").first.wait_for()
                for text in ("", question):
                    opened.ask(text)
                opened.page.wait_for_timeout(1500)  # scrolling and fading end
                opened.page.screenshot(path=folder / name, full_page=True)
            with Image.open(folder / name) as picture:  # six bits a channel look the same and take a third less
                picture.convert("RGB").point(lambda value: (value >> 2) * 255 // 63).save(folder / name, optimize=True)


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]).resolve(), sys.argv[2:])
